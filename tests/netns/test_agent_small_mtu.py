"""An underlay whose MTU is below what IPv6 needs (1,280 bytes), or goes there and comes back: IPv4 goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import ping_matrix
from tests.support.agents import drops_of, up_with_peers, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS


@pytest.fixture(scope="module")
def duo() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=2)) as lab:
        yield up_with_peers(lab)


def flannel0_mtu(host: Host) -> int:
    (link,) = json.loads(host.run(["ip", "-json", "link", "show", "dev", "flannel0"]).stdout)
    return int(link["mtu"])


def ipv6_of(host: Host) -> tuple[list[str], str]:
    """Return the IPv6 addresses of flannel0, and how the kernel makes one by itself; nothing without IPv6 there."""
    shown = json.loads(host.run(["ip", "-6", "-json", "-detail", "address", "show", "dev", "flannel0"]).stdout or "[]")
    addresses = [item["local"] for link in shown for item in link.get("addr_info", [])]
    (link,) = json.loads(host.run(["ip", "-json", "-detail", "link", "show", "dev", "flannel0"]).stdout)
    return addresses, link.get("inet6_addr_gen_mode", "")


def assert_traffic(lab: Lab) -> None:
    wait_for("traffic", lambda: None not in ping_matrix(lab.pods(), timeout_s=0.5).values())


@pytest.mark.parametrize("underlay", [576, 1280, 1307, 1308, 9000])
def test_any_underlay_mtu_works_from_the_start(underlay: int) -> None:
    with Lab(Plan(fresh_name(), hosts=2, underlay_mtu=underlay)) as lab:
        up_with_peers(lab)
        assert_traffic(lab)
        for host in lab.hosts:
            assert flannel0_mtu(host) == underlay - 28
            assert ipv6_of(host)[0] == []
            assert "not_ipv4" not in drops_of(host, "out")


def test_ipv6_that_the_kernel_starts_anew_is_switched_off_again_however_often(duo: Lab) -> None:
    host = duo.hosts[0]
    for _ in range(5):
        host.configure("link set eth0 mtu 1280")
        wait_for("flannel0 follows", lambda: flannel0_mtu(host) == 1252)
        assert ipv6_of(host) == ([], "")
        host.configure("link set eth0 mtu 1500")
        wait_for("flannel0 follows back, without IPv6", lambda: flannel0_mtu(host) == 1472)
        wait_for("without IPv6 addresses", lambda: ipv6_of(host) == ([], "none"))
    assert_traffic(duo)
    assert host.control("/v1/status")["problems"] == []


def test_who_switches_ipv6_on_finds_it_off_again_and_what_others_add_stays(duo: Lab) -> None:
    host = duo.hosts[1]
    host.configure("addr add fe80::7/64 dev flannel0")
    host.configure("link set flannel0 addrgenmode eui64")
    wait_for("it is counted", lambda: host.control("/v1/status")["host_repairs"]["ipv6"] == 1)
    assert ipv6_of(host) == (["fe80::7"], "none")
    host.configure("addr del fe80::7/64 dev flannel0")


def test_an_mtu_without_room_for_a_tunnel_is_degraded_until_it_has_some(duo: Lab) -> None:
    host = duo.hosts[0]
    host.configure("link set eth0 mtu 90")
    try:
        wait_for("it is said", lambda: host.control("/v1/status")["problems"] != [])
        (problem,) = host.control("/v1/status")["problems"]
        assert problem.startswith(
            "the MTU of eth0, 90, leaves no room for a tunnel: raise it; the tunnel keeps its MTU"
        )
        assert host.is_ready()
    finally:
        host.configure("link set eth0 mtu 1500")
    wait_for("nothing is wrong", lambda: host.control("/v1/status")["problems"] == [])
    assert_traffic(duo)


def test_without_ipv6_on_the_host_it_works_all_the_same(duo: Lab) -> None:
    host = duo.hosts[1]
    host.stop_agent()
    host.run(["sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"])
    try:
        host.start_agent()
        host.wait_ready()
        host.configure("link set eth0 mtu 1280", "link set eth0 mtu 1500")
        assert_traffic(duo)
        assert ipv6_of(host)[0] == []
    finally:
        host.run(["sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=0", "net.ipv6.conf.default.disable_ipv6=0"])
    wait_for("still none", lambda: ipv6_of(host) == ([], "none"))
    assert_traffic(duo)
