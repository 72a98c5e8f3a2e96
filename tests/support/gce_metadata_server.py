"""Compute Engine's metadata service for tests, a process of its own, from Google's description of it.

    python -m tests.support.gce_metadata_server ADDRESS PORT INSTANCE     writes its port (given 0, one that is free)

INSTANCE is JSON: ``project``, ``number``, ``zone``, ``name``, ``interfaces``, a list of ``ip`` and ``network``, and
``token``, without which the instance has no service account; with ``universe`` it is one of another universe domain.
With ``unmarked`` it is a web server of somebody else's.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from tests.support.cloud_server import run

_ROOT = "/computeMetadata/v1/"
_ACCOUNTS = _ROOT + "instance/service-accounts/"


def documents(instance: Any) -> dict[str, str]:
    """Return every path's text, JSON where it begins with a bracket."""
    email = f"hosts@{instance['project']}.iam.gserviceaccount.com"
    found = {
        "/": "computeMetadata/\n",
        _ROOT + "project/project-id": instance["project"],
        _ROOT + "project/numeric-project-id": instance["number"],
        _ROOT + "instance/name": instance["name"],
        _ROOT + "instance/zone": f"projects/{instance['number']}/zones/{instance['zone']}",
        _ROOT + "instance/network-interfaces/?recursive=true": json.dumps(instance["interfaces"]),
    }
    if "universe" in instance:
        found[_ROOT + "universe/universe-domain"] = instance["universe"]
    if instance.get("token"):
        token = {"access_token": instance["token"], "expires_in": 3599, "token_type": "Bearer"}
        account = {"aliases": ["default"], "email": email, "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}
        for name in ("default", email):
            of = f"{_ACCOUNTS}{name}/"
            found |= {of + "?recursive=true": json.dumps(account), of + "token": json.dumps(token)}
    return found


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    documents: ClassVar[dict[str, str]] = {}
    unmarked = False

    def do_GET(self) -> None:
        if self.headers.get("Metadata-Flavor") != "Google" and self.path != "/":
            self._answer(403, "Missing Metadata-Flavor:Google header.")
            return
        path = self.path if self.path in self.documents else self.path.partition("?")[0]
        text = self.documents.get(path)
        self._answer(404 if text is None else 200, text or "")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        if not self.unmarked:
            self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Type", "application/json" if text[:1] in ("{", "[") else "application/text")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    asked = json.loads(sys.argv[3])
    Handler.documents, Handler.unmarked = documents(asked), asked.get("unmarked", False)
    run(ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler))
