"""Whether the overlay's packets go where they have to: two packets a peer are tried.

- one of this host's own, to a pod of the peer
- one of our pods, in through the bridge, to it

and the same for each route, and each rule, to a part of a subnet. A rule for some of our pods is tried with one peer.
One for the host's external address, which answers come from, is tried with one peer and with our own pods.
What the kernel answers is judged; the route or rule behind a wrong answer is looked for afterwards, since on a host
where all is well there is none. What arrives is tried with some peers. That a device's reverse path filter drops it is
no trial of its own: it asks where our pods' answer would go.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from itertools import islice

from flannel_udp.host.links import LOOPBACK_INDEX, stream_addresses
from flannel_udp.host.lookup.forwarding import Settings, is_strict
from flannel_udp.host.lookup.prefixes import Prefixes, destination_of, scan_routes
from flannel_udp.host.lookup.question import (
    REFUSALS,
    RTN_ANYCAST,
    RTN_BROADCAST,
    RTN_LOCAL,
    Answer,
    DeviceNames,
    Entry,
    Question,
    Way,
    Ways,
    ask,
    leads,
    understand,
)
from flannel_udp.host.lookup.rules import PolicyRule, taking
from flannel_udp.host.rtnetlink import RTN_UNICAST, Rtnetlink
from flannel_udp.model import Address, Prefix, lies_in, prefix_of

Interface = IPv4Interface | IPv6Interface

PARTS_MAX = 10_000
"""So many routes and rules to parts of the peers' subnets are tried: more of them are no accident."""
_ARRIVING = 3  # packets that come in are tried for so many peers: what leads them elsewhere does so for all


class Sender(Enum):
    """Whose packet."""

    HOST = "this host's packets"
    PODS = "our pods' packets"
    PEER = "what arrives"


@dataclass(frozen=True, slots=True)
class Pods:
    """Where our pods are."""

    subnet: Prefix
    bridge: int
    """The device that they are behind, by index."""
    address: Address
    """One of theirs, or one that may be."""
    gateway: Interface
    """The bridge's own, with the length of its network."""
    hosts: frozenset[Address] = frozenset()
    """This host's own addresses: what comes in with one of them is refused, and is no pod's."""
    rivals: tuple[tuple[int, Interface], ...] = ()
    """Other devices, by index, and their addresses whose networks have that pod, too: it cannot be behind both."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """What has to hold of the overlay on this host."""

    network: Prefix
    ways: Ways
    pods: Pods | None
    """``None`` before there is a bridge: only the host's own packets are tried."""
    settings: Mapping[int, Settings] = field(default_factory=dict)
    """Of the bridge and of the devices that `ways` names, as far as they are known."""
    external: Address | None = None
    """The external interface's address, as far as it is known."""

    def forwards(self, device: int) -> bool:
        """Tell whether what comes in through the device is forwarded."""
        return device not in self.settings or self.settings[device].forwards

    def is_strict(self, device: int) -> bool:
        """Whether what arrives through the device is dropped unless the way back is the same."""
        return is_strict(self.settings, device)


@dataclass(frozen=True, slots=True)
class Trial:
    """One packet, and where it has to go; ``None``: to some device of this host that leads to no other."""

    sender: Sender
    subnet: Prefix
    """The peer's, ours, or the part of it that a route leads to."""
    way: Way | None
    question: Question


@dataclass(frozen=True, slots=True)
class Diversion:
    """A packet that goes elsewhere, and what leads it there, as far as that is known."""

    trial: Trial
    answer: Answer
    rule: PolicyRule | None = None
    route: Entry | None = None


def find_pods(netlink: Rtnetlink, own: Prefix, device: int) -> Pods | None:
    """Look for the pods' bridge: another one than `device` with an address, whose network is inside our subnet.

    Raises `OSError`.
    """
    addresses = list(stream_addresses(netlink, version=own.version))
    hosts = frozenset(address.address for address in addresses)
    inside = [
        item for item in addresses if item.address in own and own.prefixlen <= item.prefix_len < own.max_prefixlen
    ]
    inside = [item for item in inside if item.index not in (device, LOOPBACK_INDEX)]
    bridges = [item.index for item in inside]
    pod = next((address for address in own.hosts() if address not in hosts), None)
    if not bridges or pod is None:
        return None
    entry = understand(ask(netlink, [Question(pod)])[0])
    used = [hop.device for hop in entry.hops if hop.device in bridges] if isinstance(entry, Entry) else []
    bridge = (used or bridges)[0]
    gateway = next(ip_interface((item.address, item.prefix_len)) for item in inside if item.index == bridge)
    networks = [(item.index, ip_interface((item.address, item.prefix_len))) for item in inside if item.index != bridge]
    return Pods(own, bridge, pod, gateway, hosts, tuple(item for item in networks if pod in item[1].network))


def find_diversions(
    netlink: Rtnetlink,
    overlay: Overlay,
    prefixes: Prefixes,
    rules: Sequence[PolicyRule],
) -> tuple[list[Diversion], bool]:
    """Try all packets; return those that go elsewhere, and whether there was more to try. Raises `OSError`."""
    parts = list(islice(_parts(overlay, prefixes, rules), PARTS_MAX + 1))
    trials = list(_trials(overlay, prefixes, rules, dict(parts[:PARTS_MAX])))
    return make_trials(netlink, overlay, trials, rules), len(parts) > PARTS_MAX


def make_trials(
    netlink: Rtnetlink,
    overlay: Overlay,
    trials: Sequence[Trial],
    rules: Sequence[PolicyRule],
) -> list[Diversion]:
    """Make these trials, as `find_diversions` does. Raises `OSError`."""
    answers, away = ask(netlink, [trial.question for trial in trials]), overlay.ways.devices
    wrong = [
        (trial, understand(answer))
        for trial, answer in zip(trials, answers, strict=True)
        if not (_stays(answer, away) if trial.way is None else leads(answer, trial.way))
    ]
    return list(_explained(netlink, overlay, wrong, rules)) if wrong else []


# What is tried


def _trials(
    overlay: Overlay, prefixes: Prefixes, rules: Sequence[PolicyRule], parts: Mapping[Prefix, Way]
) -> Iterator[Trial]:
    whole = _whole(overlay)
    # Where another route begins at the first address, the last one tells.
    packets = [(subnet, way, subnet[min(1, subnet.num_addresses - 1)]) for subnet, way in whole.items()]
    packets += [(part, way, address) for part, way in parts.items() for address in {part[0], part[-1]}]
    yield from (Trial(Sender.HOST, subnet, way, Question(address)) for subnet, way, address in packets)
    if (pods := overlay.pods) is None:
        return
    if overlay.forwards(pods.bridge):  # else the kernel refuses all of them, whatever its tables say
        for subnet, way, address in packets:
            yield Trial(Sender.PODS, subnet, way, Question(address, pods.address, pods.bridge))
        for subnet, way, address in packets[:1]:
            for source in _sources(rules, pods):
                yield Trial(Sender.PODS, subnet, way, Question(address, source, pods.bridge))
    bridge = Way(pods.bridge)
    for device in filter(overlay.forwards, overlay.ways.devices):
        arriving = (address for _, way, address in packets if way.device == device)
        for address in islice(arriving, _ARRIVING):
            yield Trial(Sender.PEER, pods.subnet, bridge, Question(pods.address, address, device))
    yield Trial(Sender.HOST, pods.subnet, bridge, Question(pods.address))
    if overlay.external in pods.hosts:  # else the kernel refuses a packet from there, whatever its tables say
        yield Trial(Sender.HOST, pods.subnet, bridge, Question(pods.address, overlay.external))
        for subnet, way, address in packets[:1]:
            yield Trial(Sender.HOST, subnet, way, Question(address, overlay.external))
    for part in prefixes.below(pods.subnet)[:PARTS_MAX]:
        if part not in whole:
            yield from (Trial(Sender.HOST, part, None, Question(address)) for address in {part[0], part[-1]})


def _whole(overlay: Overlay) -> dict[Prefix, Way]:
    """Return where packets for each peer's subnet have to go, wider subnets first."""
    ways = overlay.ways
    return {subnet: ways.way(subnet) for subnet in sorted(ways.gateways, key=lambda at: at.prefixlen)}


def _parts(overlay: Overlay, prefixes: Prefixes, rules: Sequence[PolicyRule]) -> Iterator[tuple[Prefix, Way]]:
    """Yield the parts of the peers' subnets that a route or a rule leads to; the smallest subnet says where to."""
    targets = {rule.destination for rule in rules if lies_in(rule.destination, overlay.network)}
    whole, own = _whole(overlay), overlay.pods.subnet if overlay.pods else None
    seen: set[Prefix] = set()
    for subnet, way in reversed(whole.items()):
        for part in (*prefixes.below(subnet), *(target for target in targets if lies_in(target, subnet))):
            if part not in seen and part not in whole and (own is None or not lies_in(part, own)):
                seen.add(part)
                yield part, way


def _sources(rules: Sequence[PolicyRule], pods: Pods) -> set[Address]:
    """Return a pod for each rule for some of our pods."""
    sources: set[Address] = {
        rule.source[0] for rule in rules if rule.source != pods.subnet and lies_in(rule.source, pods.subnet)
    }
    return sources - pods.hosts


def _stays(answer: bytes | int, away: Set[int]) -> bool:
    """Tell whether a packet for a part of our subnet is delivered on this host: to whichever device, or to itself."""
    if isinstance(answer, int):
        return False
    entry = understand(answer)
    if isinstance(entry, int) or entry.type not in (RTN_UNICAST, RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST):
        return False
    return entry.type != RTN_UNICAST or all(hop.gateway is None and hop.device not in away for hop in entry.hops)


# What leads there


def _explained(
    netlink: Rtnetlink,
    overlay: Overlay,
    wrong: Sequence[tuple[Trial, Answer]],
    rules: Sequence[PolicyRule],
) -> Iterator[Diversion]:
    names = DeviceNames(netlink)
    refusing = _refusing(netlink, overlay.network, wrong)
    diverted = {trial.question.destination for trial, _ in wrong if trial.sender is not Sender.PEER}
    for trial, answer in wrong:
        if isinstance(answer, int) and trial.question.source in diverted:
            continue  # the kernel may have refused where it comes from, as packets to there go elsewhere
        iif = names[trial.question.iif or LOOPBACK_INDEX]
        yield Diversion(trial, answer, *culprit(trial.question, iif, answer, rules, refusing))


class Refusing:
    """Routes that refuse packets, for which the kernel answers with an errno only."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries: dict[tuple[int, int, Prefix], Entry] = {}
        for entry in entries:
            self._entries.setdefault((entry.table, entry.type, entry.destination), entry)

    def covering(self, table: int, code: int, address: Address) -> Entry | None:
        """Return the one with the longest prefix of this table that has the address and refuses with this errno."""
        kind = REFUSALS.get(code, 0)
        keys = ((table, kind, prefix_of(address, n)) for n in range(address.max_prefixlen, -1, -1))
        return next((self._entries[key] for key in keys if key in self._entries), None) if self._entries else None


def _refusing(netlink: Rtnetlink, network: Prefix, wrong: Sequence[tuple[Trial, Answer]]) -> Refusing:
    """Read those routes that may have refused one of these packets. Raises `OSError`."""
    refused = [(trial, answer) for trial, answer in wrong if isinstance(answer, int)]
    addresses = sorted({int(trial.question.destination) for trial, _ in refused})

    def concerned(body: bytes) -> bool:
        first, size = destination_of(body), 1 << (network.max_prefixlen - body[1])
        at = bisect_left(addresses, first)
        return at < len(addresses) and addresses[at] < first + size

    kinds = {REFUSALS[answer] for _, answer in refused if answer in REFUSALS}
    bodies = [body for kind in kinds for body in scan_routes(netlink, network, kind=kind) if concerned(body)]
    return Refusing(entry for body in bodies if isinstance(entry := understand(body), Entry))


def culprit(
    question: Question, iif: str, answer: Answer, rules: Sequence[PolicyRule], refusing: Refusing
) -> tuple[PolicyRule | None, Entry | None]:
    """Return the rule and the route that an answer comes from.

    ``None`` for what is not known: several tables, say, that each have nothing to say.
    """
    if isinstance(answer, Entry):
        return _leading(answer, list(taking(rules, question, iif))), answer
    for rule in taking(rules, question, iif):
        if rule.refuses:
            return rule, None
        if (route := refusing.covering(rule.table, answer, question.destination)) is not None:
            return rule, route
    return None, None


def _leading(answer: Entry, rules: Sequence[PolicyRule]) -> PolicyRule | None:
    """Return the rule of these by which an answer was found.

    Where there is a VRF there is a rule for all of them, which does not say which table each one has: it is meant only
    where no other rule leads to the answer's.
    """
    direct = (rule for rule in rules if rule.table == answer.table and rule.shows(answer.destination))
    return next(direct, None) or next((rule for rule in rules if rule.l3mdev), None)
