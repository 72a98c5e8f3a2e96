"""The page's server of a lab as its users start it, and what it tells a page."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from flannel_udp.lab.lab import Lab
from tests.support.agents import up_with_peers
from tests.support.labs import cleaned_up, fresh_name
from tests.support.ordinary_user import User
from tests.support.patience import PATIENCE_S


class View(NamedTuple):
    """`lab view`, and where its page is."""

    process: subprocess.Popen[str]
    url: str

    @property
    def origin(self) -> str:
        return self.url.rpartition("/")[0].rpartition("/")[0]

    @contextmanager
    def asked(self, method: str, name: str, body: object = None) -> Iterator[http.client.HTTPResponse]:
        """Ask for what is at that name below the page, as the page does."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE_S)
        headers = {"Origin": self.origin, "Content-Type": "application/json"} if method == "POST" else {}
        try:
            connection.request(method, parts.path + name, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            with response:  # a server may close the connection behind an answer without end, not before
                yield response
        finally:
            connection.close()

    def post(self, name: str, **body: object) -> Any:
        with self.asked("POST", name, body) as response:
            return json.load(response)

    @contextmanager
    def live(self) -> Iterator[Iterator[tuple[str, Any]]]:
        """Watch as a page does: its events, until the end."""
        with self.asked("GET", "live") as response:
            yield _events(response)


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    while name := response.readline():
        data = response.readline()
        response.readline()
        yield name.decode().removeprefix("event: ").strip(), json.loads(data.removeprefix(b"data: "))


@contextmanager
def lesson_lab() -> Iterator[Lab]:
    """Have a lab with two hosts and a pod each, and the first lesson, whose agents are another process's children."""
    name = fresh_name()
    argv = [sys.executable, "-m", "flannel_udp", "lab", "lesson", "start", "1", "--name", name, "--lang", "en"]
    subprocess.run(argv, capture_output=True, check=True)
    with cleaned_up(Lab.attach(name)) as lab:
        yield up_with_peers(lab)


@contextmanager
def viewed(name: str, user: User | None = None) -> Iterator[View]:
    """Run `lab view` for the block, as root or as somebody else."""
    words = ["view", "--name", name]
    argv = [sys.executable, "-m", "flannel_udp", "lab", *words] if user is None else user.lab(*words)
    env = None if user is None else user.env
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            yield View(process, process.stdout.readline().strip())
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
