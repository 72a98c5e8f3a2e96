"""EC2's instance metadata service for tests, version 2, a process of its own, from AWS's description of it.

    python -m tests.support.metadata_server ADDRESS PORT INSTANCE     writes its port (given 0, one that is free)

INSTANCE is JSON: ``region``, ``instance``, ``vpc``, ``cidrs`` and ``interfaces``, a list of ``mac``, ``id``, ``subnet``
and ``addresses``; with ``credentials`` the instance has the role "hosts". Who asks without a token is refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from tests.support.cloud_server import run

_TOKEN = "AQAEAtoken=="  # noqa: S105 - it opens nothing
_MACS = "/latest/meta-data/network/interfaces/macs/"
_ROLES = "/latest/meta-data/iam/security-credentials/"


def documents(instance: Any) -> dict[str, str]:
    """Return every path's text."""
    found = {
        "/latest/dynamic/instance-identity/document": json.dumps(
            {"region": instance["region"], "instanceId": instance["instance"], "version": "2017-09-30"}
        ),
        _MACS: "\n".join(f"{each['mac']}/" for each in instance["interfaces"]),
    }
    for each in instance["interfaces"]:
        of = f"{_MACS}{each['mac']}/"
        found |= {
            of + "interface-id": each["id"],
            **({of + "local-ipv4s": "\n".join(each["addresses"])} if each["addresses"] else {}),
            of + "subnet-id": each["subnet"],
            of + "vpc-id": instance["vpc"],
            of + "vpc-ipv4-cidr-blocks": "\n".join(instance["cidrs"]),
        }
    if instance.get("credentials"):
        found |= {_ROLES: "hosts", _ROLES + "hosts": json.dumps(instance["credentials"])}
    return found


class Handler(BaseHTTPRequestHandler):
    """Answers one request: who asks without a token gets none, as EC2 and its like have it."""

    documents: ClassVar[dict[str, str]] = {}
    header = "X-aws-ec2-metadata-token"
    status_without_token = 401
    refuses = False

    def do_PUT(self) -> None:
        if self.refuses:
            self._answer(403, "")
        elif self.path == "/latest/api/token" and self.headers.get(f"{self.header}-ttl-seconds"):
            self._answer(200, _TOKEN)
        else:
            self._answer(400, "")

    def do_GET(self) -> None:
        if self.headers.get(self.header) != _TOKEN:
            self._answer(self.status_without_token, "")
        elif self.path in self.documents:
            self._answer(200, self.documents[self.path])
        else:
            self._answer(404, "")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


def serve(handler: type[Handler], documents: Callable[[Any], dict[str, str]]) -> None:
    """Serve as the command line has it, until killed."""
    asked = json.loads(sys.argv[3])
    handler.documents, handler.refuses = documents(asked), asked.get("refuses", False)
    run(ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), handler))


if __name__ == "__main__":
    serve(Handler, documents)
