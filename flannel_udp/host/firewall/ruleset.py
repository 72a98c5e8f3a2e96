"""What a chain of packet filter rules does with one packet, as far as that can be told from the rules' text. Pure.

A condition that is not understood is a doubt, and both ways are followed: only what is dropped on all ways is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from ipaddress import ip_network
from typing import NamedTuple

from flannel_udp.model import Address, Prefix

ACCEPTED, GOES_ON, RETURNS = "accepted", "goes on", "returns"
"""What a chain may do with a packet beside dropping it, which is told by the rule's text."""
HANDED_OVER, ANYTHING = "handed over", "anything"
"""What else a rule may do: give it to a program or a proxy, which accepts or drops it; nobody here knows what."""


class Packet(NamedTuple):
    """The first packet of a flow; ``None`` or empty: it may be any."""

    iif: str
    oif: str = ""
    protocol: str | None = None
    port: int | None = None
    source: Address | None = None
    destination: Address | None = None
    local: bool = False
    """Whether it is for this host itself."""
    version: int = 4
    """IP version."""
    outside: Prefix | None = None
    """Where an address that may be any is not, for sure."""
    from_bridge: str = ""
    to_bridge: str = ""
    """By which bridge a frame comes, or goes, that has this packet: what a bridge's own hooks see of it."""

    @property
    def bridged(self) -> bool:
        """Whether it is met there, and not by IP's hooks."""
        return bool(self.from_bridge or self.to_bridge)


class Rule(NamedTuple):
    """A rule as one packet meets it: whether it is for it (``None``: a doubt), and what it does."""

    matches: bool | None
    does: str
    """`ACCEPTED`, `GOES_ON`, `RETURNS`, `HANDED_OVER`, `ANYTHING`, ``drop``, or ``jump`` and ``goto``, to `target`."""
    target: str
    text: str


Chains = Mapping[str, Sequence[Rule]]


class Fate(NamedTuple):
    """What becomes of the packet: what drops it whichever way it takes, or else what may, which cannot be told."""

    dropped_by: str | None = None
    doubts: tuple[str, ...] = ()

    def doubted(self) -> Fate:
        """Return what it is where nobody can tell whether the packet meets that chain."""
        return self if self.dropped_by is None else Fate(doubts=(*self.doubts, self.dropped_by))


def fate_in(chains: Chains, chain: str, policy: str) -> Fate:
    """Return what becomes of the packet in a base chain."""
    found = _outcomes(chains, chain, frozenset())
    if found & {GOES_ON, RETURNS}:
        found = found - {GOES_ON, RETURNS} | {ACCEPTED if policy.lower() == "accept" else f"the policy of {chain}"}
    drops = sorted(found - {ACCEPTED})
    return Fate(doubts=tuple(drops)) if ACCEPTED in found else Fate(drops[0])


def _outcomes(chains: Chains, name: str, above: frozenset[str]) -> set[str]:
    found: set[str] = set()
    for rule in chains.get(name, ()):
        if rule.matches is False:
            continue
        if rule.does in ("jump", "goto") and rule.target not in above:
            one = _outcomes(chains, rule.target, above | {name})
            if one & {GOES_ON, RETURNS}:
                one = one - {GOES_ON, RETURNS} | {GOES_ON if rule.does == "jump" else RETURNS}
        elif rule.does in (HANDED_OVER, ANYTHING):
            one = {ACCEPTED, rule.text} | ({GOES_ON} if rule.does == ANYTHING else set())
        else:
            one = {rule.text if rule.does == "drop" else rule.does}
        found |= one - {GOES_ON}
        if rule.matches and GOES_ON not in one:
            return found
    return found | {GOES_ON}


def both(conditions: Iterable[bool | None]) -> bool | None:
    """Return whether all hold: one that does not decides, then a doubt."""
    known = list(conditions)
    if False in known:
        return False
    return None if None in known else True


# iptables -S

_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')
"""One word of a rule: a comment with spaces, say, stands in quotation marks. (shlex takes ten times as long.)"""


def parse_iptables(listing: str, packet: Packet) -> tuple[Chains, Mapping[str, str]]:
    """Return the rules of each chain as the packet meets them, and the policies, from the output of `iptables -S`."""
    chains: dict[str, list[Rule]] = {}
    policies: dict[str, str] = {}
    for line in listing.splitlines():
        words = _WORD.findall(line)
        if words[:1] == ["-P"]:
            policies[words[1]] = words[2]
        if words[:1] in (["-P"], ["-N"]):
            chains[words[1]] = []
        elif words[:1] == ["-A"]:
            chains.setdefault(words[1], []).append(_iptables_rule(words[2:], line, packet, chains))
    return chains, policies


# iptables-extensions(8), and what each module of the kernel returns.
_TARGETS = {"ACCEPT": ACCEPTED, "DROP": "drop", "REJECT": "drop", "RETURN": RETURNS}
_TARGETS |= dict.fromkeys(("NFQUEUE", "QUEUE", "SYNPROXY", "TPROXY"), HANDED_OVER)
_TARGETS |= dict.fromkeys(("LOG", "NFLOG", "ULOG", "AUDIT", "TRACE", "LED", "RATEEST", "IDLETIMER", "TEE"), GOES_ON)
_TARGETS |= dict.fromkeys(("MARK", "CONNMARK", "SECMARK", "CONNSECMARK", "HMARK", "CLASSIFY", "SET"), GOES_ON)
_TARGETS |= dict.fromkeys(("CT", "NOTRACK", "FLOWOFFLOAD", "TCPMSS", "TCPOPTSTRIP", "CHECKSUM"), GOES_ON)
_TARGETS |= dict.fromkeys(("TOS", "DSCP", "ECN", "TTL", "HL", "SNPT", "DNPT"), GOES_ON)
_CONDITIONS = {"socket", "rpfilter", "eui64", "ah", "frag", "rt", "dst", "hbh"}
"""Matches that are conditions without any option."""


def _iptables_rule(words: Sequence[str], text: str, packet: Packet, chains: Container[str]) -> Rule:
    conditions: list[bool | None] = []
    does, target, negated, index = GOES_ON, "", False, 0
    while index < len(words):
        word, value = words[index], words[index + 1] if index + 1 < len(words) else ""
        index += 1
        if word == "!":
            negated = True
            continue
        if word in ("-j", "-g"):
            goes = {"-j": "jump", "-g": "goto"}[word]
            does, target = (goes if value in chains else _TARGETS.get(value, ANYTHING)), value
            break  # what follows are the target's options
        holds = _iptables_condition(word, value, packet)
        conditions.append(None if holds is None else holds is not negated)
        negated = False
        while index < len(words) and not words[index].startswith("-") and words[index] != "!":
            index += 1
    return Rule(both(conditions), does, target, text)


def _iptables_condition(word: str, value: str, packet: Packet) -> bool | None:
    holds: bool | None = None
    match word:
        case "-m":
            holds = None if value in _CONDITIONS else True
        case "--comment":
            holds = True
        case "-i":
            holds = is_device(value.replace("+", "*"), packet.iif)
        case "-o":
            holds = is_device(value.replace("+", "*"), packet.oif)
        case "-p":
            holds = value == "all" or is_protocol([value], packet)
        case "-s":
            holds = is_inside([value], packet.source, packet.outside)
        case "-d":
            holds = is_inside([value], packet.destination, packet.outside)
        case "--dport" | "--dports":
            holds = is_port([_range(part) for part in value.split(",")], packet)
        case "--ctstate" | "--state":
            holds = "NEW" in value.split(",")
        case "--dst-type":
            holds = packet.local if value == "LOCAL" else (False if value in ("MULTICAST", "BROADCAST") else None)
    return holds


def _range(text: str) -> tuple[int, int] | None:
    first, _, last = text.partition(":")
    try:
        return int(first or 0), int(last or (65_535 if ":" in text else first))
    except ValueError:
        return None  # a service's name


# Conditions of either dialect


def is_device(pattern: str, name: str) -> bool | None:
    """Tell whether the packet's device is meant; a * at the end stands for anything."""
    if not name:
        return None
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


_PROTOCOLS = {"1": "icmp", "4": "ipip", "ipencap": "ipip", "ipv4": "ipip", "6": "tcp", "17": "udp"} | dict.fromkeys(
    ("58", "ipv6-icmp", "icmp6"), "icmpv6"
)
"""What else a protocol is called: by its number, or by /etc/protocols."""


def is_protocol(names: Iterable[str], packet: Packet) -> bool | None:
    """Tell whether the packet's protocol is one of these, names or numbers."""
    if packet.protocol is None:
        return None
    return packet.protocol in {_PROTOCOLS.get(name, name) for name in names}


def is_inside(networks: Iterable[str], address: Address | None, outside: Prefix | None = None) -> bool | None:
    """Tell whether the address is in one of these; `outside`: where one that may be any is not."""
    try:
        known = [ip_network(network, strict=False) for network in networks]
    except ValueError:
        return None
    if address is not None:
        return any(address in network for network in known)
    if outside is not None and all(
        network.network_address in outside and network.prefixlen >= outside.prefixlen for network in known
    ):
        return False
    return None


def is_port(ranges: Sequence[tuple[int, int] | None], packet: Packet) -> bool | None:
    """Tell whether the packet's destination port is in one of these ranges."""
    if packet.port is None or not all(ranges):
        return None
    return any(found is not None and found[0] <= packet.port <= found[1] for found in ranges)
