"""The lab by IPv6: its underlay, its pods, its etcd, and what its own tools see of it. No agent runs here."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Network

import pytest

from flannel_udp.lab.by_hand import put_routes
from flannel_udp.lab.capture import Packet, trace
from flannel_udp.lab.demo import show
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import FAMILIES, OVERLAY, OVERLAY_V6, Plan
from flannel_udp.lab.probe import ping, ping_matrix, tcp_rate
from flannel_udp.lab.sites import Router
from flannel_udp.model import Subnet
from tests.support.by_hand import etcdctl_command
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS
MTU = 1452


def subnet(number: int, versions: tuple[int, ...]) -> Subnet:
    v4 = IPv4Network(f"10.244.{number}.0/24") if 4 in versions else None
    return Subnet(v4, IPv6Network(f"fd00:10:244:{number}::/64") if 6 in versions else None)


@contextmanager
def routed_by_hand(families: str, hosts: int = 2) -> Iterator[Lab]:
    """A lab without agents, its pods attached, its hosts with a route to each other's subnets."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": "alloc"}}
    with Lab(Plan(fresh_name(), hosts=hosts, agents=(), families=families, config=config)) as lab:
        for number, host in enumerate(lab.hosts, start=1):
            host.attach_pods(subnet(number, lab.plan.versions), MTU)
        put_routes(lab)
        yield lab


@pytest.mark.parametrize("families", ["6", "46"])
def test_pods_reach_each_other_by_every_family_and_at_once(families: str) -> None:
    with routed_by_hand(families, hosts=3) as lab:
        for version in lab.plan.versions:
            times = ping_matrix(lab.pods(), PATIENCE_S, version)
            assert len(times) == 6
            assert None not in times.values(), version
        first, _, last = lab.pods()
        assert tcp_rate(first, last, last.address(6), duration_s=0.3) > 0


@pytest.mark.parametrize("families", ["6", "46"])
def test_a_host_behind_a_router_is_reached_over_it_by_every_family(families: str) -> None:
    plan = Plan(fresh_name(), agents=(), families=families, routers={"r1": Router()}, behind={"h2": "r1"})
    with Lab(plan) as lab:
        near, far = lab.hosts
        for version in lab.plan.versions:
            assert None not in ping(near, [far.underlay_of(version)], PATIENCE_S)
            route = near.run(["ip", "route", "get", str(far.underlay_of(version))]).stdout
            assert f"via {lab.plan.underlay_of('r1', version)} " in route


@pytest.mark.parametrize("families", list(FAMILIES))
def test_a_host_has_addresses_of_its_families_alone(families: str) -> None:
    with Lab(Plan(fresh_name(), hosts=1, agents=(), families=families)) as lab:
        (eth0,) = json.loads(lab.hosts[0].run(["ip", "-json", "addr", "show", "dev", "eth0", "scope", "global"]).stdout)
        addresses = [address for address in eth0["addr_info"] if address]  # `ip` leaves empty ones of other scopes
        found = {(address["local"], address["prefixlen"]) for address in addresses}
        expected = {4: ("192.0.2.1", 24), 6: ("2001:db8::1", 64)}
        assert found == {expected[version] for version in FAMILIES[families]}
        assert not any(address.get("tentative") for address in addresses)


def test_a_packet_of_each_family_is_seen_at_every_step() -> None:
    with routed_by_hand("46") as lab:
        for version in (4, 6):
            source, target = lab.pods()
            packets: list[Packet | None] = [
                step.packet for step in trace(source, target, version=version, timeout_s=PATIENCE_S)
            ]
            hops = [packet.ttl for packet in packets if packet is not None and packet.version == version]
            assert hops == [64, 63, 63, 62]


def test_the_demonstration_shows_both_families() -> None:
    with routed_by_hand("46") as lab:
        for host in lab.hosts:  # the demonstration puts them itself
            host.configure(*(f"route del {other}" for o in lab.hosts if o is not host for other in o.prefixes))
        shown = io.StringIO()
        assert show(lab, shown, 120)
        text = shown.getvalue()
        assert "underlay 192.0.2.0/24 and 2001:db8::/64: a bridge" in text
        assert "overlay 10.244.0.0/16 and fd00:10:244::/48, backend alloc, MTU 1452" in text
        assert "10.244.1.2 → 10.244.2.2  ICMP echo request  TTL 62  84 bytes" in text
        assert "fd00:10:244:1::2 → fd00:10:244:2::2  ICMPv6 echo request  hop limit 62  104 bytes" in text
        assert text.count("2 of 2 pings answered") == 2
        assert "TCP by IPv6, one connection from h1/p1 to h2/p1" in text


def test_status_tells_of_both_families() -> None:
    with routed_by_hand("46") as lab:
        assert lab.status()["hosts"][1] == {
            "name": "h2",
            "behind": None,
            "link": {"rate": None, "delay_ms": 0.0, "loss": 0.0, "mtu": 1500},
            "underlay": "192.0.2.2",
            "underlay_v6": "2001:db8::2",
            "backend": None,
            "subnet": "10.244.2.0/24",
            "subnet_v6": "fd00:10:244:2::/64",
            "pods": [{"name": "p1", "ip": "10.244.2.2", "ip_v6": "fd00:10:244:2::2"}],
        }


@pytest.mark.parametrize("families", ["46", "6"])
def test_every_host_reaches_the_labs_etcd_and_finds_the_configuration(families: str) -> None:
    with Lab(Plan(fresh_name(), hosts=1, agents=(), registry="etcd", families=families)) as lab:
        get = etcdctl_command(lab.plan.registry_args[-1], "get", "--print-value-only", "/coreos.com/network/config")
        said = json.loads(lab.hosts[0].run(get, timeout_s=PATIENCE_S).stdout)
        assert (said["EnableIPv6"], said["IPv6Network"]) == (True, str(OVERLAY_V6))
        assert said.get("EnableIPv4", True) == (4 in lab.plan.versions)
        assert ("Network" in said) == (4 in lab.plan.versions)


def test_a_lost_ping_by_ipv6_is_one() -> None:
    with routed_by_hand("6") as lab:
        first, last = lab.pods()
        last.configure("link set eth0 down")
        assert ping(first, [last.address(6)], timeout_s=0.3) == [None]
