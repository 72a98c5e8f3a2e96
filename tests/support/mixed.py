"""Labs in which our agents meet something else: a foreign udp peer, or the kernel's VXLAN set up by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.naive import NaivePeer
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import wait_for_peers
from tests.support.by_hand_vxlan import join_by_hand
from tests.support.labs import fresh_name
from tests.support.socat import SocatPeer

OURS, THEIRS = IPv4Network("10.244.1.0/24"), IPv4Network("10.244.2.0/24")
FOREIGN_PEERS = ("naive peer", "socat")
BY_HAND = IPv4Network("10.244.200.0/24")
"""Beyond the first 100, of which an agent picks one."""


@contextmanager
def mixed_lab(foreign: str, cards: str, *agent_args: str, with_agent: bool = True) -> Iterator[Lab]:
    """Yield a lab with one of `FOREIGN_PEERS` on h2, and our agent on h1 if it is to have one.

    The subnets are reserved by hand. `cards` is the plan's offload, `agent_args` are our agent's.
    """
    reservations = {str(OURS): "192.0.2.1", str(THEIRS): "192.0.2.2"}
    agents = ("h1",) if with_agent else ()
    plan = Plan(fresh_name(), hosts=2, agents=agents, agent_args=agent_args, reservations=reservations, offload=cards)
    with Lab(plan) as lab:
        h1, h2 = lab.hosts
        with SocatPeer(h2, THEIRS, h1.underlay) if foreign == "socat" else NaivePeer(h2, THEIRS, {OURS: h1.underlay}):
            yield lab


@contextmanager
def vxlan_lab(cards: str, registry: str = "file", *, udpcsum: bool = True) -> Iterator[Lab]:
    """Yield three hosts of one VXLAN: h1 the kernel's by hand, h2 our packet path, h3 the kernel's by our agent.

    `cards` is the plan's offload; `udpcsum`: whether what h1 sends has an outer checksum.
    """
    plan = Plan(
        fresh_name(),
        hosts=3,
        registry=registry,
        config={"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}},
        agents=("h2", "h3"),
        host_args={"h2": ("--datapath=userspace",), "h3": ("--datapath=kernel",)},
        offload=cards,
    )
    with Lab(plan) as lab:
        h1, *ours = lab.hosts
        wait_for_peers(ours)
        join_by_hand(h1, BY_HAND, udpcsum=udpcsum)
        for host in ours:
            host.wait_peers({BY_HAND})
        yield lab
