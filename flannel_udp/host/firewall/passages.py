"""Which packets have to pass this host's firewall, and whether its rules, whosoever they are, let them.

What is dropped whichever way it goes is closed. A rule that cannot be judged from its text (a mark, a named set) is a
doubt: no fault, and not nothing either.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flannel_udp.errors import FlannelError
from flannel_udp.host.family import family_of
from flannel_udp.host.firewall.mixture import legacy_tables
from flannel_udp.host.firewall.nft_chains import Chain, list_chains
from flannel_udp.host.firewall.nft_ruleset import families_of, is_iptables, meetings
from flannel_udp.host.firewall.ruleset import Packet, fate_in, parse_iptables
from flannel_udp.host.firewall.tool import LOCK_WAIT_S, LockHeld, ToolMissing, run_tool
from flannel_udp.model import Address, Degradation, Prefix

CHAINS_MAX = 1_000
"""A table of nftables with more of them is kube-proxy's, say, and takes long to read: it is a doubt as a whole."""

_TABLES = ("raw", "mangle", "filter")  # as a packet meets them; nobody drops in nat
BRIDGE = "cni0"
"""The pods', where none is there yet."""
_SIDES = (("-s", "saddr"), ("-d", "daddr"))
ON_LINK = "other hosts on the link"
"""Those whose packets take no tunnel, where DirectRouting is on."""


class Opening(NamedTuple):
    """Outer packets, and what lets them in, as each tool spells it."""

    what: str
    protocol: str
    port: int | None
    iptables: str
    nft: str
    ufw: str
    firewalld: str


def udp_opening(port: int) -> Opening:
    """Return it for datagrams to a UDP port."""
    ways = (f"-p udp --dport {port}", f"udp dport {port}", f"ufw allow {port}/udp", f"--add-port={port}/udp")
    return Opening(f"UDP port {port}", "udp", port, *ways)


IPIP = Opening(
    "IP protocol 4 (IPIP)",
    "ipip",
    None,
    "-p 4",
    "meta l4proto 4",
    "add '-A ufw-before-input -p 4 -j ACCEPT' to /etc/ufw/before.rules, then `ufw reload`",
    "--add-protocol=4",
)
"""IP in IP, which has no ports."""

DISCOVERY = Opening(
    "ICMPv6",
    "icmpv6",
    None,
    "-p ipv6-icmp",
    "meta l4proto ipv6-icmp",
    "add '-A ufw6-before-input -p icmpv6 -j ACCEPT' to /etc/ufw/before6.rules, then `ufw reload`",
    "--add-protocol=ipv6-icmp",
)
"""What hosts on a link find each other by over IPv6, and are told what a path carries (RFC 4890 section 4.4.1)."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A packet that has to pass."""

    packet: Packet
    hooks: Sequence[str]
    """What it meets, nft's names; iptables' chains have the same in upper case."""
    lost: str
    """What a firewall does that drops it."""
    lets_pass: Sequence[tuple[str, str]]
    """Each rule that lets it pass: iptables' conditions, and nft's."""
    firewalld: str
    """What firewall-cmd has to add: a rule in firewalld's table is refused (its flag "owner"), or gone at a reload."""
    ufw: str | None = None
    """ufw's own command, where there is one."""


class Closed(NamedTuple):
    """A passage is closed: what is lost by it and by what, and the command that opens it."""

    what: str
    mend: str


@dataclass(frozen=True, slots=True)
class RuleSets:
    """All rules that there are, as far as they were read."""

    listings: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """What ``-S`` says, by variant of iptables and table."""
    document: Mapping[str, Any] = field(default_factory=dict)
    """What ``nft -j list`` says of all tables that are not iptables'."""
    unread: Sequence[str] = ()
    """Tables that are too large, or that their tool cannot list."""
    locked: str | None = None
    """Why those of iptables-legacy are unread, and can be read again soon: their lock is held."""


def outer_passages(
    opening: Opening,
    interface: str,
    own: Address | None,
    other: Address | None,
    *,
    version: int,
    overlay: Prefix | None,
) -> list[Passage]:
    """Return how outer packets come in and leave; `other` hosts may be any, but none in the `overlay` network."""
    rule, protocol, port = [(opening.iptables, opening.nft)], opening.protocol, opening.port
    came = Packet(interface, "", protocol, port, other, own, local=True, version=version, outside=overlay)
    sent = Packet("", interface, protocol, port, own, other, version=version, outside=overlay)
    nobody = f"this host's own firewall drops {opening.what}: nothing of other hosts reaches pods"
    nowhere = f"this host's own firewall drops what leaves for {opening.what}: nothing of pods reaches other hosts"
    return [
        Passage(came, ("ingress", "prerouting", "input"), nobody, rule, opening.firewalld, opening.ufw),
        Passage(sent, ("output", "postrouting", "egress"), nowhere, rule, f"--policy=NAME {opening.firewalld}"),
    ]


def pods_passages(
    device: str,
    network: Prefix,
    other: Address,
    pods: Sequence[Address],
    bridge: str = BRIDGE,
    *,
    hosts: str = "other hosts",
) -> list[Passage]:
    """Return how packets of other hosts' pods come to ours behind `bridge`, and those of ours to them.

    `other` is one of the pods on those `hosts` that are reached by `device`. The first of `pods` stands for all of
    ours; for the others somebody may have rules of their own.
    """
    hooks = ("ingress", "prerouting", "forward", "postrouting", "egress")
    version = network.version
    found = []
    for number, address in enumerate(pods):
        name, sends = (f"our pod {address}", "sends") if number else ("our pods", "send")
        come = Packet(device, bridge, source=other, destination=address, version=version)
        leave = Packet(bridge, device, source=address, destination=other, version=version)
        found += [
            _pods_passage(come, hooks, f"{hosts} send to {name}", network),
            _pods_passage(leave, hooks, f"{name} {sends} to {hosts}", network),
        ]
    return found


def bridge_passages(bridge: str, network: Prefix, other: Address, pod: Address) -> list[Passage]:
    """Return how the same packets pass our pods' bridge, whose own hooks meet them as well, in frames."""
    come = Packet("", source=other, destination=pod, version=network.version, to_bridge=bridge)
    leave = Packet("", source=pod, destination=other, version=network.version, from_bridge=bridge)
    return [
        _pods_passage(come, ("output", "postrouting"), "other hosts send to our pods", network),
        _pods_passage(leave, ("prerouting", "input"), "our pods send to other hosts", network),
    ]


def _pods_passage(packet: Packet, hooks: Sequence[str], lost: str, network: Prefix) -> Passage:
    family = family_of(network)
    rules = [(f"{side} {network}", f"{family.nft} {word} {network}") for side, word in _SIDES]
    if packet.bridged:  # there, what finds the neighbours passes, too
        rules.insert(0, ("", "meta l4proto ipv6-icmp" if packet.version == 6 else "ether type arp"))
    trust = f"--zone=trusted --add-source={network}"
    return Passage(packet, hooks, f"this host's own firewall drops what {lost}", rules, trust)


def judge(rules: RuleSets, passages: Sequence[Passage]) -> tuple[Closed | None, list[str]]:
    """Return what closes the first of these passages that is closed, and every doubt. Pure."""
    doubts: dict[str, None] = {}
    for passage in passages:
        for found in (*_by_iptables(rules, passage), *_by_nft(rules, passage)):
            if isinstance(found, Closed):
                return found, list(doubts)
            doubts[found] = None
    return None, [*doubts, *rules.unread, *([] if rules.locked is None else [rules.locked])]


async def find_closed(questions: Sequence[Sequence[Passage]]) -> list[Degradation]:
    """Return what closes the first passage of each of these questions, with the command that opens it.

    Raises `LockHeld` where not all rules can be read now, and other `FlannelError`.
    """
    if not questions:
        return []
    rules = await read_rules(questions[0][0].packet.version)
    if rules.locked is not None:
        raise LockHeld(rules.locked)
    found = await asyncio.to_thread(lambda: [judge(rules, passages)[0] for passages in questions])
    return [Degradation("firewall", f"{closed.what}: {closed.mend}") for closed in found if closed is not None]


def _by_iptables(rules: RuleSets, passage: Passage) -> Iterator[Closed | str]:
    """Yield what closes the passage, and what may."""
    if passage.packet.bridged:
        return
    for (tool, table), listing in rules.listings.items():
        chains, policies = parse_iptables(listing, passage.packet)
        where = tool if table == "filter" else f"{tool} -t {table}"
        for chain in (hook.upper() for hook in passage.hooks if hook.upper() in policies):
            fate = fate_in(chains, chain, policies[chain])
            yield from (f"{where}: {doubt}" for doubt in fate.doubts)
            if fate.dropped_by is None:
                continue
            mend = " && ".join(f"{where} -I {chain} {rule} -j ACCEPT" for rule, _ in passage.lets_pass)
            if "INPUT_ZONES" in chains:  # firewalld's, with FirewallBackend=iptables
                mend = _by_firewalld(passage)
            elif passage.ufw is not None and any(name.startswith("ufw") for name in chains):
                mend = passage.ufw
            yield Closed(f"{passage.lost}: {where}: {fate.dropped_by}", mend)


def _by_nft(rules: RuleSets, passage: Passage) -> Iterator[Closed | str]:
    for hook in passage.hooks:
        for met in meetings(rules.document, hook, passage.packet):
            where = f"nftables: table {met.table}"
            yield from (f"{where}: {doubt}" for doubt in met.fate.doubts)
            if met.fate.dropped_by is None:
                continue
            insert = f"nft insert rule {met.family} {met.table} {met.chain}"
            mend = " && ".join(f"{insert} {rule} accept" for _, rule in passage.lets_pass)
            if met.table == "firewalld":
                mend = _by_firewalld(passage)
            yield Closed(f"{passage.lost}: {where}: {met.fate.dropped_by}", mend)


def _by_firewalld(passage: Passage) -> str:
    return f"firewall-cmd --permanent {passage.firewalld} && firewall-cmd --reload"


async def read_rules(version: int = 4) -> RuleSets:
    """Read all rules of this network namespace for one IP version; where a tool finds no table there are none.

    Only tables that are there: to list another one by iptables would make it. Raises `FlannelError`.
    """
    family = family_of(version)
    chains = await asyncio.to_thread(list_chains)
    sizes = Counter((chain.family, chain.table) for chain in chains)
    hooked = [chain for chain in chains if chain.priority is not None and chain.family in families_of(version)]
    of_iptables = {chain.table for chain in hooked if is_iptables(chain)}
    items: list[Mapping[str, Any]] = []
    unread = []
    for kind, table in sorted({(chain.family, chain.table) for chain in hooked if not is_iptables(chain)}):
        if sizes[kind, table] > CHAINS_MAX:
            unread.append(f"nftables: table {table}: {sizes[kind, table]:,} chains")
            continue
        try:
            items += await _nft("-t", "list", "table", kind, table)  # -t: without what is in its sets
        except FlannelError as why:
            unread.append(f"nftables: table {table}: {why}")
    _name_devices(items, hooked)
    present = {f"{family.iptables}-nft": of_iptables, f"{family.iptables}-legacy": legacy_tables(version)}
    listings, locked = {}, None
    wait = "--wait", str(LOCK_WAIT_S)
    for variant, table in ((variant, table) for variant in present for table in _TABLES if table in present[variant]):
        try:
            listings[variant, table] = await _output("iptables", variant, *wait, "-t", table, "-S")
        except LockHeld as why:
            locked = str(why)
            break  # what is left has the same lock, and each would wait as long
        except FlannelError as why:  # nft's own rules in iptables' tables, say
            unread.append(f"{variant}: table {table}: {why}")
    return RuleSets(listings, {"nftables": items}, unread, locked)


def _name_devices(items: Sequence[Mapping[str, Any]], chains: Sequence[Chain]) -> None:
    """Have nft's document say which devices a chain is for: that of nft 1.0.6 does not, though its text does."""
    devices = {(chain.family, chain.table, chain.name): chain.devices for chain in chains}
    for chain in (item["chain"] for item in items if item.get("chain", {}).get("hook") in ("ingress", "egress")):
        if (known := devices.get((chain["family"], chain["table"], chain["name"]))) is not None:
            chain["dev"] = known


async def _nft(*words: str) -> list[Mapping[str, Any]]:
    try:
        document = await asyncio.to_thread(json.loads, await _output("nftables", "nft", "-j", *words))
    except ValueError:
        raise FlannelError("nft cannot list it") from None
    items = document.get("nftables", []) if isinstance(document, dict) else []
    return [item for item in items if isinstance(item, dict)]


async def _output(package: str, tool: str, *words: str) -> str:
    """Return what a tool of that package lists. Raises `FlannelError`, in few words, where it does not."""
    try:
        done = await run_tool(tool, *words)
    except ToolMissing:
        raise FlannelError(f"{tool} is missing: install {package}") from None
    done.check_lock()
    if done.status != 0:
        raise FlannelError(f"{tool} cannot list it")
    return done.output
