"""A DNS server that a test switches on: until then it answers that it cannot say, or not at all."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import cast

HEADER_BYTES = 12
A = 1
SERVFAIL = 2


class NameServer(asyncio.DatagramProtocol):
    """Answers every question about IPv4 with `address` (RFC 1035 section 4) once it `works`, and has nothing of IPv6.

    One that is `mute` says nothing before.
    """

    def __init__(self, address: IPv4Address, *, mute: bool) -> None:
        self._address = address
        self._mute = mute
        self.works = False
        self.port = 0
        self.asked = 0
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # uvloop's is no subclass
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        self.asked += 1
        if self._mute and not self.works:
            return
        end = data.index(b"\0", HEADER_BYTES) + 1 + 4  # the name, then type and class
        question = data[HEADER_BYTES:end]
        (kind,) = struct.unpack_from(">H", data, end - 4)
        answer = struct.pack(">HHHLH4s", 0xC000 | HEADER_BYTES, A, 1, 5, 4, self._address.packed)
        if not self.works or kind != A:
            answer = b""
        flags = 0x8180 | (0 if self.works else SERVFAIL)
        header = data[:2] + struct.pack(">HHHHH", flags, 1, bool(answer), 0, 0)
        self._transport.sendto(header + question + answer, addr)


@asynccontextmanager
async def name_server(address: str, *, mute: bool = False) -> AsyncIterator[NameServer]:
    """Run one that does not work yet, on a free port of loopback."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(
        lambda: NameServer(IPv4Address(address), mute=mute), local_addr=("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()
