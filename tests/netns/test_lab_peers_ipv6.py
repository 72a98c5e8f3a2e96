"""The independent peers by IPv6, among themselves: what they do is what our agents are tested against."""

from __future__ import annotations

import json
from contextlib import ExitStack
from ipaddress import IPv4Network, IPv6Network

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.naive import NaivePeer
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import tcp_rate
from flannel_udp.model import Subnet
from tests.support.agents import unanswered
from tests.support.by_hand_vxlan import join_by_hand_dual
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.socat import SocatPeer

pytestmark = NEEDS_NETNS
V4 = (IPv4Network("10.244.1.0/24"), IPv4Network("10.244.2.0/24"))
V6 = (IPv6Network("fd00:10:244:1::/64"), IPv6Network("fd00:10:244:2::/64"))


def test_naive_peers_carry_both_families_side_by_side() -> None:
    with Lab(Plan(fresh_name(), agents=(), families="46")) as lab, ExitStack() as running:
        for number, host in enumerate(lab.hosts):
            other, far = lab.hosts[1 - number], 1 - number
            host.attach_pods(Subnet(V4[number], V6[number]), 1452)
            running.enter_context(NaivePeer(host, V4[number], {V4[far]: other.underlay}))
            address = lab.plan.underlay_v6(other.name)
            running.enter_context(NaivePeer(host, V6[number], {V6[far]: address}, device="naive6"))
        for version in (4, 6):
            assert unanswered(lab.pods(), version) == []
            first, last = lab.pods()
            assert tcp_rate(first, last, last.address(version), duration_s=0.3) > 0


def test_socat_and_the_naive_peer_understand_each_other_by_ipv6() -> None:
    with Lab(Plan(fresh_name(), agents=(), families="6")) as lab:
        near, far = lab.hosts
        with NaivePeer(near, V6[0], {V6[1]: lab.plan.underlay_v6("h2")}), SocatPeer(far, V6[1], near.underlay_of(6)):
            assert unanswered(lab.pods(), 6) == []


@pytest.mark.parametrize("families", ["6", "46"])
def test_the_kernels_vxlan_set_up_by_hand_carries_ipv6_over_ipv6(families: str) -> None:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    with Lab(Plan(fresh_name(), agents=(), families=families, config=config)) as lab:
        subnets = [Subnet(v4 if "4" in families else None, v6) for v4, v6 in zip(V4, V6, strict=True)]
        joined = [join_by_hand_dual(host, subnet) for host, subnet in zip(lab.hosts, subnets, strict=True)]
        for part in joined[0]:
            part.learn()
        for version in lab.plan.versions:
            assert unanswered(lab.pods(), version) == []
        v6 = joined[0][-1]
        value = json.loads(next(iter(v6.registry.subnets().values())))
        assert (value["PublicIPv6"], value["BackendV6Data"]) == ("2001:db8::1", {"VNI": 1, "VtepMAC": v6.mac})
        link = v6.host.run(["ip", "-d", "link", "show", "flannel-v6.1"]).stdout
        assert " mtu 1430 " in link
        assert " local 2001:db8::1 dev eth0 " in link
