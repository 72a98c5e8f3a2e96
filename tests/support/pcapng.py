"""A strict reader of pcapng, sharing nothing with the writer: whatever is not as the draft says is an error.

draft-ietf-opsawg-pcapng, sections 3 and 4; of one section, little-endian, as this machine writes it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6


@dataclass
class Packet:
    interface: str
    time_ns: int
    data: bytes
    n_bytes: int
    comment: str
    inbound: bool


@dataclass
class File:
    comment: str = ""
    application: str = ""
    interfaces: list[str] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)
    received: dict[str, int] = field(default_factory=dict)
    """By interface, what its statistics say at the end; and so `lost` and `delivered`."""
    lost: dict[str, int] = field(default_factory=dict)
    delivered: dict[str, int] = field(default_factory=dict)


def read_pcapng(path: Path, *, growing: bool = False) -> File:
    """Return what is in a file. AssertionError where it is not right in every byte.

    One that is still `growing` may end amid a block, which is left out: who reads while another process writes sees
    some of the bytes of that write before the others.
    """
    data, found, at = path.read_bytes(), File(), 0
    while at < len(data):
        if growing and (at + 8 > len(data) or at + struct.unpack_from("<I", data, at + 4)[0] > len(data)):
            break
        kind, n_bytes = struct.unpack_from("<II", data, at)
        assert n_bytes % 4 == 0
        assert n_bytes >= 12
        assert at + n_bytes <= len(data), f"the block at {at} is cut off"
        assert struct.unpack_from("<I", data, at + n_bytes - 4) == (n_bytes,)
        assert (at == 0) == (kind == _SECTION)
        _read_block(kind, data[at + 8 : at + n_bytes - 4], found)
        at += n_bytes
    return found


def _read_block(kind: int, body: bytes, found: File) -> None:
    if kind == _SECTION:
        assert struct.unpack_from("<IHHq", body) == (0x1A2B3C4D, 1, 0, -1)
        options = _options(body[16:])
        found.comment, found.application = options[1].decode(), options[4].decode()
    elif kind == _INTERFACE:
        link_type, reserved, snap = struct.unpack_from("<HHI", body)
        assert (link_type, reserved) == (101, 0)
        assert snap > 0
        options = _options(body[8:])
        assert options[9] == b"\x09"
        found.interfaces.append(options[2].decode())
    elif kind == _PACKET:
        interface, high, low, kept, n_bytes = struct.unpack_from("<IIIII", body)
        assert kept <= n_bytes
        padding = body[20 + kept : 20 + kept + -kept % 4]
        assert not any(padding)
        options = _options(body[20 + kept + len(padding) :])
        (flags,) = struct.unpack("<I", options[2])
        packet = body[20 : 20 + kept], n_bytes, options[1].decode(), flags & 3 == 1
        found.packets.append(Packet(found.interfaces[interface], high << 32 | low, *packet))
    else:
        assert kind == _STATISTICS
        (interface,) = struct.unpack_from("<I", body)
        name, options = found.interfaces[interface], _options(body[12:])
        for code, counts in ((4, found.received), (5, found.lost), (8, found.delivered)):
            (counts[name],) = struct.unpack("<Q", options[code])


def _options(data: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    at = 0
    while True:
        code, n_bytes = struct.unpack_from("<HH", data, at)
        at += 4
        if code == 0:
            assert (n_bytes, at) == (0, len(data))
            return options
        assert code not in options
        options[code] = data[at : at + n_bytes]
        assert len(options[code]) == n_bytes
        at += n_bytes + -n_bytes % 4
