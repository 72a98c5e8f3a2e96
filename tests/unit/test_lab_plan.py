from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.lab import plan as plan_module
from flannel_udp.lab.plan import HostSubnet, Plan, lab_of_namespace

LAB_NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True)


@given(name=LAB_NAMES, host=st.integers(1, 250), pod=st.integers(1, 250))
def test_every_namespace_of_a_lab_leads_back_to_that_lab_and_no_other(name: str, host: int, pod: int) -> None:
    plan = Plan(name)
    for node in (("net",), (f"h{host}",), (f"h{host}", f"p{pod}")):
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
        (lambda: Plan(hosts=0), "0 hosts: give 1 to 250"),
        (lambda: Plan(hosts=251), "251 hosts: give 1 to 250"),
        (lambda: Plan(pods=-1), "-1 pods a host: give 0 to 250"),
        (lambda: Plan(underlay_mtu=100), "100 bytes of underlay MTU: give 576"),
        (lambda: Plan(registry="consul"), "unknown lab registry 'consul'"),
        (lambda: Plan(families="64"), "unknown families '64': use 4, 6, 46"),
        (lambda: Plan(families="46", underlay_mtu=1279), "IPv6 needs an underlay MTU of 1280 bytes at least, not 1279"),
        (lambda: Plan(offload="none"), "unknown offload 'none'"),
        (lambda: Plan(agents=("h3",)), "an agent is asked for on h3, which is none of the lab's 2 hosts"),
        (lambda: Plan(host_args={"h3": ()}), "arguments are given for h3, which is none of the lab's 2 hosts"),
        (lambda: Plan(subnets={"h3": ()}), "a subnet is given to h3, which is none of the lab's 2 hosts"),
        (lambda: Plan(rates={"h3": 8_000}), "a rate is given to h3, which is none of the lab's 2 hosts"),
        (lambda: Plan(routed=("h3",)), "a router is asked for before h3, which is none of the lab's 2 hosts"),
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
        routed=("h3",),
        offload="wire",
        families="46",
        subnets={"h1": ("10.1.1.0/24", "fd00:10:244:1::/64")},
        rates={"h3": 10_000_000},
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
    plan = Plan(hosts=12, families="46", routed=("h12",))
    assert [str(plan.underlay_of("h11", version)) for version in plan.versions] == ["192.0.2.11", "2001:db8::b"]
    assert [str(plan.underlay_of("h12", version)) for version in plan.versions] == ["198.51.100.12", "2001:db8:1::c"]
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
    plan = Plan(hosts=3, routed=("h3",))
    assert [str(plan.underlay(host)) for host in plan.host_names] == ["192.0.2.1", "192.0.2.2", "198.51.100.3"]
    assert [str(plan.gateway(host)) for host in ("h1", "h3")] == ["192.0.2.254", "198.51.100.254"]


def test_a_lab_that_is_not_up_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "STATE_DIR", tmp_path)
    assert Plan.load("x") is None
