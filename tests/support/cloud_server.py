"""What test servers of the providers' APIs have in common: requests, and what goes wrong with the real ones, on order.

A server of our own is a module with a `CloudServer` and ``if __name__ == "__main__": run(TheServer(sys.argv[1]))``; it
is started by `served`, and knows nothing of the code under test.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


class Orders:
    """What goes wrong, and what was asked for.

    POST /test/faults takes a list of orders: ``{"action": "CreateRoute", "times": 2, "status": 503, "code": "..."}``,
    with ``message``, ``delay_s``, ``cut`` (half an answer), ``clock_off_s`` (what the answer's date says); an order
    without a status delays, cuts or misdates what is answered otherwise. GET /test/asked is the list of actions so far.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[dict[str, Any]] = []
        self._asked: list[str] = []

    def obey(self, path: str, body: bytes) -> list[str]:
        """Answer a request to one of those paths."""
        with self._lock:
            if path == "/test/faults":
                self._faults = json.loads(body)
            return self._asked

    def take(self, action: str) -> dict[str, Any]:
        """Note that this was asked for, wait as long as was ordered, and return what goes wrong with it."""
        order = self._first(action)
        time.sleep(order.get("delay_s", 0.0))
        return order

    def _first(self, action: str) -> dict[str, Any]:
        with self._lock:
            self._asked.append(action)
            for order in self._faults:
                if order["action"] == action and order.get("times", 1_000_000) > 0:
                    order["times"] = order.get("times", 1_000_000) - 1
                    return order
        return {}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """By name in lower case."""
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON, an empty one as an empty object."""
        return json.loads(self.body or b"{}")


class Refusal(Exception):
    """A server answers with that status and the provider's form of that error."""

    def __init__(self, status: int, code: str, message: str = "no") -> None:
        super().__init__(code, message)
        self.status, self.code, self.message = status, code, message


class CloudServer(ThreadingHTTPServer):
    """One provider's API on a port that is free. A subclass is asked one request at a time."""

    def __init__(self, address: str, port: int = 0) -> None:
        super().__init__((address, port), _Handler)
        self.orders = Orders()
        self.lock = threading.Lock()

    def action(self, request: Request) -> str:
        """Return the API's name of what is asked for: what orders and /test/asked have."""
        raise NotImplementedError

    def answer(self, request: Request) -> Any:
        """Return the document of the answer, with status 200; or raise `Refusal`."""
        raise NotImplementedError

    def refusal(self, refusal: Refusal) -> Any:
        """Return the document that says so, with the refusal's status, in the provider's form."""
        raise NotImplementedError

    def obey(self, path: str, body: bytes) -> Any:
        """Answer what a test asks for below /test/: a server may have more than `Orders`."""
        return self.orders.obey(path, body)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: CloudServer
    clock_off_s = 0.0

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if parts.path.startswith("/test/"):
            self._send(200, self.server.obey(parts.path, body))
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, parts.path, dict(parse_qsl(parts.query)), headers, body)
        order = self.server.orders.take(self.server.action(request))
        self.clock_off_s = order.get("clock_off_s", 0.0)
        try:
            if "status" in order:
                raise Refusal(order["status"], order.get("code", ""), order.get("message", "no"))
            with self.server.lock:
                status, document = 200, self.server.answer(request)
        except Refusal as refusal:
            status, document = refusal.status, self.server.refusal(refusal)
        self._send(status, document, cut=order.get("cut", False))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815 - http.server's names

    def _send(self, status: int, document: Any, *, cut: bool = False) -> None:
        text = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text[: len(text) // 2] if cut else text)
        self.close_connection = cut

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + self.clock_off_s)

    def log_message(self, *_: Any) -> None:
        pass


def run(server: ThreadingHTTPServer) -> None:
    """Say on which port it listens, and serve until killed."""
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
