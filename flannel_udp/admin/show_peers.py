"""The peers for human eyes, and a line each for scripts: which are meant, in which order, what is said of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import TextIO

from flannel_udp.admin.shapes import PeerRow
from flannel_udp.admin.show import duration
from flannel_udp.admin.table import plain, short_number, table_lines, write_lines
from flannel_udp.errors import FlannelError, UsageError, did_you_mean
from flannel_udp.model import RATE_KEYS, Address, Prefix

# Which ones


def select_peers(peers: Sequence[PeerRow], words: Sequence[str]) -> list[PeerRow]:
    """Return those that one of the words means: a subnet, an address in one, a public IP, a host's name.

    Without words all. Raises `UsageError` for what has a slash and is no network, `FlannelError` where none is meant.
    """
    if not words:
        return list(peers)
    meant = {peer["subnet"] for word in words for peer in _meant(peers, word)}
    if not meant:
        names = [name for peer in peers if (name := peer.get("host"))]
        hint = did_you_mean(words[0], names) if len(words) == 1 else ""
        raise FlannelError(f"none of {len(peers):,} peers is {' or '.join(words)}{hint}")
    return [peer for peer in peers if peer["subnet"] in meant]


def _meant(peers: Sequence[PeerRow], word: str) -> list[PeerRow]:
    if "/" in word:
        try:
            network = ip_network(word, strict=False)
        except ValueError:
            raise UsageError(f"{word!r} is not a network such as 10.1.0.0/16") from None
        return [peer for peer in peers if _overlap(ip_network(peer["subnet"]), network)]
    with suppress(ValueError):
        return _at(peers, ip_address(word))
    return [peer for peer in peers if peer.get("host") == word]


def _overlap(one: Prefix, other: Prefix) -> bool:
    return one.version == other.version and one.overlaps(other)


def _at(peers: Sequence[PeerRow], address: Address) -> list[PeerRow]:
    """Return the host that is dialled there, and that to which packets for this address go: the longest prefix's."""
    found = [peer for peer in peers if ip_address(peer["public_ip"]) == address]
    covering = [peer for peer in peers if address in ip_network(peer["subnet"])]
    return found + sorted(covering, key=lambda peer: -ip_network(peer["subnet"]).prefixlen)[:1]


# In which order


def sort_peers(peers: Sequence[PeerRow], key: str) -> list[PeerRow]:
    """Return them sorted by one of `SORT_KEYS`, in the order given where that is the same; unknown values go last."""
    measure = SORT_KEYS[key]
    known = [(value, number) for number, peer in enumerate(peers) if (value := measure(peer)) is not None]
    order = [number for _, number in sorted(known)]
    return [peers[number] for number in (*order, *sorted(set(range(len(peers))).difference(order)))]


def rate_of(peer: PeerRow, key: str) -> float | None:
    """Return what one of `RATE_KEYS` means of a peer, a second's worth."""
    values = [peer.get(f"{name}_s") for name in RATE_KEYS[key]]
    known = [value for value in values if isinstance(value, float | int)]
    return float(sum(known)) if len(known) == len(values) else None


def _by_rate(key: str) -> Callable[[PeerRow], float | None]:
    return lambda peer: None if (rate := rate_of(peer, key)) is None else -rate


def _total(peer: PeerRow) -> float | None:
    out, in_ = peer.get("bytes_out"), peer.get("bytes_in")
    return None if out is None or in_ is None else -(out + in_)


def _address(peer: PeerRow) -> tuple[int, int]:
    address = ip_address(peer["public_ip"])
    return address.version, int(address)


Measure = Callable[[PeerRow], str | float | tuple[int, int] | None]
SORT_KEYS: Mapping[str, Measure] = {
    "subnet": lambda peer: 0,  # noqa: ARG005 - the agent's order
    "host": lambda peer: peer.get("host"),
    "public-ip": _address,
    "heard": lambda peer: peer.get("heard_ago_s"),
    **{key: _by_rate(key) for key in RATE_KEYS},
    "total": _total,
    "path-mtu": lambda peer: peer.get("path_mtu"),
    "drops": lambda peer: None if (refused := peer.get("refused_out")) is None else -refused,
    "error": lambda peer: peer.get("error_ago_s"),
}
"""What is compared of a peer, the first one has the least; ``None`` where that is not known."""


# For scripts

_ONELINE = (
    *("subnet", "public_ip", "host", "carrier", "health", "heard_ago_s"),
    *("packets_out", "bytes_out", "packets_in", "bytes_in"),
    *("packets_out_s", "bytes_out_s", "packets_in_s", "bytes_in_s"),
    *("path_mtu", "refused_out", "error", "problem"),
)
"""The fields of `PeerRow` in a line for scripts, in this order for ever: new ones go to the end."""


def show_peers_oneline(peers: Sequence[PeerRow], stream: TextIO) -> None:
    """Write a line a peer for scripts: the fields of `_ONELINE` between tabs, ``-`` for what is not known."""
    write_lines(["\t".join(_field(peer.get(name)) for name in _ONELINE) for peer in peers], stream)


def _field(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}" if value < 1e5 else f"{value:.0f}"
    text = str(value)
    return text if text.isprintable() else repr(text)


# For people


def show_peers(peers: Sequence[PeerRow], stream: TextIO, width: int | None = None) -> None:
    """Write one line a peer, in the order given.

    Where such lines are longer than `width` they are a page of names and values each, as `wg show` has them.
    """
    write_lines(peers_lines(peers, width), stream)


def peers_lines(peers: Sequence[PeerRow], width: int | None = None) -> list[str]:
    """Return the lines of `show_peers`."""
    if not peers:
        return ["no peers"]
    rows = [[tell(peer) for tell in _COLUMNS.values()] for peer in peers]
    lines = table_lines(list(_COLUMNS), rows, _NUMBERS)
    if width is None or max(map(len, lines)) <= width:
        return lines
    pages = [[f"peer {peer['subnet']}", *_page(cells)] for peer, cells in zip(peers, rows, strict=True)]
    return [line for page in pages for line in ("", *page)][1:]


def _page(cells: Sequence[str]) -> list[str]:
    named = zip(_COLUMNS, cells, strict=True)
    return [f"  {name}: {cell}" for name, cell in named if cell not in ("", "-") and name != "subnet"]


def ago(seconds: float | None) -> str:
    """Return "3 s ago", "-" for never."""
    return "-" if seconds is None else f"{duration(seconds)} ago"


def count_or_dash(value: float | None) -> str:
    """Return a number in short, "-" for one that nobody counts."""
    return "-" if value is None else short_number(value)


def _echo(peer: PeerRow) -> str:
    if (echo := peer.get("echo")) is None:
        return ""
    return echo["reason"] or f"{echo['round_trip_ms']:g} ms"


_COLUMNS: Mapping[str, Callable[[PeerRow], str]] = {
    "host": lambda peer: plain(peer.get("host") or ""),
    "subnet": lambda peer: peer["subnet"],
    "public ip": lambda peer: peer["public_ip"],
    "datapath": lambda peer: peer.get("carrier") or "-",
    "heard": lambda peer: ago(peer.get("heard_ago_s")),
    "out B/s": lambda peer: count_or_dash(peer.get("bytes_out_s")),
    "out p/s": lambda peer: count_or_dash(peer.get("packets_out_s")),
    "in B/s": lambda peer: count_or_dash(peer.get("bytes_in_s")),
    "in p/s": lambda peer: count_or_dash(peer.get("packets_in_s")),
    "out B": lambda peer: count_or_dash(peer.get("bytes_out")),
    "out p": lambda peer: count_or_dash(peer.get("packets_out")),
    "in B": lambda peer: count_or_dash(peer.get("bytes_in")),
    "in p": lambda peer: count_or_dash(peer.get("packets_in")),
    "drops": lambda peer: count_or_dash(peer.get("refused_out")),
    "echo": _echo,
    "path mtu": lambda peer: str(peer.get("path_mtu") or ""),
    "last error": lambda peer: (
        f"{plain(error)}, {ago(peer.get('error_ago_s'))}" if (error := peer.get("error")) else ""
    ),
    "problem": lambda peer: peer.get("problem") or "",
}
"""What is said of a peer, by heading; "" for nothing: what nobody has anything to say about has no column."""
_NUMBERS = [name for name in _COLUMNS if name.endswith(("/s", " B", " p")) or name in ("heard", "drops")]
