"""The policy rules of this host (`ip rule`): which of them leads a packet to which table.

A question carries neither a mark nor ports, so a rule that asks for these takes no part; the kernel's answers know it
no better.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from flannel_udp.host.family import IPV4, family_by_af, family_of
from flannel_udp.host.lookup.question import (
    RT_TABLE_DEFAULT,
    RT_TABLE_LOCAL,
    RTN_BLACKHOLE,
    RTN_PROHIBIT,
    RTN_UNREACHABLE,
    Question,
    table_name,
)
from flannel_udp.host.rtnetlink import RT_TABLE_MAIN, Rtnetlink, attributes
from flannel_udp.model import Prefix

# linux/rtnetlink.h, linux/fib_rules.h
_RTM_NEWRULE, _RTM_GETRULE = 32, 34
_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_GOTO, _FRA_PRIORITY, _FRA_FWMARK = 1, 2, 3, 4, 6, 10
_FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE, _FRA_FWMASK, _FRA_OIFNAME, _FRA_L3MDEV, _FRA_UID_RANGE = 14, 15, 16, 17, 19, 20
_FRA_IP_PROTO, _FRA_SPORT_RANGE, _FRA_DPORT_RANGE = 22, 23, 24
_FR_ACT_TO_TBL, _FR_ACT_GOTO = 1, 2
_FIB_RULE_INVERT = 2

_REFUSES = {RTN_BLACKHOLE: "blackhole", RTN_UNREACHABLE: "unreachable", RTN_PROHIBIT: "prohibit"}
"""FR_ACT_BLACKHOLE and the like have the same numbers."""
_HEAD = struct.Struct("=8BI")  # struct fib_rule_hdr: family, dst_len, src_len, tos, table, two reserved, action; flags
_U32 = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One rule; what it does not ask for is empty."""

    priority: int
    table: int = 0
    action: int = _FR_ACT_TO_TBL
    source: Prefix = IPV4.anywhere
    destination: Prefix = IPV4.anywhere
    iif: str = ""
    goto: int = 0
    l3mdev: bool = False
    suppress_prefix_len: int | None = None
    inverted: bool = False
    mark: tuple[int, int] | None = None
    """Value and mask."""
    more: tuple[str, ...] = ()
    """What else it asks for, in `ip rule`'s words, such as ports: a plain packet has none of it."""

    @property
    def refuses(self) -> bool:
        """Whether it drops packets by itself."""
        return self.action in _REFUSES

    def takes(self, question: Question, iif: str) -> bool:
        """Tell whether such a packet, unmarked, meets the selector; `iif` is ``lo`` for the host's own."""
        source = not self.source.prefixlen or (question.source is not None and question.source in self.source)
        marked = self.mark is None or self.mark[0] & self.mark[1] == 0
        fits = source and question.destination in self.destination and self.iif in ("", iif) and marked
        return (fits and not self.more) is not self.inverted

    def shows(self, destination: Prefix) -> bool:
        """Tell whether a route found by it counts: it may pass over those of a prefix up to some length."""
        return self.suppress_prefix_len is None or destination.prefixlen > self.suppress_prefix_len

    @property
    def leaves_main(self) -> bool:
        """Whether it refuses packets, or leads them to a table that not every host asks."""
        return self.refuses or self.l3mdev or self.table not in (0, RT_TABLE_MAIN, RT_TABLE_LOCAL, RT_TABLE_DEFAULT)

    @property
    def picks(self) -> bool:
        """Whether it is for packets with something that no question carries: a mark, a port."""
        marked = self.mark is not None and self.mark[0] & self.mark[1] != 0
        return not self.inverted and (marked or bool(self.more))

    @property
    def spelled(self) -> str:
        """What `ip rule del` takes behind the priority."""
        words = ["not"] if self.inverted else []
        words.append(f"from {self.source if self.source.prefixlen else 'all'}")
        if self.destination.prefixlen:
            words.append(f"to {self.destination}")
        if self.iif:
            words.append(f"iif {self.iif}")
        if self.mark is not None:
            words.append(f"fwmark {self.mark[0]:#x}/{self.mark[1]:#x}")
        words += self.more
        if self.refuses:
            words.append(_REFUSES[self.action])
        elif self.l3mdev:
            words.append("l3mdev")
        elif self.action == _FR_ACT_GOTO:
            words.append(f"goto {self.goto}")
        else:
            words.append(f"lookup {table_name(self.table)}")
        return " ".join(words)

    def __str__(self) -> str:
        """Return it as `ip rule` shows it."""
        return f"{self.priority}: {self.spelled}"


_NO_POLICY_ROUTING = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
"""Of no IP version (rtnetlink_rcv_msg in net/core/rtnetlink.c), or not of this one (fib_nl_dumprule in
net/core/fib_rules.c): a kernel without CONFIG_IP_MULTIPLE_TABLES or CONFIG_IPV6_MULTIPLE_TABLES."""
_WITHOUT_POLICY_ROUTING = (PolicyRule(0, RT_TABLE_LOCAL), PolicyRule(32_766, RT_TABLE_MAIN))
"""What such a kernel does with every packet, as the rules that do so; no other table has it."""


def read_rules(netlink: Rtnetlink, version: int = 4) -> list[PolicyRule]:
    """Return the rules of one IP version in the order in which they are asked. Raises `OSError`."""
    head = _HEAD.pack(family_of(version).af, 0, 0, 0, 0, 0, 0, 0, 0)
    try:
        return [_parse(body) for body in netlink.dump(_RTM_GETRULE, head, _RTM_NEWRULE)]
    except OSError as error:
        if error.errno not in _NO_POLICY_ROUTING:
            raise
        return list(_WITHOUT_POLICY_ROUTING)


def tables_of(rules: Iterable[PolicyRule]) -> set[int]:
    """Return the tables that routes of interest may stand in."""
    return {RT_TABLE_MAIN, RT_TABLE_DEFAULT, RT_TABLE_LOCAL} | {rule.table for rule in rules if rule.table}


def taking(rules: Sequence[PolicyRule], question: Question, iif: str) -> Iterator[PolicyRule]:
    """Yield the rules that such a packet meets, in order, until one refuses it."""
    skip_below = 0
    for rule in rules:
        if rule.priority < skip_below or not rule.takes(question, iif):
            continue
        if rule.action == _FR_ACT_GOTO:
            skip_below = rule.goto
            continue
        yield rule
        if rule.refuses:
            return


def _parse(body: bytes) -> PolicyRule:
    af, destination_len, source_len, tos, table, _, _, action, flags = _HEAD.unpack_from(body)
    found, family = dict(attributes(body, _HEAD.size)), family_by_af(af)
    more = [f"tos {tos:#x}"] if tos else []
    if _FRA_OIFNAME in found:
        more.append(f"oif {_text(found[_FRA_OIFNAME])}")
    if _FRA_IP_PROTO in found:
        more.append(f"ipproto {found[_FRA_IP_PROTO][0]}")
    for kind, word in ((_FRA_SPORT_RANGE, "sport"), (_FRA_DPORT_RANGE, "dport")):
        if kind in found:
            first, last = struct.unpack_from("=HH", found[kind])
            more.append(f"{word} {first}" if first == last else f"{word} {first}-{last}")
    if _FRA_UID_RANGE in found:
        more.append("uidrange {}-{}".format(*struct.unpack_from("=II", found[_FRA_UID_RANGE])))
    mark = _number(found.get(_FRA_FWMARK)) if _FRA_FWMARK in found or _FRA_FWMASK in found else None
    suppress = found.get(_FRA_SUPPRESS_PREFIXLEN)
    return PolicyRule(
        priority=_number(found.get(_FRA_PRIORITY)),
        table=_number(found[_FRA_TABLE]) if _FRA_TABLE in found else table,
        action=action,
        source=family.prefix(found.get(_FRA_SRC), source_len),
        destination=family.prefix(found.get(_FRA_DST), destination_len),
        iif=_text(found.get(_FRA_IIFNAME, b"")),
        goto=_number(found.get(_FRA_GOTO)),
        l3mdev=found.get(_FRA_L3MDEV, b"\0") != b"\0",
        suppress_prefix_len=None if suppress is None or suppress == b"\xff" * 4 else _number(suppress),
        inverted=bool(flags & _FIB_RULE_INVERT),
        mark=None if mark is None else (mark, _number(found.get(_FRA_FWMASK, b"\xff" * 4))),
        more=tuple(more),
    )


def _number(value: bytes | None) -> int:
    return 0 if value is None else int(_U32.unpack(value)[0])


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
