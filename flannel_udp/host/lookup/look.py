"""One look at what the kernel does with overlay packets; what it finds wrong is in `Findings`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from flannel_udp.host.family import IPV6, family_of
from flannel_udp.host.lookup.cut_off import Need, find_cut_off, gateways
from flannel_udp.host.lookup.diversions import (
    PARTS_MAX,
    Overlay,
    Sender,
    Trial,
    find_diversions,
    find_pods,
    make_trials,
)
from flannel_udp.host.lookup.forwarding import Inlet, judge_forwarding, lost_advertisements, read_settings
from flannel_udp.host.lookup.pods_bridge import PodsBridge
from flannel_udp.host.lookup.prefixes import Prefixes
from flannel_udp.host.lookup.question import DeviceNames, Question, Way, Ways, ask, understand
from flannel_udp.host.lookup.rules import read_rules, tables_of
from flannel_udp.host.lookup.verdicts import describe, judge_diversions, judge_rivals
from flannel_udp.host.rtnetlink import Rtnetlink, open_rtnetlink
from flannel_udp.model import Address, Degradation, Prefix, prefix_of

CUT_SHORT = (
    f"more than {PARTS_MAX:,} routes and rules lead to parts of the peers' subnets: "
    f"where packets go is asked for {PARTS_MAX:,} of them only"
)


@dataclass(frozen=True, slots=True)
class Findings:
    """What is wrong, by question."""

    forwarding: tuple[Degradation, ...] = ()
    routes: tuple[Degradation, ...] = ()
    cut_off: tuple[Degradation, ...] = ()
    cut_short: bool = field(default=False, compare=False)
    """More routes lead to parts of the peers' subnets than are tried."""


class Look:
    """Looks at the host again and again; all methods block and are called by one thread at a time."""

    def __init__(self, network: Prefix) -> None:
        self._network = network
        self._prefixes = Prefixes(network)
        self._bridge = PodsBridge()
        self._tables: set[int] | None = None  # that `_prefixes` were read from; ``None``: read them anew

    def note_routes(self, routes: Sequence[tuple[int, int]] | None) -> None:
        """Note the destinations of new routes; ``None``: there were some that nobody knows."""
        if routes is None:
            self._tables = None
            return
        for address, prefix_len in routes:
            self._prefixes.note(address, prefix_len)

    def look(self, own: Prefix | None, ways: Ways, needs: Sequence[Need], external: Address | None) -> Findings:
        """Ask the kernel everything. Raises `FlannelError`.

        `own` is our subnet, `needs` what the agent itself talks to, `external` the external interface's address.
        """
        with open_rtnetlink("asking what the kernel does with overlay packets") as netlink:
            return self._look(netlink, own, ways, needs, external)

    def _look(
        self,
        netlink: Rtnetlink,
        own: Prefix | None,
        ways: Ways,
        needs: Sequence[Need],
        external: Address | None,
    ) -> Findings:
        family = family_of(self._network)
        rules, names = read_rules(netlink, family.version), DeviceNames(netlink)
        tables = tables_of(rules)
        if tables != self._tables or self._prefixes.outdated:
            self._prefixes.read(netlink, tables)
            self._tables = tables
        pods, missing = self._bridge.look(netlink, own, ways.device)
        inlets = [Inlet(index, names[index], "what other hosts send to our pods") for index in sorted(ways.devices)]
        if pods is not None:
            inlets.append(Inlet(pods.bridge, names[pods.bridge], "what our pods send to other hosts"))
        settings = read_settings(netlink, [inlet.device for inlet in inlets], family.version)
        advertised = lost_advertisements(netlink) if family is IPV6 else []
        overlay = Overlay(self._network, ways, pods, settings, external)
        diversions, cut_short = find_diversions(netlink, overlay, self._prefixes, rules)
        needs = [*needs, *gateways(netlink, needs, family)]
        return Findings(
            tuple(judge_forwarding(settings, inlets, family, advertised)),
            (*missing, *judge_rivals(pods, names), *judge_diversions(diversions, overlay, names)),
            tuple(find_cut_off(netlink, self._network, ways, needs)),
            cut_short,
        )


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """What the kernel does with packets for one address, in words."""

    host: str
    """With this host's."""
    pods: str | None
    """With our pods', where there is a bridge."""
    fault: str | None
    """What leads them elsewhere than they have to go."""


def look_up(address: Address, network: Prefix, own: Prefix | None, ways: Ways) -> KernelRoute:
    """Ask what the kernel does with packets for one address. Raises `FlannelError`."""
    with open_rtnetlink(f"asking the kernel about {address}") as netlink:
        return _look_up(netlink, address, network, own, ways)


def _look_up(netlink: Rtnetlink, address: Address, network: Prefix, own: Prefix | None, ways: Ways) -> KernelRoute:
    rules, names = read_rules(netlink, network.version), DeviceNames(netlink)
    pods = None if own is None else find_pods(netlink, own, ways.device)
    overlay = Overlay(network, ways, pods, read_settings(netlink, ways.devices, network.version))
    packets = [(Sender.HOST, Question(address))]
    if pods is not None and address not in pods.subnet:
        packets.append((Sender.PODS, Question(address, pods.address, pods.bridge)))
    answers = [understand(answer) for answer in ask(netlink, [question for _, question in packets])]
    fault = None
    if (own is None or address not in own) and (way := _way_to(address, ways)) is not None:
        trials = [
            Trial(sender, prefix_of(address, address.max_prefixlen), way, question) for sender, question in packets
        ]
        found = make_trials(netlink, overlay, trials, rules)
        fault = next((item.text for item in judge_diversions(found, overlay, names)), None)
    host, *behind = (describe(answer, names) for answer in answers)
    return KernelRoute(host, behind[0] if behind else None, fault)


def _way_to(address: Address, ways: Ways) -> Way | None:
    """Return where packets for it have to go, ``None`` where no peer has it."""
    covering = [subnet for subnet in ways.gateways if address in subnet]
    if not covering:
        return None
    return ways.way(max(covering, key=lambda subnet: subnet.prefixlen))
