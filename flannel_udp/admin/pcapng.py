"""Captured packets as a file that Wireshark, tshark and others read: pcapng (draft-ietf-opsawg-pcapng).

An interface for each place; what became of a packet is its comment. Whole blocks only are written, and what a full disk
has cut is taken off again: what stands in the file can be read, whenever it ends.
"""

from __future__ import annotations

import os
import platform
import struct
import time
from collections.abc import Sequence
from contextlib import suppress

from flannel_udp.admin.captured import Captured, Counts, Head
from flannel_udp.admin.show_capture import verdict

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_MAGIC = 0x1A2B3C4D
_RAW_IP = 101
"""LINKTYPE_RAW: an IPv4 or IPv6 header is first."""
_COMMENT = 1
_APPLICATION, _SYSTEM = 4, 3
_NAME, _DESCRIPTION, _RESOLUTION = 2, 3, 9
_FLAGS, _INBOUND, _OUTBOUND = 2, 1, 2
_BEGAN, _ENDED, _RECEIVED, _DROPPED, _DELIVERED = 2, 3, 4, 5, 8
_NANOSECONDS = b"\x09"
DESCRIPTIONS = {
    "out inner": "read from the tunnel device",
    "out outer": "handed to the underlay's socket; outer headers are written by flannel-udp capture",
    "in outer": "received from the underlay's socket; outer headers are written by flannel-udp capture",
    "in inner": "written to the tunnel device",
}


class PcapngWriter:
    """Writes to a descriptor, which stays the caller's; nothing before `flush`. Raises OSError."""

    def __init__(self, fd: int, head: Head, snap_bytes: int, comment: str) -> None:
        self._fd, self._head = fd, head
        self._began_ns = time.time_ns()
        self._n_written = [0] * len(head["places"])
        self._blocks: list[bytes] = []
        self._seekable = False
        with suppress(OSError):  # a pipe
            self._seekable = os.lseek(fd, 0, os.SEEK_CUR) >= 0
        about = [
            (_COMMENT, comment.encode()),
            (_SYSTEM, f"Linux {platform.release()}".encode()),
            (_APPLICATION, f"flannel-udp {head['version']}".encode()),
        ]
        self._add(_SECTION, struct.pack("=IHHq", _MAGIC, 1, 0, -1), about)
        for place in head["places"]:
            options = [(_NAME, place.encode()), (_DESCRIPTION, DESCRIPTIONS.get(place, place).encode())]
            self._add(_INTERFACE, struct.pack("=HHI", _RAW_IP, 0, snap_bytes), [*options, (_RESOLUTION, _NANOSECONDS)])

    def write(self, packet: Captured) -> None:
        """Add a packet."""
        frame, n_bytes = packet.frame()
        place = self._head["places"].index(packet.place)
        self._n_written[place] += 1
        fields = struct.pack("=IIIII", place, *_halves(packet.time_ns), len(frame), n_bytes)
        direction = struct.pack("=I", _OUTBOUND if packet.is_out else _INBOUND)
        comment = verdict(packet, self._head).encode()
        self._add(_PACKET, fields + _padded(frame), [(_COMMENT, comment), (_FLAGS, direction)])

    def finish(self, counts: Counts) -> None:
        """Add what was counted, and write all that is left."""
        now_ns = time.time_ns()
        for place, (taken, lost) in enumerate(zip(counts["taken"], counts["lost"], strict=True)):
            options = [
                (_BEGAN, struct.pack("=II", *_halves(self._began_ns))),
                (_ENDED, struct.pack("=II", *_halves(now_ns))),
                (_RECEIVED, struct.pack("=Q", taken)),
                (_DROPPED, struct.pack("=Q", lost)),
                (_DELIVERED, struct.pack("=Q", self._n_written[place])),
            ]
            self._add(_STATISTICS, struct.pack("=III", place, *_halves(now_ns)), options)
        self.flush()

    def flush(self) -> None:
        """Write what was added. Whatever ends that early, a whole block is the last one in a file."""
        blocks, self._blocks = self._blocks, []
        start = os.lseek(self._fd, 0, os.SEEK_CUR) if self._seekable else 0
        left = memoryview(b"".join(blocks))
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except BaseException:
            if self._seekable:
                self._cut_to_whole(start, blocks)
            raise

    def _cut_to_whole(self, start: int, blocks: Sequence[bytes]) -> None:
        end, whole = os.lseek(self._fd, 0, os.SEEK_CUR), start
        for block in blocks:
            if whole + len(block) > end:
                break
            whole += len(block)
        with suppress(OSError):  # a device
            os.ftruncate(self._fd, whole)

    def _add(self, kind: int, fields: bytes, options: Sequence[tuple[int, bytes]]) -> None:
        """Add a block: its fields, a multiple of four bytes, and its options."""
        body = fields + b"".join(struct.pack("=HH", code, len(value)) + _padded(value) for code, value in options)
        body += bytes(4)  # the end of the options
        n_bytes = len(body) + 12
        self._blocks.append(struct.pack("=II", kind, n_bytes) + body + struct.pack("=I", n_bytes))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _halves(time_ns: int) -> tuple[int, int]:
    return time_ns >> 32, time_ns & 0xFFFFFFFF
