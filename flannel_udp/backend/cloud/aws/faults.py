"""What AWS and its SDK have against a call, in one line that says what to do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from flannel_udp.backend.cloud.provider import CloudError

GONE = "InvalidRoute.NotFound"
SKEW_S = 60.0
"""AWS takes no signature that is five minutes off; from so much on we say so."""
_POLICY = "see examples/cloud/aws-policy.json"
_DENIED = f"no right to ec2:{{operation}} on {{what}}: give it to the instance's role, {_POLICY}"
_NOT_US = "AWS does not take our credentials ({code}){skew}: correct the role, or the access key"
_THROTTLED = "AWS is asked too often in this account ({code} to {operation})"
_NO_TABLE = "there is no such route table in {what}: correct Backend.RouteTableID ({message})"
_UNSENT = (
    "{operation} cannot be sent: is AWS_SESSION_TOKEN one line, is each access key, and is what HTTPS_PROXY or "
    "HTTP_PROXY names like http://HOST:PORT?"
)
_LINES = {
    **dict.fromkeys(("UnauthorizedOperation", "AccessDenied", "AccessDeniedException"), _DENIED),
    **dict.fromkeys(("AuthFailure", "SignatureDoesNotMatch", "InvalidSignatureException"), _NOT_US),
    **dict.fromkeys(("RequestExpired", "RequestTimeTooSkewed", "ExpiredToken", "ExpiredTokenException"), _NOT_US),
    **dict.fromkeys(("InvalidClientTokenId", "UnrecognizedClientException"), _NOT_US),
    **dict.fromkeys(("RequestLimitExceeded", "Throttling", "ThrottlingException"), _THROTTLED),
    **dict.fromkeys(("InvalidRouteTableID.NotFound", "InvalidRouteTableId.Malformed"), _NO_TABLE),
    "RouteLimitExceeded": "{what} has as many routes as it may have: ask AWS to raise the quota (routes per table)",
    "RouteAlreadyExists": "somebody made that route in {what} at the same moment",
}
_OTHER = "{operation} failed on {what}: {code}: {message}"


def explain(error: Exception, operation: str, what: str) -> CloudError:
    """Return it as a line; `operation` is the API's name of the call, `what` what it was about."""
    if isinstance(error, ClientError):
        return CloudError(_explain_refusal(error.response, operation, what))
    return CloudError(_explain_failure(error, operation))


def _explain_refusal(response: Mapping[str, Any], operation: str, what: str) -> str:
    code, message = response["Error"].get("Code", "?"), " ".join(response["Error"].get("Message", "").split())
    line = _LINES.get(code, _OTHER)
    return line.format(code=code, message=message, operation=operation, what=what, skew=_skew(response))


def _skew(response: Mapping[str, Any]) -> str:
    """Return by how much our clock is off, as the answer's date has it, where that is much."""
    date = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        off_s = time.time() - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return ""
    way = "ahead" if off_s > 0 else "behind"
    return f", and our clock is {abs(off_s):.0f} s {way}, which signatures do not stand" if abs(off_s) > SKEW_S else ""


def _explain_failure(error: Exception, operation: str) -> str:
    url = getattr(error, "kwargs", {}).get("endpoint_url") or "AWS"
    if isinstance(error, ProxyConnectionError):
        return f"the proxy that HTTPS_PROXY or HTTP_PROXY names does not let {operation} pass: correct it, or NO_PROXY"
    if isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
        return f"no credentials for AWS: give the instance a role, {_POLICY}; or AWS_ACCESS_KEY_ID and so on"
    if isinstance(error, SSLError):
        return f"{url} has no certificate that this host trusts: is a proxy in the way? ({error})"
    if isinstance(error, EndpointConnectionError | ConnectTimeoutError | ReadTimeoutError):
        return f"{url} does not answer {operation}: may this host reach it, through a NAT gateway or a VPC endpoint?"
    if isinstance(error, ResponseParserError):
        return f"AWS's answer to {operation} makes no sense: is a proxy in the way?"
    # The former's text quotes what could not be sent or read: a token, a proxy's password.
    line = _UNSENT if type(error) is HTTPClientError else "{operation} failed: {message}"
    return line.format(operation=operation, message=" ".join(str(error).split()))
