from __future__ import annotations

import dataclasses
import json
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.lab import plan as plan_module
from flannel_udp.lab.plan import HostSubnet, Plan, lab_of_namespace
from flannel_udp.lab.sites import Cable, Router

R1 = {"r1": Router()}
LAB_NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True)


@given(name=LAB_NAMES, host=st.integers(1, 200), router=st.integers(1, 50), pod=st.integers(1, 250))
def test_every_namespace_of_a_lab_leads_back_to_that_lab_and_no_other(
    name: str, host: int, router: int, pod: int
) -> None:
    plan = Plan(name)
    for node in (("net",), (f"r{router}",), (f"h{host}",), (f"h{host}", f"p{pod}")):
        assert lab_of_namespace(plan.namespace(*node)) == name


@pytest.mark.parametrize("namespace", ["fu-", "fu-lab", "fu-lab-x1", "xfu-lab-h1", "fu--net", "fu-lab-h1-p"])
def test_a_foreign_namespace_belongs_to_no_lab(namespace: str) -> None:
    assert lab_of_namespace(namespace) is None


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "-a", "A", "a b", "a" * 33, "a\n"])
def test_a_name_that_is_none_is_refused_before_it_becomes_a_path(name: str) -> None:
    with pytest.raises(UsageError, match="no name for a lab"):
        Plan(name)
    with pytest.raises(UsageError, match="no name for a lab"):
        Plan.load(name)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Plan(hosts=0), "0 hosts: give 1 to 200"),
        (lambda: Plan(hosts=201), "201 hosts: give 1 to 200"),
        (lambda: Plan(pods=-1), "-1 pods a host: give 0 to 250"),
        (lambda: Plan(underlay_mtu=100), "100 bytes of underlay MTU: give 576"),
        (lambda: Plan(registry="consul"), "unknown lab registry 'consul'"),
        (lambda: Plan(families="64"), "unknown families '64': use 4, 6, 46"),
        (lambda: Plan(families="46", underlay_mtu=1279), "IPv6 needs an underlay MTU of 1280 bytes at least, not 1279"),
        (lambda: Plan(offload="none"), "unknown offload 'none'"),
        (lambda: Plan(agents=("h3",)), "an agent is asked for on h3, which is none of the lab's 2 hosts"),
        (lambda: Plan(host_args={"h3": ()}), "arguments are given for h3, which is none of the lab's 2 hosts"),
        (lambda: Plan(subnets={"h3": ()}), "a subnet is given to h3, which is none of the lab's 2 hosts"),
        (lambda: Plan(cables={"h3": Cable()}), "h3, with a link of its own kind, is neither a host nor a router"),
        (
            lambda: Plan(routers=R1, behind={"h3": "r1"}),
            "h3, behind a router, is neither a host nor",
        ),
        (lambda: Plan(behind={"h2": "r1"}), "h2 is behind r1, which is no router: there is none"),
        (lambda: Plan(routers=R1, behind={"h2": "r11"}), "r11, which is no router: there are r1: did you mean r1?"),
        (lambda: Plan(routers={"paris": Router()}), "paris is no name for a router: use r1 to r50"),
        (lambda: Plan(routers={"r51": Router()}), "r51 is no name for a router: use r1 to r50"),
        (lambda: Plan(routers=R1, behind={"r1": "r1"}), "the routers go in a circle: r1 behind r1"),
        (lambda: Plan(routers={"r1": Router(mtu=100)}, behind={"h1": "r1"}), "the link of h1 cannot carry 100 bytes"),
        (lambda: Plan(cables={"h1": Cable(mtu=1000)}, families="6"), "h1 cannot carry 1000 bytes: give 1280 to 65535"),
        (lambda: Plan(cables={"h1": Cable(loss=0.1, mtu=65_535)}), "h1 cannot carry 65535 bytes: give 576 to 65521"),
        (lambda: Plan(routers={"r1": Router(mtu=1000)}, families="6"), "the network behind r1 cannot carry 1000 bytes"),
        (lambda: Plan(routers={"r1": Router(forward="h1")}), "r1 passes nothing on to h1 without NAT"),
        (lambda: Plan(routers={"r1": Router(nat=True, forward="h1")}), "to h1, which is no host behind it"),
        (
            lambda: Plan(
                config={"Backend": {"Type": "ipip"}},
                routers={"r1": Router(nat=True, forward="h1")},
                behind={"h1": "r1"},
            ),
            "r1 has no port to pass on to h1: only udp and vxlan by IPv4 have one",
        ),
    ],
)
def test_a_plan_that_cannot_be_built_says_why(wrong: object, message: str) -> None:
    assert callable(wrong)
    with pytest.raises(UsageError, match=message):
        wrong()


def test_hosts_and_pods_are_numbered_from_one_and_addressed_by_their_number() -> None:
    plan = Plan(hosts=3, pods=2)
    assert plan.host_names == ["h1", "h2", "h3"]
    assert plan.pod_names == ["p1", "p2"]
    assert plan.underlay("h3") == IPv4Address("192.0.2.3")
    host = HostSubnet(IPv4Network("10.244.7.0/24"), 1472)
    assert host.gateway == IPv4Address("10.244.7.1")
    assert host.pod_address("p2") == IPv4Address("10.244.7.3")


def test_a_subnet_holds_its_pods_and_never_hands_out_the_broadcast_address() -> None:
    small = HostSubnet(IPv4Network("10.244.7.0/30"), 1472)
    assert small.pod_address("p1") == IPv4Address("10.244.7.2")
    with pytest.raises(FlannelError, match=r"10\.244\.7\.0/30 has no address left for p2"):
        small.pod_address("p2")


def test_a_saved_plan_is_read_back_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "STATE_DIR", tmp_path)
    plan = Plan(
        "x",
        hosts=3,
        registry="etcd",
        config={"Network": "10.1.0.0/16", "Backend": {"Type": "udp", "Port": 9000}},
        reservations={"10.1.9.0/24": "192.0.2.3"},
        agents=("h1", "h2"),
        agent_args=("--source-check=off",),
        host_args={"h2": ("--workers=2",)},
        routers={"r1": Router(nat=True, forward="h3"), "r2": Router(mtu=1400)},
        behind={"h3": "r1", "r1": "r2"},
        cables={"h3": Cable(rate=10_000_000, mtu=1300), "r1": Cable(delay_ms=40, loss=0.05)},
        seed=7,
        offload="wire",
        families="46",
        subnets={"h1": ("10.1.1.0/24", "fd00:10:244:1::/64")},
    )
    plan.state.mkdir()
    plan.save()
    assert Plan.load("x") == plan
    assert (plan.backend, plan.port) == ("udp", 9000)


@pytest.mark.parametrize(
    ("families", "given", "completed"),
    [
        ("4", {"Network": "10.244.0.0/16"}, {"Network": "10.244.0.0/16"}),
        ("4", {}, {}),
        (
            "46",
            {"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}},
            {
                "Network": "10.1.0.0/16",
                "Backend": {"Type": "vxlan"},
                "EnableIPv6": True,
                "IPv6Network": "fd00:10:244::/48",
            },
        ),
        (
            "6",
            {"Network": "10.244.0.0/16"},
            {"EnableIPv6": True, "IPv6Network": "fd00:10:244::/48", "EnableIPv4": False},
        ),
        (
            "46",
            {"Network": "10.1.0.0/16", "enableipv6": False, "ipv6network": "fd00::/56"},
            {"Network": "10.1.0.0/16", "enableipv6": False, "ipv6network": "fd00::/56"},
        ),
    ],
)
def test_the_families_complete_the_configuration_and_overrule_nothing(
    families: str, given: dict[str, object], completed: dict[str, object]
) -> None:
    assert Plan(families=families, config=given).config == completed


def test_a_host_has_the_same_number_in_every_network() -> None:
    plan = Plan(hosts=12, families="46", routers={"r1": Router()}, behind={"h12": "r1"})
    assert [str(plan.underlay_of("h11", version)) for version in plan.versions] == ["192.0.2.11", "2001:db8::b"]
    assert [str(plan.underlay_of("h12", version)) for version in plan.versions] == ["172.16.1.12", "2001:db8:1::c"]
    assert str(plan.gateway("h12", 6)) == "2001:db8:1::fe"
    host = HostSubnet(IPv6Network("fd00:10:244:7::/64"), 1452)
    assert (str(host.gateway), str(host.pod_address("p1"))) == ("fd00:10:244:7::1", "fd00:10:244:7::2")


@pytest.mark.parametrize("config", [{}, {"Backend": None}, {"Backend": {}}, {"Backend": {"Port": 8285}}])
def test_a_lab_whose_configuration_names_no_backend_runs_flannels_default(config: dict[str, object]) -> None:
    assert (Plan(config=config).backend, Plan(config=config).port) == ("udp", 8285)


def test_a_backend_and_its_options_are_known_in_any_case() -> None:
    assert Plan(config={"Backend": {"Type": "Host-GW"}}).backend == "host-gw"
    assert Plan(config={"Backend": {"type": "VXLAN"}}).port == 8472
    assert Plan(config={"Backend": {"type": "vxlan", "port": 4789}}).port == 4789


def test_a_host_behind_a_router_is_on_another_network() -> None:
    plan = Plan(hosts=3, routers={"r1": Router()}, behind={"h3": "r1"})
    assert [str(plan.underlay(host)) for host in plan.host_names] == ["192.0.2.1", "192.0.2.2", "172.16.1.3"]
    assert [str(plan.gateway(host)) for host in ("h1", "h3")] == ["192.0.2.254", "172.16.1.254"]


def test_routers_follow_each_other_and_what_is_behind_them_is_reached_through_the_next_one() -> None:
    plan = Plan(
        hosts=3,
        routers={"r2": Router(), "r1": Router(), "r10": Router(nat=True), "r3": Router(mtu=1400)},
        behind={"r2": "r3", "h2": "r2", "h3": "r10"},
    )
    assert plan.router_names == ["r1", "r3", "r10", "r2"]
    shown = {str(network): via for network, via in plan.routes_on(None, 4).items()}
    assert shown == {"172.16.1.0/24": "r1", "172.16.3.0/24": "r3", "172.16.2.0/24": "r3"}
    assert set(plan.routes_on(None, 6).values()) == {"r1", "r3", "r10"}
    assert [str(plan.underlay_of(name, 4)) for name in ("r1", "r2", "h2")] == [
        "192.0.2.201",
        "172.16.3.202",
        "172.16.2.2",
    ]
    assert [plan.mtu_of(name) for name in ("h1", "r3", "r2", "h2")] == [1500, 1500, 1400, 1500]


def test_behind_a_nat_a_host_has_one_address_for_its_neighbours_and_one_for_all_others() -> None:
    plan = Plan(
        hosts=4,
        routers={"r1": Router(nat=True, forward="h3"), "r2": Router()},
        behind={"r2": "r1", "h2": "r2", "h3": "r1", "h4": "r1"},
    )
    assert [str(plan.source_seen_by(other, "h2", 4)) for other in ("h1", "h3")] == ["192.0.2.201", "172.16.2.2"]
    assert str(plan.source_seen_by("h1", "h3", 4)) == "192.0.2.201"
    assert str(plan.source_seen_by("h3", "h1", 4)) == "192.0.2.1"
    addresses = [ip_address(text) for text in ("192.0.2.1", "192.0.2.201", "172.16.1.4", "192.0.2.99", "::1")]
    assert [plan.host_at(address, "h2") for address in addresses] == ["h1", "h3", "h4", None, None]
    assert [plan.host_at(address, "h1") for address in addresses] == ["h1", "h3", None, None, None]


@pytest.mark.parametrize(
    ("cable", "words"),
    [
        (Cable(), []),
        (Cable(mtu=1400), []),
        (Cable(rate=1_500_000_000, delay_ms=0.5), ["1.5 Gbit/s", "0.5 ms"]),
        (Cable(rate=64_000, loss=0.05), ["64 kbit/s", "5 % lost"]),
        (Cable(rate=10_000_000, delay_ms=40, loss=0.00001), ["10 Mbit/s", "40 ms", "0.001 % lost"]),
    ],
)
def test_a_cable_tells_what_is_worse_than_perfect(cable: Cable, words: list[str]) -> None:
    assert cable.words == words
    assert cable.is_relayed == (len([word for word in words if not word.endswith("/s")]) > 0)


def test_a_plan_of_another_version_is_told_from_one_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "STATE_DIR", tmp_path)
    (tmp_path / "x").mkdir()
    other = {**dataclasses.asdict(Plan("x")), "cables": {"h1": {"jitter_ms": 1}}}
    for kept in ({"name": "x", "routed": []}, other):
        (tmp_path / "x" / "lab.json").write_text(json.dumps(kept))
        with pytest.raises(FlannelError, match="the lab x was made by another version of flannel-udp"):
            Plan.load("x")


def test_a_lab_that_is_not_up_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "STATE_DIR", tmp_path)
    assert Plan.load("x") is None
