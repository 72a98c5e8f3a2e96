"""The instance metadata service of Tencent Cloud for tests, a process of its own, from Tencent's description of it.

    python -m tests.support.tencent_metadata_server ADDRESS PORT INSTANCE     writes its port (for 0: a free one)

INSTANCE is JSON: ``region``, ``instance`` and ``interfaces``, a list of ``mac``, ``vpc``, ``subnet`` and ``addresses``;
with ``role``, its keys as that role's document has them, the instance has the CAM role "hosts".
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from tests.support.cloud_server import run

_ROOT = "/latest/meta-data/"
_ROLES = f"{_ROOT}cam/security-credentials/"


def documents(instance: Any) -> dict[str, str]:
    """Return every path's text."""
    macs = f"{_ROOT}network/interfaces/macs/"
    found = {
        f"{_ROOT}placement/region": instance["region"],
        f"{_ROOT}instance-id": instance["instance"],
        macs: "\n".join(f"{each['mac']}/" for each in instance["interfaces"]),
    }
    for each in instance["interfaces"]:
        of = f"{macs}{each['mac']}/"
        found |= {
            f"{of}vpc-id": each["vpc"],
            f"{of}subnet-id": each["subnet"],
            f"{of}primary-local-ipv4": each["addresses"][0],
            f"{of}local-ipv4s/": "\n".join(f"{address}/" for address in each["addresses"]),
        }
    if "role" in instance:
        found |= {_ROLES: "hosts", f"{_ROLES}hosts": json.dumps(instance["role"])}
    return found


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    documents: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        text = self.documents.get(self.path)
        self.send_response(404 if text is None else 200)
        body = (text or "").encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    Handler.documents = documents(json.loads(sys.argv[3]))
    run(ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler))
