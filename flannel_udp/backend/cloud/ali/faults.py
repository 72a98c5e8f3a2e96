"""What Alibaba and its SDK have against a call, in one line that says what to do."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from darabonba.exceptions import ResponseException
from requests.exceptions import ChunkedEncodingError, ContentDecodingError, ProxyError, SSLError

from flannel_udp.backend.cloud.ali.credentials import POLICY
from flannel_udp.backend.cloud.provider import CloudError

GONE = ("InvalidRouteEntry.NotFound", "InvalidRouteEntryId.NotFound", "InvalidRouteEntry")
THROTTLED = ("Throttling", "Throttling.User", "Throttling.Api")
BUSY = (
    "TaskConflict",
    "IncorrectRouteEntryStatus",
    "IncorrcetRouteEntryStatus",  # as the reference spells it in one place
    "IncorrectStatus.VpcRouteEntry",
    "IncorrectStatus.RouteTableStatus",
    "IncorrectVpcStatus",
    "OperationConflict",
    "OperationFailed.DistibuteLock",
    "LastTokenProcessing",
)
"""A VPC's routes are changed one at a time, whoever asks for it: all hosts that begin together meet these."""

_DENIED = f"no right to vpc:{{operation}} on {{what}}: give it to the instance's RAM role, {POLICY}"
_NOT_US = "Alibaba Cloud does not take our credentials ({code}): correct the RAM role, or the access key"
_CLOCK = "our clock says {now}, and Alibaba Cloud takes no signature that is 15 minutes off ({code}): set the clock"
_THROTTLED = "Alibaba Cloud is asked too often in this account ({code} to {operation})"
_BUSY = "others are changing the VPC's routes, which Alibaba does one at a time ({code} to {operation} on {what})"
_NO_TABLE = "there is no such route table as {what}: correct Backend.RouteTableID ({message})"
_LIMIT = "{what} has as many routes as it may have: raise the quota vpc_quota_route_entrys_num ({code})"
_EXISTS = "somebody made that route in {what} at the same moment"
_RANGE = "{what} takes no such route: does Network overlap a vSwitch, or another range of the VPC? ({code}: {message})"
_OTHER = "{operation} failed on {what}: {code}: {message}"
_LINES = {
    **dict.fromkeys(("Forbidden.RAM", "Forbidden.NoPermission", "Forbidden", "NoPermission"), _DENIED),
    **dict.fromkeys(("InvalidAccessKeyId", "InvalidAccessKeyId.NotFound", "InvalidAccessKeyId.Inactive"), _NOT_US),
    **dict.fromkeys(("SignatureDoesNotMatch", "IncompleteSignature", "MissingSecurityToken"), _NOT_US),
    **dict.fromkeys(("InvalidSecurityToken.Expired", "InvalidSecurityToken.Malformed"), _NOT_US),
    "InvalidSecurityToken.MismatchWithAccessKey": _NOT_US,
    "InvalidTimeStamp.Expired": _CLOCK,
    **dict.fromkeys(THROTTLED, _THROTTLED),
    **dict.fromkeys(BUSY, _BUSY),
    "InvalidRouteTableId.NotFound": _NO_TABLE,
    "QuotaExceeded": _LIMIT,
    **dict.fromkeys(("RouterEntryConflict.Duplicated", "Duplicated.VpcNextHop"), _EXISTS),
    **dict.fromkeys(("InvalidCIDRBlock.Duplicate", "InvalidRouteEntry.Duplicate"), _EXISTS),
    **dict.fromkeys(("InvalidCidrBlock", "InvalidCidrBlock.Overlapped"), _RANGE),
}


def explain(error: Exception, operation: str, what: str, api: str) -> CloudError:
    """Return it as a line; `operation` is the API's name of the call, `what` what it was about, `api` who was asked.

    `error` is what the SDK raised, but for its wrapping.
    """
    if isinstance(error, CloudError):
        return error
    if isinstance(error, ResponseException):
        return CloudError(_explain_refusal(error, operation, what))
    return CloudError(_explain_failure(error, operation, api))


def _explain_refusal(error: ResponseException, operation: str, what: str) -> str:
    code = str(error.code)
    message = " ".join(str((error.data or {}).get("Message") or "").split())
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return _LINES.get(code, _OTHER).format(code=code, message=message, operation=operation, what=what, now=now)


def _explain_failure(error: Exception, operation: str, api: str) -> str:
    cause = error.__context__ or error  # the SDK keeps of it no more than the text
    if isinstance(cause, ProxyError):
        return (
            f"the proxy that HTTPS_PROXY or HTTP_PROXY names does not let {operation} pass: correct it, or unset it: "
            "Alibaba's SDK knows no NO_PROXY"
        )
    if isinstance(cause, SSLError):
        why = " ".join(str(cause).split())
        return f"{api} has no certificate that this host trusts: is a proxy in the way? ({why})"
    if isinstance(cause, json.JSONDecodeError | ChunkedEncodingError | ContentDecodingError):
        return f"the answer of {api} to {operation} makes no sense: is a proxy in the way?"
    if isinstance(cause, OSError):
        return f"{api} does not answer {operation}: may this host reach it, through a NAT gateway or a VPC endpoint?"
    return f"{operation} failed: {' '.join(str(cause).split())}"
