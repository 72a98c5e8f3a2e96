"""What etcd's and gRPC's errors mean, and how to say it in one line."""

from __future__ import annotations

import re

import grpc
import grpc.aio

from flannel_udp.errors import RegistryError


class LeaseNotFound(RegistryError):
    """A request names an etcd lease that has expired or was revoked."""


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

# Beside UNAUTHENTICATED ("invalid auth token"), etcd says these with INVALID_ARGUMENT: roles changed since the token
# was given out; authentication was turned on since we last asked.
_STALE_TOKEN = ("auth: revision", "user name is empty")

# What gRPC and its OpenSSL say when the handshake fails for good, and what that means. Other words about a handshake
# (timed out, shut down) belong to a server that is just starting or stopping.
_TLS_FAULTS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted: check --etcd-cafile",
    "is not in peer certificate": "its certificate is for another host than the URL names",  # grpcio 1.60
    "Hostname Verification Check failed": "its certificate is for another host than the URL names",  # grpcio 1.85
    "Unwrap failed": "it refuses our certificate: check --etcd-certfile and --etcd-keyfile",
}

_MAX_REASON_CHARS = 200


def is_answer(error: grpc.aio.AioRpcError) -> bool:
    """True if asking another endpoint would give the same result."""
    return error.code() in _ANSWERS


def is_stale_token(error: grpc.aio.AioRpcError) -> bool:
    """True if a new token may help."""
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        return True
    return error.code() is grpc.StatusCode.INVALID_ARGUMENT and any(text in _details(error) for text in _STALE_TOKEN)


def is_tls(error: grpc.aio.AioRpcError) -> bool:
    """True if the endpoint could be reached and TLS with it will not work."""
    return any(text in _details(error) for text in _TLS_FAULTS)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Return the cause in a few words on one line."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    for text, meaning in _TLS_FAULTS.items():
        if text in _details(error):
            return meaning
    # gRPC wraps the one fact: "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:2379: Failed to
    # connect to remote host: connect: Connection refused (111)".
    text = " ".join(_details(error).split()).removeprefix("etcdserver: ")
    text = re.sub(r"^.*(last error: |Failed to connect to remote host: )", "", text)
    text = re.sub(r"^(connect: |[A-Z_]+: |ipv[46]:\S+: )+", "", text)
    return text[:_MAX_REASON_CHARS] or error.code().name


def _details(error: grpc.aio.AioRpcError) -> str:
    return error.details() or ""
