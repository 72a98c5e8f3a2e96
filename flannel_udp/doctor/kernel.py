"""What this host's kernel does with overlay packets: interface, forwarding, routes, source checks, bridges."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from ipaddress import ip_address, ip_network
from pathlib import Path

from flannel_udp.agent.asking import needs_of
from flannel_udp.doctor.finding import Finding, fault, fault_of, note, ok, skipped
from flannel_udp.doctor.known import Known, KnownFamily
from flannel_udp.errors import FlannelError
from flannel_udp.host.conntrack import Connections, read_connections
from flannel_udp.host.family import IPV4, IPV6, family_of
from flannel_udp.host.former_bridges import Earlier, find_former, find_inside
from flannel_udp.host.interface import decide_outside, no_interface
from flannel_udp.host.interface_facts import gather
from flannel_udp.host.links import Device, device_named
from flannel_udp.host.lookup.cut_off import Need
from flannel_udp.host.lookup.diversions import find_pods
from flannel_udp.host.lookup.forwarding import (
    ALL_DEVICES,
    Inlet,
    Settings,
    is_strict,
    judge_forwarding,
    lost_advertisements,
    read_settings,
)
from flannel_udp.host.lookup.look import CUT_SHORT, Look
from flannel_udp.host.lookup.pods_bridge import look_for_bare
from flannel_udp.host.lookup.question import Answer, DeviceNames, Entry, Names, Question, Way, Ways, ask, understand
from flannel_udp.host.lookup.rules import PolicyRule, read_rules
from flannel_udp.host.lookup.verdicts import describe
from flannel_udp.host.netlink import why_not_bound
from flannel_udp.host.rtnetlink import RTPROT_KERNEL, open_rtnetlink
from flannel_udp.model import Address, Degradation, Prefix
from flannel_udp.options import Options

_RULES_NAMED = 5
_BRIDGE_NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


def ask_interface(known: Known, options: Options) -> Finding:
    """Ask which interface the flags choose; a running agent's is its own choice unless there are flags."""
    told = known.status["interface"] if known.status is not None else None
    if told is not None and not options.interface.by_flags:
        addresses = " and ".join(filter(None, (told["address"], told.get("ipv6_address"))))
        return ok("interface", f"{told['name']}, {addresses}, MTU {told['mtu']}, says the agent")
    facts = gather(options.interface, known.versions)
    choice, host = decide_outside(options.interface, facts, known.versions, known.overlays)
    if choice.interface is None:
        return fault("interface", str(no_interface(choice, host, known.versions)), "flannel-udp iface show")
    chosen = choice.interface
    if told is not None and told["name"] != chosen.name:
        what = f"these flags choose {chosen.name}, and the agent has {told['name']}"
        return fault("interface", what, "restart the agent with the flags that are meant")
    chosen_addresses = [ends.address for ends in (chosen.v4, chosen.v6) if ends is not None]
    for address in chosen_addresses:
        foreign = why_not_bound(chosen, address)
        if foreign is not None:
            return fault("interface", foreign, f"take {chosen.name} out of the VRF, or add the address again")
    what = f"{chosen.name}, {' and '.join(map(str, chosen_addresses))}, MTU {chosen.mtu}"
    if choice.lacks:
        return note("interface", f"{what}, by which alone an agent takes part: {'; '.join(choice.lacks)}")
    return ok("interface", what)


def ask_overlay(known: KnownFamily, needs: Callable[[], Sequence[Need]]) -> Iterator[Finding]:
    """Ask what forwards, where packets for each peer go, and what the overlay's route cuts off.

    `needs` returns what the agent itself talks to.
    """
    network = known.network
    ways = _ways(known)
    if ways is None or network is None:
        yield _ask_forwarding(known)
        yield skipped("routes", "no device of the overlay is there" if network else "no overlay network is known")
        return
    found = Look(network).look(known.subnet, ways, needs(), known.address)
    yield from _judge("forwarding", found.forwarding, "what comes in for pods is forwarded, and what they send")
    if known.host.status is None:
        yield skipped("routes", "only the agent knows the peers")
    else:
        yield from _judge(
            "routes",
            found.routes,
            f"the kernel sends packets for all {len(known.peers)} peers where they belong",
        )
    if found.cut_short:
        yield note("routes", CUT_SHORT)
    yield from _judge("cut off", found.cut_off, "the overlay's route takes nothing that the agent needs")


def _judge(question: str, found: Sequence[Degradation], well: str) -> Iterator[Finding]:
    if not found:
        yield ok(question, well)
    for item in found:
        yield fault_of(question, item.text)


def _ways(known: KnownFamily) -> Ways | None:
    """Return where packets for the peers have to go; ``None`` where nobody knows, or the device is not there."""
    if known.device is None:
        return None
    with open_rtnetlink("looking for the overlay's device") as netlink:
        link = device_named(netlink, known.device)
        external = device_named(netlink, known.host.interface) if known.host.interface else None
    if link is None:
        return None
    if known.host.backend != "host-gw":
        to_device: dict[Prefix, Address | None] = dict.fromkeys(ip_network(peer["subnet"]) for peer in known.peers)
        if external is None:
            return Ways(link.index, to_device)
        direct = [peer for peer in known.peers if peer.get("datapath") == "direct"]
        past: dict[Prefix, Way] = {
            ip_network(row["subnet"]): Way(external.index, ip_address(row["public_ip"])) for row in direct
        }
        return Ways(link.index, to_device, past)
    # One that has a problem has no route, and is named for that.
    rows = [peer for peer in known.peers if peer["problem"] is None]
    return Ways(link.index, {ip_network(row["subnet"]): ip_address(row["public_ip"]) for row in rows})


def needs(options: Options) -> list[Need]:
    """Return what the agent itself talks to; names are looked up, which may take some seconds."""
    try:
        return asyncio.run(needs_of(options))
    except FlannelError:  # a fault of the registry's flags, which is named for itself
        return []


def _ask_forwarding(known: KnownFamily) -> Finding:
    """Ask without the overlay's device: of the pods' bridge, and of devices to come."""
    with open_rtnetlink("asking what forwards") as netlink:
        pods = None if known.subnet is None else find_pods(netlink, known.subnet, 0)
        inlet = Inlet(ALL_DEVICES, "any device", "what pods and other hosts send to each other")
        if pods is not None:
            inlet = Inlet(pods.bridge, DeviceNames(netlink)[pods.bridge], "what our pods send to other hosts")
        settings = read_settings(netlink, [inlet.device], known.version)
        advertised = lost_advertisements(netlink) if known.family is IPV6 else []
    found = judge_forwarding(settings, [inlet], known.family, advertised)
    return fault_of("forwarding", found[0].text) if found else ok("forwarding", "this host forwards")


def ask_rules(known: KnownFamily) -> Finding:
    """Ask which policy rules may lead some of the overlay's packets elsewhere by what a question does not carry."""
    if known.network is None:
        return skipped("rules", "no overlay network is known")
    with open_rtnetlink("reading the policy rules") as netlink:
        return judge_rules(read_rules(netlink, known.version), known.network)


def judge_rules(rules: Sequence[PolicyRule], network: Prefix) -> Finding:
    """Judge: a rule by mark, port or protocol that leads to another table is named, and may well be meant so."""
    found = [str(rule) for rule in rules if rule.picks and rule.leaves_main and _meet(rule.destination, network)]
    if not found:
        return ok("rules", "none is for packets with a mark, a port or the like only")
    more = f", and {len(found) - _RULES_NAMED} more" if len(found) > _RULES_NAMED else ""
    what = "what these do to packets with such a mark, port or protocol cannot be told from here: "
    named = ", ".join(f'"{rule}"' for rule in found[:_RULES_NAMED])
    return note("rules", f"{what}{named}{more}", f"{family_of(network).ip} rule")


def _meet(one: Prefix, other: Prefix) -> bool:
    return one.version == other.version and one.overlaps(other)


def ask_underlay(known: KnownFamily) -> Iterator[Finding]:
    """Ask whether the kernel has a way to the other hosts, and none that leads into the overlay itself."""
    if not known.hosts:
        yield skipped("underlay", "no other host is known")
        return
    with open_rtnetlink("asking how other hosts are reached") as netlink:
        names = DeviceNames(netlink)
        answers = [understand(answer) for answer in ask(netlink, [Question(host) for host in known.hosts])]
        ways = dict(zip(known.hosts, answers, strict=True))
        tunnels = {family.device for family in known.host.families} - {known.host.interface}
        found = [*_refused(ways, names), *_into_tunnels(ways, names, tunnels)]
    yield from found or [ok("underlay", f"there is a way to all {len(ways)} other hosts")]


def _refused(ways: Mapping[Address, Answer], names: Names) -> Iterator[Finding]:
    refused = [host for host, answer in ways.items() if isinstance(answer, int)]
    if refused:
        first = refused[0]
        what = f"no way to {len(refused)} of {len(ways)} other hosts ({first}, say: {describe(ways[first], names)})"
        ip = family_of(first).ip
        yield fault("underlay", what, f"{ip} route get {first}; {ip} route show table all; {ip} rule")


def _into_tunnels(ways: Mapping[Address, Answer], names: Names, tunnels: Set[str | None]) -> Iterator[Finding]:
    """Judge: what goes to a host inside of outer packets cannot go that way itself."""
    lost = [
        (host, way, names[hop.device])
        for host, way in ways.items()
        if isinstance(way, Entry)
        for hop in way.hops
        if names[hop.device] in tunnels
    ]
    if lost:
        host, way, device = lost[0]
        ip, n_lost = family_of(host).ip, len({item[0] for item in lost})
        where = f"leads into {device}, our own tunnel ({host}, say: {way.describe(names)})"
        undo = f"{ip} route del {way.spelled(names)}"
        if way.protocol == RTPROT_KERNEL:
            undo = f"take the address that brought it off {device}: {ip} address show dev {device}"
        what = f"the way to {n_lost} of {len(ways)} other hosts {where}"
        yield fault("underlay", what, f"{ip} route get {host}, then {undo}")


def ask_source_checks(known: KnownFamily) -> Iterator[Finding]:
    """Ask whether the external interface takes what the other hosts send, and both datapaths what comes by them."""
    interface = known.host.interface
    if known.family is IPV6:
        yield skipped("rp_filter", "the kernel has none for IPv6")
        return
    if interface is None or not known.hosts:
        yield skipped("rp_filter", "no other host is known")
        return
    with open_rtnetlink("asking how other hosts are reached") as netlink:
        link = device_named(netlink, interface)
        if link is None:
            yield skipped("rp_filter", f"there is no {interface}")
            return
        tunnel = device_named(netlink, known.device) if known.device else None
        devices = [link.index, *([] if tunnel is None else [tunnel.index])]
        settings = read_settings(netlink, devices, known.version)
        answers = [understand(answer) for answer in ask(netlink, [Question(host) for host in known.hosts])]
    yield judge_source_checks(settings, interface, link.index, dict(zip(known.hosts, answers, strict=True)))
    if tunnel is not None:
        datapaths = {peer.get("datapath", "") for peer in known.peers}
        yield from judge_datapaths(settings, tunnel, link, datapaths)


def judge_datapaths(
    settings: Mapping[int, Settings], tunnel: Device, link: Device, used: Set[str]
) -> Iterator[Finding]:
    """Judge what strict drops of hosts that send by another datapath than the one that packets to them take."""
    for device, ours, theirs in ((tunnel, "direct", "through the tunnel"), (link, "tunnel", "directly")):
        if ours in used and is_strict(settings, device.index):
            what = f"strict on {device.name}: a host whose datapath here is {ours} and that sends {theirs} is cut off"
            yield note("rp_filter", what, f"sysctl -w {IPV4.setting(device.name, 'rp_filter')}=2")


def judge_source_checks(
    settings: Mapping[int, Settings], interface: str, index: int, ways: Mapping[Address, Answer]
) -> Finding:
    """Judge: strict drops what comes in here from a host that packets would leave for by another device."""
    elsewhere = [
        host
        for host, answer in ways.items()
        if not (isinstance(answer, Entry) and any(hop.device == index for hop in answer.hops))
    ]
    strict = is_strict(settings, index)
    if strict and elsewhere:
        return fault(
            "rp_filter",
            f"what {len(elsewhere)} other hosts ({elsewhere[0]}, say) send to {interface} is dropped: rp_filter is 1, "
            "strict, and they are reached by another device",
            f"sysctl -w {IPV4.setting(interface, 'rp_filter')}=2",
        )
    kind = "strict" if strict else "not strict"
    return ok("rp_filter", f"{kind} on {interface}, which takes what all {len(ways)} other hosts send")


def ask_bridges(known: KnownFamily) -> Iterator[Finding]:
    """Ask whether bridges have addresses that keep pods from being put on them, or the pods' own has none."""
    if known.network is None or known.subnet is None:
        yield skipped("bridges", "no subnet is known")
        return
    found, bare = find_former(Earlier([known.network]), known.subnet), look_for_bare(known.subnet)
    if not (found or bare):
        yield ok("bridges", f"none keeps pods of {known.subnet} from being started")
    yield from (fault("bridges", what, mend) for what, mend in found)
    yield from (fault_of("bridges", item.text) for item in bare)
    yield from (note("bridges", what, mend) for what, mend in find_inside(known.network, known.subnet))


def ask_bridge_netfilter(options: Options) -> Finding:
    """Ask whether the firewall sees what pods of one host send to each other, as Kubernetes' services need it."""
    try:
        text = _BRIDGE_NETFILTER.read_text().strip()
    except OSError:
        text = ""
    return judge_bridge_netfilter(text, kubernetes=options.kube.subnet_mgr)


def ask_connections() -> Finding:
    """Ask whether there is room for new connections in the kernel's table."""
    return judge_connections(read_connections())


def judge_connections(found: Connections | None) -> Finding:
    """Judge how many there are; ``None``: the kernel keeps no table."""
    question = "connections"
    if found is None:
        return ok(question, "the kernel keeps none")
    if found.full:
        return fault_of(question, found.fault)
    what = f"conntrack has {found.present:,} of {found.most:,}" if found.most else f"conntrack has {found.present:,}"
    if found.nearly_full:
        return note(question, f"{what}: when it is full new ones of pods are dropped", found.remedy)
    return ok(question, what)


def judge_bridge_netfilter(setting: str, *, kubernetes: bool) -> Finding:
    """Judge the setting's text, empty where the module is not loaded."""
    question = "br_netfilter"
    if setting == "1":
        return ok(question, "the firewall sees bridged packets")
    if setting:
        what, mend = "net.bridge.bridge-nf-call-iptables is 0", "sysctl -w net.bridge.bridge-nf-call-iptables=1"
    else:
        what, mend = "the module is not loaded", "modprobe br_netfilter"
    if kubernetes:
        return fault(question, f"{what}: services do not work between pods of one host", mend)
    return ok(question, f"{what}, which only Kubernetes' services need")
