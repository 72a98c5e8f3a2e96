"""ICMP echoes of our own: does a kernel answer, how long does that take, how large may they be."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from time import monotonic

from flannel_udp.errors import FlannelError
from flannel_udp.host.echo_wire import COOKIE_BYTES, WIRES
from flannel_udp.model import Address

_REFUSED = "our kernel: "
NO_KEY = f"{_REFUSED}{os.strerror(errno.ENOKEY).lower()}"
"""`EchoAnswer.refused` where WireGuard has no peer with the address in its AllowedIPs."""
ECHO_MIN_BYTES = WIRES[4].headers_bytes + COOKIE_BYTES
"""The shortest echo by IPv4, with its headers."""

_COOKIE = struct.Struct("!8sQ")  # of this process, of this echo
_BUFFER_BYTES = 256 << 10
_READS_MAX = 64  # a wake-up: other work waits meanwhile
_MESSAGE_BYTES = 128  # what is said of an echo, its cookie in it


@dataclass(frozen=True, slots=True)
class EchoAnswer:
    """What came of an echo: an answer, or why there is none; nothing of these: nobody said anything in time."""

    round_trip_s: float | None = None
    mtu: int | None = None
    """It was too large: what would fit, as a router or our kernel says; 0 where it does not say."""
    refused: str | None = None
    """Why our kernel did not send it."""
    unreachable: str | None = None
    """Somebody, our own kernel perhaps, said that it cannot arrive."""
    said_by: Address | None = None
    """Who said that."""
    link_only: bool = False
    """The host answered, and to nothing that has pods' addresses, see `EchoRoute.pods`."""

    @property
    def answered(self) -> bool:
        """Whether a kernel answered."""
        return self.round_trip_s is not None


class Echoes:
    """Sends echoes with `identifier`, and tells the answers apart by cookies; on the running loop, until closed.

    What does not bear the beginning of a cookie of ours the kernel drops, so that forged answers wake nobody.

    Our kernel sends an echo as large as it is, uncut, whatever it knows of the path (IP_PMTUDISC_PROBE). `sent(target)`
    is called for each that left. Raises `FlannelError` without the right to open raw sockets; a kernel without IPv6, or
    no socket for it just now, costs echoes by IPv6 only, each of which tries again.
    """

    def __init__(self, identifier: int) -> None:
        self._identifier = identifier
        self._secret = os.urandom(8)
        self._number = 0
        self._waiting: dict[bytes, tuple[float, asyncio.Future[EchoAnswer]]] = {}
        self._loop = asyncio.get_running_loop()
        self._raw: dict[int, socket.socket] = {}
        self._open(4)
        with suppress(FlannelError):  # `ask` says why
            self._open(6)

    def _open(self, version: int) -> socket.socket:
        raw = self._raw[version] = WIRES[version].open(self._identifier, self._secret)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._loop.add_reader(raw, partial(self._read, version))
        return raw

    def close(self) -> None:
        """Stop listening and close the sockets; who waits is told that there was no answer."""
        for raw in self._raw.values():
            self._loop.remove_reader(raw)
            raw.close()
        for _, answer in self._waiting.values():
            if not answer.done():
                answer.set_result(EchoAnswer())

    async def ask(
        self,
        target: Address,
        source: Address | None,
        n_bytes: int,
        timeout_s: float,
        sent: Callable[[], object] = lambda: None,
        *,
        hops: int | None = None,
    ) -> EchoAnswer:
        """Send one echo of `n_bytes`, all headers included, and return what comes of it in time.

        `sent()` is called once it has left; `hops` is its TTL, ``None``: the usual one.
        """
        self._number += 1
        cookie = _COOKIE.pack(self._secret, self._number)
        answer: asyncio.Future[EchoAnswer] = self._loop.create_future()
        self._waiting[cookie] = monotonic(), answer
        try:
            self._send(target, source, n_bytes, cookie, hops)
            sent()
            async with asyncio.timeout(timeout_s):  # wait_for loses a cancellation before Python 3.12
                return await answer
        except TimeoutError:
            return EchoAnswer()
        except FlannelError as failed:
            return EchoAnswer(refused=str(failed))
        except OSError as failed:
            if failed.errno == errno.EMSGSIZE:
                return EchoAnswer(mtu=0)
            return EchoAnswer(refused=f"{_REFUSED}{(failed.strerror or str(failed)).lower()}")
        finally:
            del self._waiting[cookie]

    def _send(self, target: Address, source: Address | None, n_bytes: int, cookie: bytes, hops: int | None) -> None:
        wire, raw = WIRES[target.version], self._raw.get(target.version) or self._open(target.version)
        padding = bytes(max(0, n_bytes - wire.headers_bytes - len(cookie)))
        message = wire.message(self._identifier, self._number, cookie + padding)
        raw.sendmsg([message], wire.control(source, hops), 0, (str(target), 0))

    def _read(self, version: int) -> None:
        for _ in range(_READS_MAX):
            try:
                datagram, sender = self._raw[version].recvfrom(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            self._take(version, datagram, sender[0].partition("%")[0])

    def _take(self, version: int, datagram: bytes, said_by: str) -> None:
        """Tell whoever waits for what a datagram says; the filter has seen that it concerns an echo of ours."""
        heard = WIRES[version].read(datagram)
        started_s, answer = self._waiting.get(heard.cookie, (0.0, None))
        if answer is None or answer.done():
            return
        if heard.answered:
            answer.set_result(EchoAnswer(round_trip_s=monotonic() - started_s))
        elif heard.mtu is not None:
            answer.set_result(EchoAnswer(mtu=heard.mtu))
        else:
            answer.set_result(EchoAnswer(unreachable=f"unreachable, says {said_by}", said_by=ip_address(said_by)))
