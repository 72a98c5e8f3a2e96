"""EC2's API for tests, a process of its own: moto's server, and what goes wrong with the real one, on order.

    python -m tests.support.ec2_server ADDRESS     writes the port that it listens on

Faults are ordered as `cloud_server.Orders` has it. POST /test/blackholes takes a list of network interfaces: routes to
them lead nowhere.

moto makes a route a second time where EC2 refuses: RouteAlreadyExists is added here.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable
from email.utils import formatdate
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.route_tables import RouteBackend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.support.cloud_server import Orders

_REFUSAL = "<Response><Errors><Error><Code>{}</Code><Message>{}</Message></Error></Errors></Response>"


class Front:
    """The WSGI application: moto's behind what was ordered."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._orders = Orders()
        self._blackholes: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path, body = environ["PATH_INFO"], environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if path.startswith("/test/"):
            if path == "/test/blackholes":
                self._blackholes = json.loads(body)
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._orders.obey(path, body)).encode()]
        environ["wsgi.input"] = BytesIO(body)
        action = parse_qs(body.decode(errors="replace")).get("Action", ["?"])[0]
        order = self._orders.take(action)
        if "code" in order:
            Quiet.clock_off_s = order.get("clock_off_s", 0.0)
            start_response(f"{order['status']} No", [("Content-Type", "text/xml")])
            return [_REFUSAL.format(order["code"], order.get("message", "no")).encode()]
        answered: list[Any] = []
        answer = b"".join(self._moto(environ, lambda status, headers, _=None: answered.extend((status, headers))))
        if action == "DescribeRouteTables":
            answer = self._blackened(answer)
        status, headers = answered
        headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start_response(status, [*headers, ("Content-Length", str(len(answer)))])
        return [answer[: len(answer) // 2] if order.get("cut") else answer]

    def _blackened(self, answer: bytes) -> bytes:
        text = answer.decode()
        for interface in self._blackholes:
            text = re.sub(
                rf"(<networkInterfaceId>{interface}</networkInterfaceId>.*?<state>)active(</state>)",
                r"\1blackhole\2",
                text,
                flags=re.DOTALL,
            )
        return text.encode()


class Quiet(WSGIRequestHandler):
    """Logs nothing, and has the time from a clock that may be wrong."""

    clock_off_s = 0.0

    def log(self, *_: Any) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate((timestamp or time.time()) + self.clock_off_s, usegmt=True)


def refuse_twice() -> None:
    """Have moto refuse what is there already, as EC2 does."""
    create = RouteBackend.create_route

    def create_once(self: Any, route_table_id: str, destination_cidr_block: str | None, *rest: Any, **more: Any) -> Any:
        routes = self.get_route_table(route_table_id).routes
        if any(route.destination_cidr_block == destination_cidr_block is not None for route in routes):
            raise EC2ClientError("RouteAlreadyExists", f"The route identified by {destination_cidr_block} exists.")
        return create(self, route_table_id, destination_cidr_block, *rest, **more)

    RouteBackend.create_route = create_once  # type: ignore[method-assign]


if __name__ == "__main__":
    refuse_twice()
    server = make_server(sys.argv[1], 0, Front(), threaded=True, request_handler=Quiet)
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    server.serve_forever()
