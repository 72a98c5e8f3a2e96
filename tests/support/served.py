"""Test servers of a provider, each a process of its own: started for a block, told what goes wrong, asked for what."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

from flannel_udp.model import Ends, Interface
from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NO_PROXY", "no_proxy")
"""What a host's environment says of proxies: none of that is there by chance in a test."""
UNUSABLE_PROXIES = (
    "http://u:geheim/x@127.0.0.1:9",
    "http://u:geheim#x@127.0.0.1:9",
    "http://u:geheim@127.0.0.1:99999",
    "socks5://u:geheim@127.0.0.1:9",
    "http://u:geheim@127.0.0.1:9",
)
"""Some that no library can use, or that let nothing pass, and that have a password."""
T = TypeVar("T")


@contextmanager
def served(server: str, *arguments: str, before: Sequence[str] = ()) -> Iterator[int]:
    """Run one of the servers for the block; yields its port, which is all that it writes.

    `server` is its module in this folder; it is not imported here: moto takes seconds.
    """
    command = [*before, sys.executable, "-m", f"tests.support.{server}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # with PYTHONSAFEPATH the working folder is not looked into
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline()
            assert port, f"{command} ended before it listened"
            yield int(port)
        finally:
            process.kill()


@contextmanager
def metadata_served(server: str, said: Mapping[str, Any]) -> Iterator[str]:
    """Have a metadata service for the block; yields its URL."""
    with served(server, "127.0.0.1", "0", json.dumps(said)) as port:
        yield f"http://127.0.0.1:{port}"


def at_once(call: Callable[[], T]) -> T:
    """Return what it returns: the server is on this machine's own loopback."""
    return call()


class Served:
    """An API's server, as a test sees it; `inside` runs what speaks to it, where that can be."""

    def __init__(self, address: str, port: int, inside: Callable[[Callable[[], Any]], Any] = at_once) -> None:
        self._address, self._port, self.inside = address, port, inside
        self.url = f"http://{address}:{port}"

    def call(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Any:
        """Send a request of JSON and return the answer's document, whatever its status."""

        def call() -> Any:
            connection = http.client.HTTPConnection(self._address, self._port, timeout=PATIENCE_S)
            try:
                connection.request(method, path, None if body is None else json.dumps(body).encode(), headers or {})
                return json.load(connection.getresponse())
            finally:
                connection.close()

        return self.inside(call)

    def order(self, path: str, body: object) -> None:
        """Tell the server what goes wrong from now on: see `cloud_server.Orders`."""
        self.call("POST", path, body)

    def fail(self, *orders: Mapping[str, Any]) -> None:
        """Have calls fail: these orders, and no former ones."""
        self.order("/test/faults", list(orders))

    def asked(self) -> list[str]:
        """Return the actions that were asked for so far."""
        actions: list[str] = self.call("GET", "/test/asked")
        return actions


def external(address: str = "192.0.2.1") -> Interface:
    """Return the external interface of a host with that address."""
    return Interface("eth0", 2, 9001, Ends(IPv4Address(address), IPv4Address(address)))
