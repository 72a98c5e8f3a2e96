"""Traffic for a demonstration: pings between pods and one TCP transfer, over plain sockets inside the namespaces."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress

from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns
from flannel_udp.lab.node import Node, Pod
from flannel_udp.model import Address

SOCKET_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
ECHO_PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
ECHO_REQUEST = {4: 8, 6: 128}  # RFC 792; RFC 4443 section 4.1
ECHO_REPLY = {4: 0, 6: 129}
_PAYLOAD = bytes(range(56))
_CHUNK_BYTES = 1 << 18
ANSWER_S = 5.0
"""How long an answer may take, which comes within a millisecond: a busy machine may need a second and more."""
_TCP_S = 15.0
"""How long a connection, or a part of what is sent over it, may take beyond the time that is measured."""


def checksum(data: bytes) -> int:
    """Return the Internet checksum, RFC 1071, in host order."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(word for (word,) in struct.iter_unpack("!H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def random_ident() -> int:
    """Return an identifier that no other ping is likely to have just now."""
    return int.from_bytes(os.urandom(2))


def echo_request(ident: int, sequence: int, version: int = 4) -> bytes:
    """Return an ICMP echo request: type, code, checksum, identifier, sequence number (all be16 but the first two).

    That of IPv6 has no checksum: the kernel computes it on a raw socket, for it knows the addresses (RFC 3542 3.1).
    """
    body = struct.pack("!HH", ident, sequence) + _PAYLOAD
    head = struct.pack("!BB", ECHO_REQUEST[version], 0)
    total = checksum(head + b"\0\0" + body) if version == 4 else 0
    return head + struct.pack("!H", total) + body


def ping(
    source: Node, targets: Sequence[Address], timeout_s: float = ANSWER_S, ident: int | None = None
) -> list[float | None]:
    """Send one echo request to each target; return the round-trip times in seconds, ``None`` for a reply that is lost.

    The targets are of one family. All requests leave at once and share the timeout. `ident` is their identifier, by
    which replies are told from others', a random one unless it is given.
    """
    if not targets:
        return []
    version = targets[0].version
    ident = random_ident() if ident is None else ident
    replies: list[float | None] = [None] * len(targets)
    with source.socket(SOCKET_FAMILY[version], socket.SOCK_RAW, ECHO_PROTOCOL[version]) as sock:
        sock.setblocking(False)
        sent = []
        for sequence, target in enumerate(targets):
            sent.append(time.monotonic())
            with suppress(OSError):  # a refusal (no route) is a lost ping like any other
                sock.sendto(echo_request(ident, sequence, version), (str(target), 0))
        deadline = time.monotonic() + timeout_s
        while None in replies and (left_s := deadline - time.monotonic()) > 0:
            if not netns.is_readable(sock.fileno(), left_s):
                break
            packet, sender = sock.recvfrom(2048)
            # A raw socket of IPv4 hands the IP header over, one of IPv6 does not (RFC 3542 section 3).
            reply = packet[(packet[0] & 0x0F) * 4 :] if version == 4 else packet
            kind, _, _, reply_ident, sequence = struct.unpack_from("!BBHHH", reply)
            if (kind, reply_ident) == (ECHO_REPLY[version], ident) and sender[0] == str(targets[sequence]):
                replies[sequence] = time.monotonic() - sent[sequence]
    return replies


def ping_matrix(
    pods: Sequence[Pod], timeout_s: float = ANSWER_S, version: int = 4
) -> dict[tuple[str, str], float | None]:
    """Ping from every pod to every other; return seconds, or ``None`` for a lost one, by the paths of both.

    `version` is the family's IP version. Raises `FlannelError` where a pod has no address of it.
    """
    result = {}
    for source in pods:
        others = [pod for pod in pods if pod is not source]
        addresses = [pod.address(version) for pod in others]
        for target, seconds in zip(others, ping(source, addresses, timeout_s), strict=True):
            result[source.path, target.path] = seconds
    return result


def tcp_rate(source: Node, target: Node, address: Address, duration_s: float = 2.0) -> float:
    """Send over one TCP connection to the target's `address`; return what arrived, in bits a second.

    Raises `FlannelError` when nothing gets through.
    """
    family = SOCKET_FAMILY[address.version]
    with target.socket(family, socket.SOCK_STREAM) as listener:
        listener.settimeout(duration_s + _TCP_S)
        listener.bind((str(address), 0))
        listener.listen(1)
        sender = threading.Thread(target=_send, args=(source, family, listener.getsockname(), duration_s))
        sender.start()
        try:
            connection, _ = listener.accept()
            with closing(connection):
                connection.settimeout(duration_s + _TCP_S)
                started = time.monotonic()
                received = _drain(connection)
                return received * 8 / (time.monotonic() - started)
        except TimeoutError:
            raise FlannelError(f"no TCP connection from {source.path} to {target.path}") from None
        finally:
            sender.join()


def _send(source: Node, family: int, address: tuple[str, int], duration_s: float) -> None:
    chunk = bytes(_CHUNK_BYTES)
    with source.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(duration_s + _TCP_S)
        try:
            sock.connect(address)
            deadline = time.monotonic() + duration_s
            sock.sendall(chunk)  # whatever the time: a busy machine may let all of it pass here
            while time.monotonic() < deadline:
                sock.sendall(chunk)
        except OSError:
            return  # the receiver reports that nothing, or not everything, came


def _drain(connection: socket.socket) -> int:
    buffer = bytearray(_CHUNK_BYTES)
    received = 0
    while n := connection.recv_into(buffer):
        received += n
    return received
