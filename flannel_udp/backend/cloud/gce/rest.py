"""Compute Engine's REST API, one call at a time: credentials, time-outs, tries, pages and operations. Blocks."""

from __future__ import annotations

import json
import logging
import os
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import google.auth
import requests
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession, Request
from requests.adapters import HTTPAdapter

from flannel_udp.backend.cloud.gce.faults import Refused, explain, explain_refusal
from flannel_udp.backend.cloud.provider import CloudError
from flannel_udp.backoff.delay import Backoff

SCOPE = "https://www.googleapis.com/auth/compute"
_URL_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"  # as gcloud has it, with the version in it
TIMEOUTS_S = (3.0, 10.0)
"""To connect, and for an answer."""
TRIES = 4
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 4.0
"""Between tries: a quota is filled again at the next minute, for which the keeper waits, not we."""
OPERATION_S = 60.0
"""How long an operation may take; most are done after a few seconds."""
FIRST_LOOK_S, LAST_LOOK_S = 0.2, 2.0
"""Between looks at it."""

logging.getLogger("google").setLevel(logging.ERROR)
"""What it warns of we say ourselves; below that it writes whole requests."""


class Rest:
    """The API as the host's credentials see it."""

    def __init__(self, universe: str) -> None:
        """Find the credentials, as all of Google's libraries do; nothing is asked yet. Raises `CloudError`."""
        self.url = (os.environ.get(_URL_VARIABLE) or f"https://compute.{universe}/compute/v1/").rstrip("/") + "/"
        self._tokens = requests.Session()
        self._tokens.mount("http://", _NoProxy())
        asking = Request(self._tokens)
        try:
            credentials, _ = google.auth.default(scopes=[SCOPE], request=asking)
        except GoogleAuthError as error:
            raise explain(error, "the credentials", self.url) from error
        self._session = AuthorizedSession(credentials, auth_request=asking)

    def get(self, operation: str, path: str, **query: str) -> Any:
        """Return the document there. `operation` is the API's name of the call. Raises `CloudError`, `Refused`."""
        return self._call(operation, "GET", path, query)

    def pages(self, operation: str, path: str, **query: str) -> Iterator[Mapping[str, Any]]:
        """Yield the items of a list, of all its pages. Raises `CloudError`, `Refused`."""
        page = self.get(operation, path, **query)
        yield from page.get("items", ())
        while token := page.get("nextPageToken"):
            page = self.get(operation, path, **query, pageToken=token)
            yield from page.get("items", ())

    def begin(self, operation: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Have something done, and return the operation that does it. Raises `CloudError`, `Refused`.

        Asked a second time, after an answer that was lost, it is still done once.
        """
        begun: Mapping[str, Any] = self._call(operation, method, path, {"requestId": str(uuid.uuid4())}, body)
        return begun

    def finish(self, project: str, operation: str, begun: Mapping[str, Any]) -> None:
        """Wait until it is done. Raises `CloudError`, `Refused` for what went wrong with it."""
        until_s, pauses, now = time.monotonic() + OPERATION_S, _backoff(FIRST_LOOK_S, LAST_LOOK_S), begun
        while now.get("status") != "DONE":
            if time.monotonic() > until_s:
                raise CloudError(f"{operation} is not done after {OPERATION_S:g} s ({begun.get('name')})")
            time.sleep(pauses.next_s())
            now = self.get("globalOperations.get", f"projects/{project}/global/operations/{begun['name']}")
        for error in now.get("error", {}).get("errors", ()):
            raise explain_refusal(operation, error.get("code", "?"), error.get("message", ""))

    def _call(
        self, operation: str, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None = None
    ) -> Any:
        pauses = _backoff(FIRST_PAUSE_S, LAST_PAUSE_S)
        for _ in range(TRIES - 1):
            try:
                return self._ask(operation, method, path, query, body)
            except Refused as refused:
                if not refused.passes:
                    raise
            time.sleep(pauses.next_s())
        return self._ask(operation, method, path, query, body)

    def _ask(
        self, operation: str, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None
    ) -> Any:
        try:
            response = self._session.request(method, self.url + path, params=query, json=body, timeout=TIMEOUTS_S)
        except (requests.RequestException, GoogleAuthError) as error:
            raise explain(error, operation, self.url) from error
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise Refused(f"{self.url}'s answer to {operation} makes no sense: is a proxy in the way?", passes=True)
        if response.status_code >= 400:
            raise explain_refusal(operation, *_said(response.status_code, document), status=response.status_code)
        return document

    def close(self) -> None:
        """Close the connections."""
        self._session.close()
        self._tokens.close()


class _NoProxy(HTTPAdapter):
    """Tokens that come by plain HTTP are the metadata service's: a proxy would give those of its own host."""

    def send(self, *args: Any, **options: Any) -> Any:
        """See `HTTPAdapter.send`."""
        return super().send(*args, **{**options, "proxies": {}})


def _said(status: int, document: Mapping[str, Any]) -> tuple[str, str]:
    """Return the reason and the message of an error's document."""
    error = document.get("error")
    if not isinstance(error, dict):
        return str(status), json.dumps(document)
    first: Mapping[str, Any] = next(iter(error.get("errors", ())), {})
    return first.get("reason") or error.get("status") or str(status), str(error.get("message", ""))


def _backoff(first_s: float, last_s: float) -> Backoff:
    return Backoff(first_s, last_s, random.Random())  # noqa: S311 - no secret
