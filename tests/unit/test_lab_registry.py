"""The lab's etcd asked by its HTTP interface, whose paths are others before etcd 3.4: a double stands for that one."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from flannel_udp.errors import FlannelError
from flannel_udp.lab import registry


class OldEtcd(BaseHTTPRequestHandler):
    """As etcd 3.3, which Ubuntu 22.04 has: below /v3beta, and "404 page not found" elsewhere."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        known = {"/v3beta/kv/range": (200, asked), "/v3beta/kv/put": (400, b'{"message": "no"}')}
        status, answer = known.get(self.path, (404, b"404 page not found\n"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the library
        pass


@pytest.fixture
def connection() -> Iterator[http.client.HTTPConnection]:
    with HTTPServer(("127.0.0.1", 0), OldEtcd) as server:
        Thread(target=server.serve_forever).start()
        with closing(http.client.HTTPConnection("127.0.0.1", server.server_port)) as connection:
            yield connection
        server.shutdown()


def test_an_etcd_before_3_4_is_asked_where_it_answers(connection: http.client.HTTPConnection) -> None:
    assert registry._ask(connection, "kv/range", {"key": "a"}) == json.loads('{"key": "a"}')
    with pytest.raises(FlannelError, match="refused kv/put: no"):
        registry._ask(connection, "kv/put", {})
    with pytest.raises(FlannelError, match="refused kv/other: 404 page not found"):
        registry._ask(connection, "kv/other", {})
