"""VXLAN in user space with IPv6, beside IPv4 and alone, among the kernel's by our agent and by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Network, IPv6Network
from itertools import permutations
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.model import Prefix, Subnet
from tests.support.agents import (
    Agent,
    command_json,
    command_line,
    links_of,
    pid_of,
    up_with_peers,
    wait_for,
    wait_for_peers,
    wait_for_pings,
)
from tests.support.by_hand import by_hand
from tests.support.by_hand_vxlan import join_by_hand_dual
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.systemd import Systemd
from tests.support.transfer import Transfer

pytestmark = NEEDS_NETNS

CONFIG = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
BY_US, BY_KERNEL, WORKERS = "--datapath=userspace", "--datapath=kernel", "--workers=2"
DEVICES = {4: "flannel.1", 6: "flannel-v6.1"}
MTU = 1430
TRANSFER_BYTES = 2_000_000
BY_HAND: dict[int, Prefix] = {4: IPv4Network("10.244.200.0/24"), 6: IPv6Network("fd00:10:244:200::/64")}
"""Beyond the first 100, of which an agent picks one."""


def key_of(host: Host) -> str:
    v4, v6 = (str(part).replace("/", "-") if (part := host.subnet_of(v)) else "0.0.0.0-0" for v in (4, 6))
    return f"{v4}&{v6}"


def value_of(lab: Lab, host: Host) -> str:
    return by_hand(lab).subnets()[key_of(host)]


def macs_in(value: str) -> dict[str, str]:
    said = json.loads(value)
    return {key: said[key]["VtepMAC"] for key in ("BackendData", "BackendV6Data") if key in said}


# Three kinds of VXLAN hosts


@pytest.fixture(scope="module", params=["46", "6"], ids=["both", "IPv6 alone"])
def mixed(request: pytest.FixtureRequest, needs_etcd: None) -> Iterator[Lab]:
    """h1 is the kernel's by hand, h2 our packet path, h3 the kernel's by our agent."""
    plan = Plan(
        *(fresh_name(), 3),
        registry="etcd",
        families=request.param,
        config=CONFIG,
        agents=("h2", "h3"),
        host_args={"h2": (BY_US,), "h3": (BY_KERNEL,)},
    )
    with Lab(plan) as lab:
        h1, *ours = lab.hosts
        wait_for_peers(ours)
        join_by_hand_dual(h1, Subnet.made_of([BY_HAND[version] for version in plan.versions]))
        for host in ours:
            host.wait_peers({BY_HAND[version] for version in plan.versions})
        yield lab


def test_all_pods_reach_all_by_each_family(mixed: Lab) -> None:
    wait_for_pings(mixed)


def test_every_byte_of_tcp_arrives_each_way_by_each_family(mixed: Lab) -> None:
    pods = mixed.pods()
    for version in mixed.plan.versions:
        for source, target in permutations(pods, 2):
            with Transfer(source, target, TRANSFER_BYTES, version=version):
                pass


def test_etcd_holds_flannels_values_byte_for_byte(mixed: Lab) -> None:
    for host in mixed.hosts[1:]:
        data = "".join(
            f',"{key}":{{"VNI":1,"VtepMAC":"{macs_in(value_of(mixed, host))[key]}"}}'
            for key, version in (("BackendData", 4), ("BackendV6Data", 6))
            if version in mixed.plan.versions
        )
        public_ip = host.underlay if 4 in mixed.plan.versions else "0.0.0.0"
        addresses = f'"PublicIP":"{public_ip}","PublicIPv6":"{host.underlay_of(6)}"'
        assert value_of(mixed, host) == f'{{{addresses},"BackendType":"vxlan"{data}}}'
    said = [mac for host in mixed.hosts for mac in macs_in(value_of(mixed, host)).values()]
    assert len(said) == len(set(said))


def test_each_family_has_its_device_and_status_tells_of_both(mixed: Lab) -> None:
    host, versions = mixed.hosts[1], mixed.plan.versions
    assert links_of(host) == [DEVICES[version] for version in versions]
    for version in versions:
        (link,) = json.loads(host.run(["ip", "-json", "-details", "addr", "show", "dev", DEVICES[version]]).stdout)
        assert (link["mtu"], link["linkinfo"]["info_kind"]) == (MTU, "tun")
        first = str(host.subnet_of(version)).partition("/")[0]
        assert [(at["local"], at["prefixlen"]) for at in link["addr_info"]] == [(first, 32 if version == 4 else 128)]
    status = host.control("/v1/status")
    assert (status["backend"]["datapath"], status["backend"]["why"]) == ("userspace", BY_US)
    assert [status[key] and status[key]["name"] for key in ("tunnel", "ipv6_tunnel")] == [
        DEVICES[version] if version in versions else None for version in (4, 6)
    ]
    wait_for("nothing is wrong", lambda: host.control("/v1/status")["problems"] == [])
    other = mixed.hosts[2]
    shown = command_line(host, "route", "get", str(other.pods[0].address(6))).stdout
    assert f"via [{other.underlay_of(6)}]:8472 dev eth0 tunnel flannel-v6.1" in shown


def test_counters_and_drops_of_both_are_one(mixed: Lab) -> None:
    host = mixed.hosts[1]
    wanted = {4: "10.244.0.9", 6: "fd00:10:244:ffff::1"}
    wait_for_pings(mixed)
    for version in mixed.plan.versions:
        host.pods[0].run(["ping", "-c1", "-W1", wanted[version]], check=False)

    def dropped() -> set[str]:
        rows = host.control("/v1/status")["last_dropped"].get("no_route", [])
        return {row["destination"] for row in rows}

    wait_for("they are dropped", lambda: {wanted[version] for version in mixed.plan.versions} <= dropped())
    status = host.control("/v1/status")
    assert status["counters"]["out"]["drops"]["no_route"] >= len(mixed.plan.versions), status["counters"]
    rows = [row for row in command_json(host, "peers") if row["packets_out"]]
    assert len(rows) == 2 * len(mixed.plan.versions)
    wait_for("the workers' packets are all that left", lambda: all_are_a_workers(host))


def all_are_a_workers(host: Host) -> bool:
    """Tell whether the workers have sent what was sent; an echo of the agent's own may leave between the two counts."""
    status = host.control("/v1/status")
    carried: int = sum(row["packets_out"] for row in status["worker_packets"])
    return carried == int(status["counters"]["out"]["packets"])


# Two that both are our packet path


@pytest.fixture(scope="module", params=["46", "6"], ids=["both", "IPv6 alone"])
def duo(request: pytest.FixtureRequest, needs_etcd: None) -> Iterator[Lab]:
    plan = Plan(fresh_name(), registry="etcd", families=request.param, config=CONFIG, agent_args=(BY_US, WORKERS))
    with Lab(plan) as lab:
        yield up_with_peers(lab)


def test_a_take_over_loses_nothing_by_either_family(duo: Lab) -> None:
    h1, _ = duo.hosts
    p1, p2 = duo.pods()
    value, old = value_of(duo, h1), pid_of(h1)
    with ExitStack() as running:
        flows = [
            running.enter_context(Flow(*ends, 0.002, version))
            for version in duo.plan.versions
            for ends in ((p1, p2), (p2, p1))
        ]
        for flow in flows:
            flow.wait_for_one_sent_from_now()
        with Agent(h1, "--takeover", BY_US, WORKERS) as agent:
            agent.wait_for_take_over(old)
            for flow in flows:
                flow.wait_for_one_sent_from_now()
                flow.end()
            assert value_of(duo, h1) == value
            assert agent.stop() == 0
    assert [flow.lost for flow in flows] == [0] * len(flows)
    wait_for("its devices are gone", lambda: links_of(h1) == [])
    h1.start_agent()
    h1.wait_ready()
    assert value_of(duo, h1) == value


def test_the_sockets_of_ipv6_follow_its_address_and_the_macs_stay(duo: Lab) -> None:
    h1, _ = duo.hosts
    macs, at = macs_in(value_of(duo, h1)), "/64 dev eth0"
    try:
        h1.configure(f"addr add 2001:db8::77{at} nodad", f"addr del 2001:db8::1{at}")
        wait_for("the new address", lambda: '"PublicIPv6":"2001:db8::77"' in value_of(duo, h1))
        wait_for_pings(duo)
    finally:
        h1.configure(f"addr add 2001:db8::1{at} nodad", f"addr del 2001:db8::77{at}")
    wait_for("the former address", lambda: '"PublicIPv6":"2001:db8::1"' in value_of(duo, h1))
    assert macs_in(value_of(duo, h1)) == macs
    wait_for_pings(duo)


def test_a_smaller_underlay_is_followed_by_both_devices(duo: Lab) -> None:
    h1, _ = duo.hosts

    def mtus() -> set[int]:
        links = json.loads(h1.run(["ip", "-json", "link"]).stdout)
        return {link["mtu"] for link in links if link["ifname"] in DEVICES.values()}

    for underlay in (1400, 1500):
        h1.configure(f"link set eth0 mtu {underlay}")
        wait_for("the devices follow", lambda mtu=underlay - 70: mtus() == {mtu})  # type: ignore[misc]
        wait_for("so does subnet.env", lambda mtu=underlay - 70: f"FLANNEL_MTU={mtu}\n" in h1.subnet_file.read_text())  # type: ignore[misc]


def test_a_deleted_device_comes_back_with_the_same_mac(duo: Lab) -> None:
    h1, _ = duo.hosts
    value = value_of(duo, h1)
    before = h1.control("/v1/status")["host_repairs"]["tunnel"]
    h1.configure("link del flannel-v6.1")
    wait_for("another device", lambda: h1.control("/v1/status")["host_repairs"]["tunnel"] > before)
    wait_for_pings(duo)
    assert value_of(duo, h1) == value


def test_what_the_kernels_vxlan_left_goes_and_leaves_its_macs_and_the_other_way_round(duo: Lab) -> None:
    h1, _ = duo.hosts
    value = value_of(duo, h1)
    devices = [DEVICES[version] for version in duo.plan.versions]
    for datapath, kind in ((BY_KERNEL, "vxlan"), (BY_US, "tun")):
        h1.stop_agent()
        h1.start_agent(datapath)
        h1.wait_ready()
        for device in devices:
            (link,) = json.loads(h1.run(["ip", "-json", "-details", "link", "show", "dev", device]).stdout)
            assert link["linkinfo"]["info_kind"] == kind
        assert value_of(duo, h1) == value
        wait_for_pings(duo)


def test_a_foreign_device_on_ipv6s_port_is_named_and_where_ipv4_is_off_ipv4s_port_is_anybodys(duo: Lab) -> None:
    h1, _ = duo.hosts
    h1.stop_agent()
    wait_for("its devices are gone", lambda: links_of(h1) == [])
    h1.configure("link add vx7 type vxlan id 7 dev eth0 local 2001:db8::1 dstport 8472", "link set vx7 up")
    try:
        with Agent(h1, BY_US) as agent:
            why = "UDP port 8472 is in use by the kernel's VXLAN device vx7: remove it with 'ip link del vx7'"
            agent.wait_for_line(why)
            if 4 in duo.plan.versions:  # whose packets travel meanwhile
                agent.wait_ready()
                wait_for("it is named", lambda: any(why in text for text in h1.control("/v1/status")["problems"]))
                assert agent.stop() == 0
            else:
                assert agent.exit_code() == 1
        wait_for("its devices are gone", lambda: links_of(h1) == [])
    finally:
        h1.configure("link del vx7")
    if 4 not in duo.plan.versions:
        h1.configure("link add vx4 type vxlan id 4 dev eth0 local 192.0.2.1 dstport 8472", "link set vx4 up")
    h1.start_agent()
    h1.wait_ready()
    wait_for_pings(duo)


def test_under_systemd_devices_and_sockets_of_both_live_through_a_restart(duo: Lab, tmp_path: Path) -> None:
    h1, _ = duo.hosts
    h1.stop_agent()
    value = value_of(duo, h1)
    names = {
        4: ["icmp", "tun-0", "tun-1", "vxlan-0", "vxlan-1"],
        6: ["icmp6", "tun6-0", "tun6-1", "vxlan6-0", "vxlan6-1"],
    }
    with Systemd(tmp_path) as systemd:
        found = []
        for number in range(2):
            with systemd.run(h1, BY_US, WORKERS) as agent:
                wait_for("ready", systemd.is_ready)
                systemd.wait_stored(sorted(name for version in duo.plan.versions for name in names[version]))
                links = json.loads(h1.run(["ip", "-json", "link"]).stdout)
                found.append({link["ifname"]: link["ifindex"] for link in links if "flannel" in link["ifname"]})
                if number:
                    agent.wait_for_line(f"going on with {DEVICES[duo.plan.versions[0]]} as the last run left it")
                wait_for_pings(duo)
                assert agent.stop() == 0
        assert found[0] == found[1]
        assert value_of(duo, h1) == value
        with systemd.run(h1, BY_KERNEL) as agent:
            wait_for("ready", systemd.is_ready)
            agent.wait_for_line("what systemd kept from the last run is of no use, opening afresh: ")
            wait_for_pings(duo)
            systemd.wait_stored([])
            assert value_of(duo, h1) == value
            assert agent.stop() == 0
