"""Whether this host's own firewall lets through what hosts send to each other, and what pods do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from functools import partial
from ipaddress import ip_network

from flannel_udp.doctor.finding import Finding, fault, note, ok, skipped
from flannel_udp.doctor.known import KnownFamily
from flannel_udp.host.family import IPV4
from flannel_udp.host.firewall.passages import (
    BRIDGE,
    DISCOVERY,
    IPIP,
    ON_LINK,
    Passage,
    RuleSets,
    bridge_passages,
    judge,
    outer_passages,
    pods_passages,
    read_rules,
    udp_opening,
)
from flannel_udp.host.lookup.pods import KnownPods, known_pods

_DOUBTS_NAMED = 3


def ask_firewall(known: KnownFamily) -> Iterator[Finding]:
    """Ask iptables, both its variants, and nftables."""
    if os.geteuid() != 0:
        yield skipped("firewall", "root alone may read the rules: sudo flannel-udp doctor")
        return
    rules = asyncio.run(read_rules(known.version))
    host, opened = known.host, [] if known.family is IPV4 else [DISCOVERY]
    if host.speaks_ipip or host.port is not None:
        opened.insert(0, udp_opening(host.port) if host.port is not None else IPIP)
    if opened:
        ends = host.interface or "", known.address, known.hosts[0] if known.hosts else None
        outer = partial(outer_passages, version=known.version, overlay=known.network)
        passages = [passage for opening in opened for passage in outer(opening, *ends)]
        what = " and ".join(opening.what for opening in opened)
        yield judge_firewall("firewall", rules, passages, f"nothing found that drops {what}")
    network, subnet = known.network, known.subnet
    if network is None or subnet is None or known.device is None:
        yield skipped("firewall for pods", "no subnet is known")
        return
    ours = known_pods(subnet, 0) or KnownPods(BRIDGE)
    pods = [subnet[-2], *ours.addresses]
    # Of some peer on either way.
    theirs = {peer.get("datapath"): ip_network(peer["subnet"])[2] for peer in known.peers}
    direct = theirs.pop("direct", None)
    tunnelled = next(iter(theirs.values()), network[-2])
    passages = pods_passages(known.device, network, tunnelled, pods, ours.bridge)
    if direct is not None and host.interface is not None:
        passages += pods_passages(host.interface, network, direct, pods, ours.bridge, hosts=ON_LINK)
    if ours.is_bridge:
        passages += bridge_passages(ours.bridge, network, tunnelled, pods[0])
    well = "nothing found that drops packets between other hosts and our pods"
    yield judge_firewall("firewall for pods", rules, passages, well)


def judge_firewall(question: str, rules: RuleSets, passages: Sequence[Passage], well: str) -> Finding:
    """Judge: the first passage that is closed is told, or else which rules nobody can judge."""
    closed, doubts = judge(rules, passages)
    if closed is not None:
        return fault(question, closed.what, closed.mend)
    if doubts:
        named = "; ".join(doubts[:_DOUBTS_NAMED])
        more = f"; and {len(doubts) - _DOUBTS_NAMED} more" if len(doubts) > _DOUBTS_NAMED else ""
        return note(question, f"{well} for sure, but what these do cannot be told from here: {named}{more}")
    return ok(question, well)
