"""VXLAN through our own packet path: two hosts that look like any VXLAN host to others, and keep who they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping_matrix
from tests.support.agents import (
    Agent,
    Log,
    command_line,
    links_of,
    log_of,
    pid_of,
    remains_of,
    subnet_of,
    unanswered,
    up_with_peers,
    wait_for,
    wait_for_peers,
)
from tests.support.by_hand import by_hand
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.transfer import Transfer

pytestmark = NEEDS_NETNS

BY_US = "--datapath=userspace"
MTU = 1450
TRANSFER_BYTES = 20_000_000
ONCE = "-W20"
"""For `ping`: the one packet must not be lost, and its answer may take as long as a busy machine needs."""


def plan(*agent_args: str, offload: str = "whole", **backend: object) -> Plan:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan", **backend}}
    return Plan(fresh_name(), hosts=2, registry="etcd", config=config, agent_args=(BY_US, *agent_args), offload=offload)


@pytest.fixture(scope="module")
def shared(needs_etcd: None) -> Iterator[Lab]:
    with Lab(plan()) as lab:
        yield lab


@pytest.fixture
def duo(shared: Lab) -> Lab:
    """Two hosts whose agents run and know each other, whatever the test before did to them."""
    for host in shared.hosts:
        if host.agent_pid() is None:
            host.start_agent()
        host.wait_ready()
    return up_with_peers(shared)


def value_of(lab: Lab, host: Host) -> str:
    return by_hand(lab).subnets()[str(subnet_of(host)).replace("/", "-")]


def mac_in(value: str) -> str:
    return str(json.loads(value)["BackendData"]["VtepMAC"])


def end_agent(host: Host) -> None:
    host.stop_agent()
    wait_for("its device is gone", lambda: links_of(host) == [])


# What others see, and the host


def test_pods_and_hosts_reach_each_other(duo: Lab) -> None:
    assert unanswered(duo.pods()) == []
    h1, h2 = duo.hosts
    for source, target in ((h1, h2), (h2, h1)):
        source.run(["ping", "-c1", ONCE, str(target.pods[0].ip)])
        source.run(["ping", "-c1", ONCE, str(subnet_of(target).network_address)])


def test_a_lease_says_what_flannels_says_byte_for_byte(duo: Lab) -> None:
    macs = set()
    for host in duo.hosts:
        value = value_of(duo, host)
        data = r'{"VNI":1,"VtepMAC":"([0-9a-f]{2}(?::[0-9a-f]{2}){5})"}'
        match = re.fullmatch(
            rf'{{"PublicIP":"{host.underlay}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}', value
        )
        assert match is not None, value
        assert int(match[1][:2], 16) & 3 == 2  # locally administered, one host's
        macs.add(match[1])
    assert len(macs) == 2


def test_the_device_has_flannels_name_address_and_mtu(duo: Lab) -> None:
    for host in duo.hosts:
        (link,) = json.loads(host.run(["ip", "-json", "-details", "addr", "show", "dev", "flannel.1"]).stdout)
        addresses = [(a["local"], a["prefixlen"]) for a in link["addr_info"] if a["family"] == "inet"]
        assert addresses == [(str(subnet_of(host).network_address), 32)]
        assert (link["mtu"], link["linkinfo"]["info_kind"]) == (MTU, "tun")
        routes = host.run(["ip", "route", "show", "dev", "flannel.1"]).stdout.splitlines()
        assert [route.strip() for route in routes] == [str(OVERLAY)]
        assert "FLANNEL_MTU=1450\n" in host.subnet_file.read_text()


def test_status_says_who_carries_packets_and_why(duo: Lab) -> None:
    h1 = duo.hosts[0]
    wait_for("nothing is wrong", lambda: h1.control("/v1/status")["problems"] == [])  # an echo that came late, say
    status = h1.control("/v1/status")
    data = {"VNI": 1, "VtepMAC": mac_in(value_of(duo, h1))}
    said = {"type": "vxlan", "port": 8472, "data": data, "datapath": "userspace", "why": BY_US}
    assert status["backend"] == said
    assert status["tunnel"]["name"] == "flannel.1"
    shown = command_line(h1, "status").stdout
    assert f"vxlan, port 8472, VNI 1, VtepMAC {data['VtepMAC']}, userspace (--datapath=userspace)" in shown
    other = duo.hosts[1]
    shown = command_line(h1, "route", "get", str(other.pods[0].ip)).stdout
    assert f"via {other.underlay}:8472 dev eth0 tunnel flannel.1" in shown


def test_the_mtu_is_what_the_headers_leave(duo: Lab) -> None:
    p1, p2 = duo.pods()
    ping_of = ["ping", "-c1", "-M", "do", str(p2.ip), "-s"]
    p1.run([*ping_of, str(MTU - 28), ONCE])
    assert p1.run([*ping_of, str(MTU - 27), "-W2"], check=False).returncode != 0


def test_what_nobody_has_is_refused_at_once(duo: Lab) -> None:
    p1 = duo.pods()[0]
    said = p1.run(["ping", "-c1", ONCE, "10.244.0.9"], check=False).stdout
    assert "Net Unreachable" in said
    assert f"From {subnet_of(duo.hosts[0]).network_address + 1} " in said


@pytest.mark.parametrize("cards", ["whole", "wire"])
def test_every_byte_of_tcp_arrives_both_ways(cards: str, needs_etcd: None) -> None:
    with Lab(plan(offload=cards)) as lab:
        p1, p2 = up_with_peers(lab).pods()
        with Transfer(p1, p2, TRANSFER_BYTES), Transfer(p2, p1, TRANSFER_BYTES):
            pass


def test_several_workers_carry_it_and_hand_it_over(needs_etcd: None) -> None:
    workers = "--workers=2"
    with Lab(plan(workers)) as lab:
        h1 = up_with_peers(lab).hosts[0]
        p1, p2 = lab.pods()
        with Transfer(p1, p2, TRANSFER_BYTES), Transfer(p2, p1, TRANSFER_BYTES):
            pass
        with Flow(p1, p2) as out, Flow(p2, p1) as back, Agent(h1, "--takeover", BY_US, workers) as agent:
            agent.wait_for_line("took over from process ")
            for flow in (out, back):
                flow.wait_for_one_sent_from_now()
                flow.end()
            assert agent.stop() == 0
        assert (out.missing, back.missing) == ([], [])


def test_a_smaller_underlay_is_followed(duo: Lab) -> None:
    h1 = duo.hosts[0]
    for underlay in (1400, 1500):
        h1.configure(f"link set eth0 mtu {underlay}")
        wait_for("device and subnet.env follow", partial(has_mtu, h1, underlay - 50))


def has_mtu(host: Host, mtu: int) -> bool:
    (link,) = json.loads(host.run(["ip", "-json", "link", "show", "flannel.1"]).stdout)
    return bool(link["mtu"] == mtu) and f"FLANNEL_MTU={mtu}\n" in host.subnet_file.read_text()


def test_the_command_that_status_gives_is_right_for_a_name_with_a_dot(duo: Lab) -> None:
    h1 = duo.hosts[0]
    h1.run(["sysctl", "-w", "net/ipv4/conf/flannel.1/forwarding=0"])
    named: list[str] = []

    def find() -> bool:
        named[:] = [line for line in h1.control("/v1/status")["problems"] if "flannel.1 does not forward" in line]
        return bool(named)

    wait_for("it is named", find)
    h1.run(named[0].rpartition(": ")[2].split())
    wait_for("it is mended", lambda: h1.control("/v1/status")["problems"] == [])


# Who we are outlives us


def test_a_take_over_loses_nothing_and_keeps_the_mac(duo: Lab) -> None:
    h1, h2 = duo.hosts
    value, old = value_of(duo, h1), pid_of(h1)
    with Flow(h1.pods[0], h2.pods[0], 0.001) as out, Flow(h2.pods[0], h1.pods[0], 0.001) as back:
        out.wait_for_one_sent_from_now()
        with Agent(h1, "--takeover", BY_US) as agent:
            agent.wait_for_take_over(old)  # which had the device open as well
            back.wait_for_one_sent_from_now()
            out.wait_for_one_sent_from_now()
            out.end()
            back.end()
            assert pid_of(h1) == agent.process.pid
            assert value_of(duo, h1) == value
            assert h1.control("/v1/status")["backend"]["datapath"] == "userspace"
            assert agent.stop() == 0
            assert remains_of(h1) == {"subnet.env"}
    assert (out.missing, back.missing) == ([], [])


@pytest.mark.parametrize("flag", ["--datapath=auto", "--datapath=kernel"])
def test_a_take_over_for_another_datapath_is_refused(duo: Lab, flag: str) -> None:
    h1 = duo.hosts[0]
    old = h1.agent_pid()
    with Agent(h1, "--takeover", flag) as agent:
        assert agent.exit_code() == 1
        wanted = flag.removeprefix("--datapath=")
        assert any(f"its datapath is {wanted}, ours userspace" in line for line in agent.said()), agent.said()
    assert pid_of(h1) == old


def test_a_restart_keeps_subnet_mac_and_value(duo: Lab) -> None:
    h1, h2 = duo.hosts
    subnet, value = subnet_of(h1), value_of(duo, h1)
    log = Log(h2)
    end_agent(h1)
    h1.start_agent()
    h1.wait_ready()
    assert (subnet_of(h1), value_of(duo, h1)) == (subnet, value)
    h1.kill_agent()
    h1.start_agent()
    h1.wait_ready()
    assert (subnet_of(h1), value_of(duo, h1)) == (subnet, value)
    wait_for_peers(duo.hosts)
    assert unanswered(duo.pods()) == []
    assert log.events("peer ") == []


# What is in the way


def test_a_kernel_device_of_an_earlier_run_goes_and_leaves_its_mac(duo: Lab) -> None:
    h1 = duo.hosts[0]
    end_agent(h1)
    mac = "0a:00:00:00:00:07"
    made = f"link add flannel.1 address {mac} type vxlan id 1 local {h1.underlay} dev eth0 dstport 8472 nolearning"
    h1.configure(made, "link set flannel.1 up")
    log = Log(h1)
    h1.start_agent()
    h1.wait_ready()
    assert log.lines("removed the kernel's flannel.1, which an earlier run left and which was in the way")
    assert mac_in(value_of(duo, h1)) == mac
    wait_for("pods reach each other", lambda: None not in ping_matrix(duo.pods()).values())


def test_a_kernel_device_that_may_be_anybodys_is_named(duo: Lab) -> None:
    h1 = duo.hosts[0]
    end_agent(h1)
    by_hand(duo).delete(str(subnet_of(h1)).replace("/", "-"))
    h1.configure("link add flannel.1 type vxlan id 1 dev eth0 dstport 8472", "link set flannel.1 up")
    try:
        with Agent(h1, BY_US) as agent:
            assert agent.exit_code() == 1
            said = agent.said()[-1]
        assert "flannel.1 is a VXLAN device of the kernel, and nothing says that it is flannel's: remove it" in said
        assert "flannel.1" in links_of(h1)
    finally:
        h1.configure("link del flannel.1")


def test_a_foreign_device_on_the_port_is_named(duo: Lab) -> None:
    h1 = duo.hosts[0]
    end_agent(h1)
    h1.configure("link add vx7 type vxlan id 7 dev eth0 dstport 8472", "link set vx7 up")
    try:
        with Agent(h1, BY_US) as agent:
            assert agent.exit_code() == 1
            said = agent.said()[-1]
        assert "UDP port 8472 is in use by the kernel's VXLAN device vx7: remove it with 'ip link del vx7'" in said
    finally:
        h1.configure("link del vx7")


def test_a_device_of_our_name_that_is_no_tun_is_named(duo: Lab) -> None:
    h1 = duo.hosts[0]
    end_agent(h1)
    h1.configure("link add flannel.1 type bridge")
    try:
        with Agent(h1, BY_US) as agent:
            assert agent.exit_code() == 1
            assert "flannel.1 is another program's, or no TUN device of ours" in agent.said()[-1]
    finally:
        h1.configure("link del flannel.1")


def test_a_deleted_device_comes_back_under_its_name_with_the_same_mac(duo: Lab) -> None:
    h1 = duo.hosts[0]
    value, index = value_of(duo, h1), _index(h1)
    h1.configure("link del flannel.1")
    wait_for("another device", lambda: _index(h1) not in (None, index))
    wait_for("pods reach each other", lambda: None not in ping_matrix(duo.pods()).values())
    assert value_of(duo, h1) == value


def _index(host: Host) -> int | None:
    found = host.run(["ip", "-json", "link", "show", "flannel.1"], check=False).stdout
    return int(json.loads(found)[0]["ifindex"]) if found.startswith("[") else None


# What others' leases say


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("{}", "its BackendData has no VtepMAC"),
        ('{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}', "its VtepMAC ff:ff:ff:ff:ff:ff is a group's address, no host's"),
        ('"x"', "its BackendData 'x' is no object with a VtepMAC"),
    ],
)
def test_a_lease_that_says_no_usable_mac_costs_nobody_else(duo: Lab, data: str, why: str) -> None:
    h1, key = duo.hosts[0], "10.244.250.0-24"
    log = Log(h1)
    by_hand(duo).put(key, f'{{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}')
    try:
        wait_for("it is named", lambda: log.lines(f"entry {key!r} is ignored: {why}") != [])
        assert unanswered(duo.pods()) == []
    finally:
        by_hand(duo).delete(key)


def test_two_hosts_with_one_mac_are_named(duo: Lab) -> None:
    h1, h2 = duo.hosts
    mac, key = mac_in(value_of(duo, h2)), "10.244.251.0-24"
    data = f'{{"VNI":1,"VtepMAC":"{mac}"}}'
    by_hand(duo).put(key, f'{{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}')
    try:
        named = f"peers {h2.underlay} and 192.0.2.9 have one VtepMAC, {mac}"
        wait_for("both are named", lambda: any(named in line for line in h1.control("/v1/status")["problems"]))
        said = Log(h2)
        wait_for("ours is refused", lambda: any(f"its VtepMAC {mac} is ours" in line for line in log_of(h2)))
        assert said.lines("added: 10.244.251.0/24") == []
    finally:
        by_hand(duo).delete(key)
