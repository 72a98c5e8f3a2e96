"""The names of measures, and what stands in them: how many streams, how many bytes. The command line reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from flannel_udp.errors import UsageError, did_you_mean

STREAMS_MAX = 128
"""iperf3's own limit."""
WRITE_BYTES = (64, 65_536)
"""How few and how many bytes may go into one write to a TCP socket."""
LARGEST_PAYLOAD = {4: 1400, 6: 1360}
"""By IP version, the bytes in a datagram that every contender's overlay MTU has room for in one packet."""
TCP_BOTH, UDP_BOTH, UDP_OFFERED, RTT, RTT_LOADED = "tcp-both", "udp64-both", "udp64-offered", "rtt", "rtt-loaded"
DEFAULT = ("tcp1", "tcp4", "udp64", RTT)
ALL = (
    *("tcp1", "tcp1-write64", "tcp1-write1k", "tcp1-write64k", "tcp4", TCP_BOTH),
    *("udp64", "udp512", "udp1400", UDP_BOTH, UDP_OFFERED),
    *("udp64-loss-free", "udp512-loss-free", "udp1400-loss-free", RTT, RTT_LOADED),
)
"""What `all` stands for, in the order in which a round takes them; there may be any other number in a name."""
KINDS = ("tcpN", "tcpN-writeBYTES", TCP_BOTH, "udpBYTES", "udpBYTES-loss-free", UDP_BOTH, UDP_OFFERED, RTT, RTT_LOADED)
"""For people."""
_KIB = 1024


class Streams(NamedTuple):
    """TCP streams; `write_bytes` is what goes into one write, 0 where iperf3 has its own way (128 KiB)."""

    n: int
    write_bytes: int


class Datagrams(NamedTuple):
    """Datagrams with so many bytes of payload: at saturation, or the highest rate without loss."""

    payload_bytes: int
    loss_free: bool


def streams_of(name: str) -> Streams | None:
    """Return what a name says of TCP streams; ``None`` for other measures."""
    found = re.fullmatch(r"tcp([1-9][0-9]{0,2})(?:-write([1-9][0-9]{0,4})(k?))?", name)
    if found is None or int(found[1]) > STREAMS_MAX:
        return None
    write_bytes = int(found[2] or 0) * (_KIB if found[3] else 1)
    in_bounds = found[2] is None or WRITE_BYTES[0] <= write_bytes <= WRITE_BYTES[1]
    return Streams(int(found[1]), write_bytes) if in_bounds else None


def datagrams_of(name: str) -> Datagrams | None:
    """Return what a name says of datagrams; ``None`` for other measures."""
    found = re.fullmatch(r"udp([1-9][0-9]{0,3})(-loss-free)?", name)
    if found is None or int(found[1]) > LARGEST_PAYLOAD[4]:
        return None
    return Datagrams(int(found[1]), found[2] is not None)


def needs_blast(name: str) -> bool:
    """Tell whether a measure needs the load generator blast.c, and so a C compiler."""
    return name in (UDP_BOTH, UDP_OFFERED) or datagrams_of(name) is not None


def payload_of(name: str) -> int:
    """Return how many bytes of payload a measure's datagrams have, 0 where there are none."""
    datagrams = datagrams_of(name)
    return datagrams.payload_bytes if datagrams else 64 * needs_blast(name)


def check_payloads(names: Sequence[str], version: int) -> None:
    """Raise `UsageError` for datagrams that not every contender in a lab carries in one packet of this IP version."""
    largest = LARGEST_PAYLOAD[version]
    for name in names:
        if payload_of(name) > largest:
            raise UsageError(
                f"--measures {name}: by IPv{version} not every contender carries more than {largest} bytes in a packet"
            )


def size_name(n_bytes: int) -> str:
    """Return a size as names have it: `64`, `1k`, `64k`."""
    return str(n_bytes) if n_bytes % _KIB else f"{n_bytes // _KIB}k"


def parse_measures(text: str) -> tuple[str, ...]:
    """Return the measures of ``all`` or a comma list, each once, in the order in which a round takes them."""
    names = ALL if text == "all" else tuple(dict.fromkeys(_canonical(word.strip()) for word in text.split(",")))
    return tuple(sorted(names, key=_order))


def _canonical(name: str) -> str:
    if streams := streams_of(name):
        return f"tcp{streams.n}-write{size_name(streams.write_bytes)}" if streams.write_bytes else name
    if name in ALL or datagrams_of(name):
        return name
    bounds = f"N to {STREAMS_MAX}, a write of 64 to 64k, a datagram to {LARGEST_PAYLOAD[4]} bytes"
    raise ValueError(f"{name!r} is not one of {', '.join(KINDS)} ({bounds}), or all{did_you_mean(name, ALL)}")


def _order(name: str) -> tuple[int, Sequence[int]]:
    """Return a key that sorts by kind first, as in `ALL`, and by the numbers in a name then."""
    if streams := streams_of(name):
        return 0, streams
    if datagrams := datagrams_of(name):
        return (5 if datagrams.loss_free else 2), datagrams
    return {TCP_BOTH: 1, UDP_BOTH: 3, UDP_OFFERED: 4, RTT: 6, RTT_LOADED: 7}[name], ()
