"""Traffic for a demonstration: pings between pods and one TCP transfer, over plain sockets inside the namespaces."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from ipaddress import IPv4Address

from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns
from flannel_udp.lab.node import Node, Pod

ECHO_REPLY, ECHO_REQUEST = 0, 8  # RFC 792
_PAYLOAD = bytes(range(56))
_CHUNK_BYTES = 1 << 18


def checksum(data: bytes) -> int:
    """Return the Internet checksum, RFC 1071, in host order."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(word for (word,) in struct.iter_unpack("!H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(ident: int, sequence: int) -> bytes:
    """Return an ICMP echo request: type, code, checksum, identifier, sequence number (all be16 but the first two)."""
    body = struct.pack("!HH", ident, sequence) + _PAYLOAD
    head = struct.pack("!BB", ECHO_REQUEST, 0)
    return head + struct.pack("!H", checksum(head + b"\0\0" + body)) + body


def ping(source: Node, targets: Sequence[IPv4Address], timeout_s: float = 2.0) -> list[float | None]:
    """Send one echo request to each target; return the round-trip times in seconds, ``None`` for a reply that is lost.

    All requests leave at once and share the timeout.
    """
    ident = int.from_bytes(os.urandom(2))
    replies: list[float | None] = [None] * len(targets)
    with source.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.setblocking(False)
        sent = []
        for sequence, target in enumerate(targets):
            sent.append(time.monotonic())
            with suppress(OSError):  # a refusal (no route) is a lost ping like any other
                sock.sendto(echo_request(ident, sequence), (str(target), 0))
        deadline = time.monotonic() + timeout_s
        while None in replies and (left_s := deadline - time.monotonic()) > 0:
            if not netns.is_readable(sock.fileno(), left_s):
                break
            packet, (sender, _) = sock.recvfrom(2048)
            reply = packet[(packet[0] & 0x0F) * 4 :]
            kind, _, _, reply_ident, sequence = struct.unpack_from("!BBHHH", reply)
            if (kind, reply_ident) == (ECHO_REPLY, ident) and sender == str(targets[sequence]):
                replies[sequence] = time.monotonic() - sent[sequence]
    return replies


def ping_matrix(pods: Sequence[Pod], timeout_s: float = 2.0) -> dict[tuple[str, str], float | None]:
    """Ping from every pod to every other; return seconds, or ``None`` for a lost one, by the paths of both."""
    result = {}
    for source in pods:
        others = [pod for pod in pods if pod is not source]
        for target, seconds in zip(others, ping(source, [pod.ip for pod in others], timeout_s), strict=True):
            result[source.path, target.path] = seconds
    return result


def tcp_rate(source: Node, target: Node, address: IPv4Address, duration_s: float = 2.0) -> float:
    """Send over one TCP connection to the target's `address`; return what arrived, in bits a second.

    Raises `FlannelError` when nothing gets through.
    """
    with target.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.settimeout(duration_s + 5.0)
        listener.bind((str(address), 0))
        listener.listen(1)
        sender = threading.Thread(target=_send, args=(source, listener.getsockname(), duration_s))
        sender.start()
        try:
            connection, _ = listener.accept()
            with closing(connection):
                connection.settimeout(duration_s + 5.0)
                started = time.monotonic()
                received = _drain(connection)
                return received * 8 / (time.monotonic() - started)
        except TimeoutError:
            raise FlannelError(f"no TCP connection from {source.path} to {target.path}") from None
        finally:
            sender.join()


def _send(source: Node, address: tuple[str, int], duration_s: float) -> None:
    chunk = bytes(_CHUNK_BYTES)
    with source.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(duration_s + 3.0)
        try:
            sock.connect(address)
            deadline = time.monotonic() + duration_s
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
