"""What Tencent's API and its SDK have against a call, in one line that says what to do."""

from __future__ import annotations

from requests.exceptions import ProxyError, SSLError
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException

from flannel_udp.backend.cloud.provider import CloudError
from flannel_udp.backend.cloud.tencent.retrying import THROTTLED, is_one_of

_GONE = "InvalidRouteId.NotFound"
_POLICY = "see examples/cloud/tencent-policy.json"
_DENIED = f"no right to vpc:{{operation}} on {{what}}: give it to the instance's role, {_POLICY}"
_CLOCK = (
    "Tencent Cloud does not take our credentials ({code}): our clock is more than five minutes off, which signatures "
    "do not stand: set it (timedatectl set-ntp true)"
)
_NOT_US = "Tencent Cloud does not take our credentials ({code}): correct the role, or the access key"
_THROTTLED = "Tencent Cloud is asked too often in this account ({code} to {operation})"
_ECMP = tuple(f"UnsupportedOperation.Ecmp{kind}" for kind in ("", "WithUserRoute", "WithCcnRoute"))
_NO_TABLE = "there is no such route table: {what}: correct Backend.RouteTableID ({message})"
_SILENT = "{url} does not answer {operation}: may this host reach it, by a NAT gateway or the address for inside a VPC?"
_LINES = (
    (("UnauthorizedOperation", "AuthFailure.UnauthorizedOperation"), _DENIED),
    (("AuthFailure.SignatureExpire",), _CLOCK),
    (("AuthFailure",), _NOT_US),
    (THROTTLED, _THROTTLED),
    (("LimitExceeded",), "{what} has as many routes as it may have: ask Tencent Cloud to raise the quota ({message})"),
    (("InvalidRouteTableId", "ResourceNotFound"), _NO_TABLE),
    (("InvalidParameterValue.Duplicate",), "somebody made that route in {what} at the same moment"),
    (("InvalidParameterValue.VpcCidrConflict",), "Network overlaps a range of the VPC's: choose another ({message})"),
    (_ECMP, "{what} has another route to our subnet already ({code}): see flannel-udp cloud routes"),
    (("ServerNetworkError",), "{operation} failed at {url}, by an HTTP error: is a proxy in the way? ({message})"),
    (("ConnectionError",), _SILENT),
    (
        ("JSONDecodeError", "KeyError", "TypeError", "ChunkedEncodingError"),  # the SDK's own stumbling over an answer
        "Tencent's answer to {operation} makes no sense: is a proxy in the way?",
    ),
)
_PROXY = "the proxy that HTTPS_PROXY or HTTP_PROXY names does not let {operation} pass: correct it, or NO_PROXY"
_CERTIFICATE = "{url} has no certificate that this host trusts: is a proxy in the way? ({message})"
_OTHER = "{operation} failed on {what}: {code}: {message}"


class GoneError(CloudError):
    """The route that was to be changed is not there any more."""


def explain(error: TencentCloudSDKException, operation: str, what: str, url: str) -> CloudError:
    """Return it as a line; `operation` is the API's name of the call, `what` what it was about, `url` who was asked."""
    message = error.message.decode(errors="replace") if isinstance(error.message, bytes) else str(error.message)
    text = " ".join(message.rpartition("(Caused by ")[2].split())
    text = text if len(text) <= 200 else f"{text[:197]}..."
    line = _line_of(error).format(code=error.code, message=text, operation=operation, what=what, url=url)
    return GoneError(line) if error.code == _GONE else CloudError(line)


def _line_of(error: TencentCloudSDKException) -> str:
    if error.code == "ClientNetworkError":
        cause = error.__context__  # the SDK has nothing else of what requests said
        if isinstance(cause, ProxyError):
            return _PROXY
        return _CERTIFICATE if isinstance(cause, SSLError) else _SILENT
    return next((line for codes, line in _LINES if is_one_of(error.code, codes)), _OTHER)
