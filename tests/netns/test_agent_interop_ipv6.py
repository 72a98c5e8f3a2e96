"""Our agents beside independent programs that carry IPv6 in UDP over IPv6, and beside hosts that know IPv4 only."""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import IPv4Network, IPv6Network

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.naive import NaivePeer
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import ping_matrix, tcp_rate
from flannel_udp.model import Subnet
from tests.support.agents import wait_for, wait_for_pings
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.socat import SocatPeer

pytestmark = NEEDS_NETNS
V4, V6 = IPv4Network("10.244.200.0/24"), IPv6Network("fd00:10:244:200::/64")


def test_the_naive_peer_and_ours_exchange_both_families_and_tcp_both_ways() -> None:
    reservations = {f"{V4}&{V6}": "192.0.2.2&2001:db8::2"}
    plan = Plan(fresh_name(), families="46", agents=("h1",), reservations=reservations)
    with Lab(plan) as lab, ExitStack() as running:
        ours, naive = lab.hosts
        subnet = ours.subnet_of(6)
        assert ours.subnet is not None
        assert isinstance(subnet, IPv6Network)
        naive.attach_pods(Subnet(V4, V6), 1452)
        running.enter_context(NaivePeer(naive, V4, {ours.subnet: ours.underlay}))
        running.enter_context(NaivePeer(naive, V6, {subnet: plan.underlay_v6("h1")}, device="naive6"))
        first, last = lab.pods()
        wait_for_pings(lab, (4, 6))
        for version in (4, 6):
            for source, target in ((first, last), (last, first)):
                assert tcp_rate(source, target, target.address(version), duration_s=0.3) > 0


def test_socat_and_ours_understand_each_other_by_ipv6_alone() -> None:
    reservations = {f"0.0.0.0/0&{V6}": "0.0.0.0&2001:db8::2"}
    with Lab(Plan(fresh_name(), families="6", agents=("h1",), reservations=reservations)) as lab:
        ours, other = lab.hosts
        with SocatPeer(other, V6, ours.underlay_of(6)):
            wait_for("traffic", lambda: None not in ping_matrix(lab.pods(), 0.5, 6).values())


def test_a_host_that_knows_ipv4_only_still_exchanges_it_with_dual_stack_hosts() -> None:
    """What flanneld's udp is in such a cluster: its lease says nothing of IPv6."""
    plan = Plan(fresh_name(), families="46", agents=("h1",), reservations={str(V4): "192.0.2.2"})
    with Lab(plan) as lab:
        ours, old = lab.hosts
        assert ours.subnet is not None
        with NaivePeer(old, V4, {ours.subnet: ours.underlay}):
            wait_for("traffic", lambda: None not in ping_matrix(lab.pods(), 0.5).values())
