"""What etcd's and gRPC's errors mean, and how to say it in one line."""

from __future__ import annotations

import logging
import re

import grpc
import grpc.aio

from flannel_udp.errors import RegistryError

# It logs each text of gRPC's that is no UTF-8 with a traceback; `_details` says what there is to be said.
logging.getLogger("grpc._cython.cygrpc").addFilter(lambda record: "Invalid encoding" not in record.getMessage())


class LeaseNotFound(RegistryError):
    """A request names an etcd lease that has expired or was revoked."""


class NoSpace(RegistryError):
    """etcd is full (its alarm NOSPACE): it takes nothing new, and lets what it has live on."""


class TooLarge(RegistryError):
    """An answer is larger than what we take."""


# With these codes a working etcd has answered; with any other one (server away, hanging, without a leader, not an
# etcd at all) the next endpoint may do better.
_ANSWERS = {
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,
}

# With one of these codes, and yet of one member only: it is new and still learns; it has yet to apply what was written.
_OF_ONE_MEMBER = ("rpc not supported for learner", "too many requests")

# Beside UNAUTHENTICATED ("invalid auth token"), etcd says these: users or roles changed since the token was given out,
# in two texts, the second one also without a code of its own; authentication was turned on since we last asked.
_STALE_TOKEN = ("revision of auth store is old", "auth: revision in header is old", "user name is empty")
_STALE_TOKEN_CODES = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN}

# What gRPC and its OpenSSL say when the handshake fails for good, and what that means. Other words about a handshake
# (timed out, shut down) belong to a server that is just starting or stopping.
_TLS_FAULTS = {
    "certificate has expired": "its certificate has expired, by this host's clock",
    "certificate is not yet valid": "its certificate is not valid yet, by this host's clock",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted: check --etcd-cafile",
    "is not in peer certificate": "its certificate is for another host than the URL names",  # grpcio 1.60
    "Hostname Verification Check failed": "its certificate is for another host than the URL names",  # grpcio 1.85
    "Unwrap failed": "it refuses our certificate: check --etcd-certfile and --etcd-keyfile",
    # With TLS 1.2 and a server of OpenSSL, a proxy, say; gRPC has found its certificate good (grpcio 1.85 says so).
    "ALERT_HANDSHAKE_FAILURE: OK": "it refuses our certificate: check --etcd-certfile and --etcd-keyfile",
    # A server of Go says that to what a client offers to take (grpc/grpc #24252).
    "ALERT_HANDSHAKE_FAILURE": "it has no certificate that gRPC takes: RSA, ECDSA P-256 or P-384; not Ed25519 or P-521",
}

# What the kinds of resolvers say, or gRPC of them.
_NAME_FAULTS = ("errors resolving", "DNS resolution failed", "address lookup failed", "Domain name not found")

# What else tells more to those who know gRPC than to others.
_MEANINGS = dict.fromkeys(_NAME_FAULTS, "its name does not resolve") | {
    "Failed parsing HTTP/2": "it speaks no HTTP/2: is that an etcd, with the v3 API, and http?",
    "Handshake read failed": "it hangs up on TLS: is it http?",
    "WRONG_VERSION_NUMBER": "it answers TLS with something else: is it http?",
}

_MAX_REASON_CHARS = 200


def is_answer(error: grpc.aio.AioRpcError) -> bool:
    """True if asking another endpoint would give the same result."""
    return error.code() in _ANSWERS and not any(text in _details(error) for text in _OF_ONE_MEMBER)


def is_too_large(error: grpc.aio.AioRpcError) -> bool:
    """True if it was our side that refused the answer, for its size."""
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in _details(error)


def is_no_space(error: grpc.aio.AioRpcError) -> bool:
    """True if etcd takes nothing new until somebody has made room."""
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "database space exceeded" in _details(error)


def is_stale_token(error: grpc.aio.AioRpcError) -> bool:
    """True if a new token may help."""
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        return True
    return error.code() in _STALE_TOKEN_CODES and any(text in _details(error) for text in _STALE_TOKEN)


def is_without_users(error: grpc.aio.AioRpcError) -> bool:
    """True if nobody has to log in."""
    return error.code() is grpc.StatusCode.FAILED_PRECONDITION and "authentication is not enabled" in _details(error)


def is_lease_there(error: grpc.aio.AioRpcError) -> bool:
    """True if the id that was asked for is a lease's already."""
    return error.code() is grpc.StatusCode.FAILED_PRECONDITION and "lease already exists" in _details(error)


def is_tls(error: grpc.aio.AioRpcError) -> bool:
    """True if the endpoint could be reached and TLS with it will not work."""
    return any(text in _details(error) for text in _TLS_FAULTS)


def is_name(error: grpc.aio.AioRpcError) -> bool:
    """True if the endpoint's name does not resolve."""
    return any(text in _details(error) for text in _NAME_FAULTS)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Return the cause in a few words on one line."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return "it is no etcd, or has no v3 API"
    for text, meaning in (_TLS_FAULTS | _MEANINGS).items():
        if text in _details(error):
            return meaning
    if re.search("failed to connect .*Socket closed", _details(error)):
        return "it hangs up: is it https?"
    # gRPC wraps the one fact: "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:2379: Failed to
    # connect to remote host: connect: Connection refused (111)".
    text = " ".join(_details(error).split()).removeprefix("etcdserver: ")
    text = re.sub(r"^.*(last error: |Failed to connect to remote host: )", "", text)
    text = re.sub(r"^(connect: |[A-Z_]+: |ipv[46]:\S+: )+", "", text)
    return text[:_MAX_REASON_CHARS] or error.code().name


def _details(error: grpc.aio.AioRpcError) -> str:
    # gRPC may go on with what lies behind its text in memory: after "socket: Too many open files", say.
    return re.split(r"[\0-\x08]", error.details() or "", maxsplit=1)[0]
