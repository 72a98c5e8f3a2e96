"""A lab in which h1 may run our agent and h2 runs something else, with a table of subnets written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import Plan
from tests.support.labs import fresh_name
from tests.support.naive import NaivePeer
from tests.support.socat import SocatPeer

OURS, THEIRS = IPv4Network("10.244.1.0/24"), IPv4Network("10.244.2.0/24")
FOREIGN_PEERS = ("naive peer", "socat")


@contextmanager
def mixed_lab(foreign: str, cards: str, *, with_agent: bool = True) -> Iterator[Lab]:
    """Yield a lab with one of `FOREIGN_PEERS` on h2; `cards` is the plan's offload."""
    reservations = {str(OURS): "192.0.2.1", str(THEIRS): "192.0.2.2"}
    agents = ("h1",) if with_agent else ()
    with Lab(Plan(fresh_name(), hosts=2, agents=agents, reservations=reservations, offload=cards)) as lab:
        h1, h2 = lab.hosts
        with SocatPeer(h2, THEIRS, h1.underlay) if foreign == "socat" else NaivePeer(h2, THEIRS, {OURS: h1.underlay}):
            yield lab
