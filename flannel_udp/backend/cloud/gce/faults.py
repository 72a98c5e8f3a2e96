"""What Compute Engine, and what asks it, have against a call, in one line that says what to do."""

from __future__ import annotations

import re

import requests
from google.auth.exceptions import DefaultCredentialsError, RefreshError
from google.auth.exceptions import TransportError as NoToken

from flannel_udp.backend.cloud.provider import CloudError

ROLE = "see examples/cloud/gce-role.yaml"
GONE, BUSY, THERE = "notFound", "resourceNotReady", "alreadyExists"
"""Reasons that may be as good as success."""

_RIGHT = re.compile(r"Required '([\w.]+)' permission for '([^']+)'")
_GIVE = f"give it to the instance's service account, {ROLE}"
_NOT_US = f"Google does not take our credentials ({{reason}}): give the instance a service account, {ROLE}"
_THROTTLED = "Google is asked too often in this project ({reason} to {operation})"
_FULL = "the VPC network has as many static routes as it may have: ask Google to raise the quota ({message})"
_SCOPES = (
    "the instance's access scopes do not allow {operation}: stop it, and gcloud compute instances set-service-account "
    "INSTANCE --scopes=cloud-platform"
)
_DOWN = "Google's API is not well ({reason} to {operation}): {message}"
_THERE = (
    "the project has a route of that name already, made at this moment or in another network. Names are a project's: "
    "two clusters in one project need different Networks ({message})"
)
_LINES = {
    **dict.fromkeys(("rateLimitExceeded", "userRateLimitExceeded", "RATE_LIMIT_EXCEEDED"), _THROTTLED),
    **dict.fromkeys(("quotaExceeded", "QUOTA_EXCEEDED", "LIMIT_EXCEEDED"), _FULL),
    **dict.fromkeys(("authError", "UNAUTHENTICATED", "401"), _NOT_US),
    **dict.fromkeys(("insufficientPermissions", "ACCESS_TOKEN_SCOPE_INSUFFICIENT"), _SCOPES),
    **dict.fromkeys(("forbidden", "PERMISSION_DENIED", "PERMISSIONS_ERROR"), f"no right to {{operation}}: {_GIVE}"),
    **dict.fromkeys(("backendError", "internalError", "INTERNAL_ERROR"), _DOWN),
    **dict.fromkeys((THERE, "RESOURCE_ALREADY_EXISTS"), _THERE),
    "accessNotConfigured": "the project has no Compute Engine API: gcloud services enable compute.googleapis.com",
    GONE: "{operation} finds nothing: {message}: correct Backend.Project, or leave it out",
}
_OTHER = "{operation} failed: {reason}: {message}"
_PASSES = frozenset({_THROTTLED, _DOWN})


class Refused(CloudError):
    """The API said no, or nothing. `reason` is its own word for why; `passes`: another try at once may help."""

    def __init__(self, line: str, reason: str = "", *, passes: bool = False) -> None:
        super().__init__(line)
        self.reason, self.passes = reason, passes


def explain_refusal(operation: str, reason: str, message: str, *, status: int = 400) -> Refused:
    """Return what an answer, or an operation, says; `operation` is the API's name of the call."""
    if status == 429:
        reason = "rateLimitExceeded"
    line = _LINES.get(reason, _DOWN if status >= 500 else _OTHER)
    if right := _RIGHT.search(message):
        text = f"no right to {right[1]} on {right[2]}: {_GIVE}"
    else:
        text = line.format(operation=operation, reason=reason, message=" ".join(message.split()))
    return Refused(text, reason, passes=line in _PASSES)


def explain(error: Exception, operation: str, url: str) -> Refused:
    """Return why no answer came, or no credentials were found."""
    if isinstance(error, requests.exceptions.ProxyError):
        why = f"the proxy that HTTPS_PROXY or HTTP_PROXY names does not let {operation} pass: correct it, or NO_PROXY"
    elif isinstance(error, requests.exceptions.SSLError):
        why = f"{url} has no certificate that this host trusts: is a proxy in the way? ({error})"
    elif isinstance(error, requests.exceptions.ChunkedEncodingError):
        why = f"{url}'s answer to {operation} broke off: is a proxy in the way?"
    elif isinstance(error, requests.RequestException):
        why = f"{url} does not answer {operation}: may this host reach it, by Private Google Access or Cloud NAT?"
    elif isinstance(error, DefaultCredentialsError | RefreshError | NoToken):
        why = f"no credentials for Google: give the instance a service account, {ROLE} ({error.args[0]})"
    else:
        why = f"{operation} failed: {error}"
    return Refused(" ".join(why.split()), passes=isinstance(error, requests.RequestException))
