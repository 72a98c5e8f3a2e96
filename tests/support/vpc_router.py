"""A VPC around a lab, of whatever provider: a router in its middle, and metadata services at their real addresses.

The router is the lab's own namespace, which has the underlay's bridge. It does what a VPC does: a packet takes the
provider's route to a host, not the sender's.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from tests.support.behind_router import make_router
from tests.support.served import served

_OURS = "proto 99"
_TURN_S = 0.5


def in_middle(lab: Lab) -> Sequence[str]:
    """Return what to put before a command that runs in the lab's middle, as an API's server does."""
    return ("ip", "netns", "exec", lab.net.namespace)


@contextmanager
def router_in(lab: Lab, led: Callable[[], Mapping[str, str]]) -> Iterator[None]:
    """Have the router for the block: `led` tells which destination is led to which host's address now."""
    make_router(lab)
    router = _Router(lab, led)
    try:
        yield
    finally:
        router.stop()


@contextmanager
def metadata_on(host: Host, server: str, address: str, said: Any) -> Iterator[None]:
    """Have a host's metadata service for the block, at that address: `server` takes address, port and `said`."""
    host.configure(f"address add {address}/32 dev lo")
    with served(server, address, "80", json.dumps(said), before=("ip", "netns", "exec", host.namespace)):
        yield


class _Router:
    """Follows what is led where, in a thread, until it is stopped."""

    def __init__(self, lab: Lab, led: Callable[[], Mapping[str, str]]) -> None:
        self._lab, self._led = lab, led
        self._there: Mapping[str, str] = {}
        self._stopped = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="VPC router")
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopped.wait(_TURN_S):
                self._follow()
        except Exception as failure:
            self._failure = failure

    def _follow(self) -> None:
        wanted = self._led()
        lines = [f"route del {at} {_OURS}" for at in self._there if at not in wanted]
        lines += [f"route replace {at} via {to} {_OURS}" for at, to in wanted.items() if self._there.get(at) != to]
        if lines:
            self._lab.net.configure(*lines)
        self._there = wanted

    def stop(self) -> None:
        """End the thread, and raise what ended it before."""
        self._stopped.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
