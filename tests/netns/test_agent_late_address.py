"""Hosts get IPv6 addresses late: who started without one joins by that family; the other one's traffic goes on."""

from __future__ import annotations

import re
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import write_sysctls
from flannel_udp.lab.node import Host, Pod, interface_address
from flannel_udp.lab.plan import OVERLAY, HostSubnet, Plan
from flannel_udp.lab.probe import ping
from flannel_udp.model import Address
from tests.support.agents import Agent, all_reach, log_of, pid_of, unanswered, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

PING_EVERY_S = 0.005
LOST_AT_MOST = 5
"""Of hundreds of pings: nothing is meant to be lost, and a busy machine loses one now and then."""
WAYS = {
    "udp": ("udp",),
    "udp, two workers": ("udp", "--workers=2"),
    "vxlan by the kernel": ("vxlan", "--datapath=kernel"),
    "vxlan in userspace": ("vxlan", "--datapath=userspace"),
    "host-gw": ("host-gw",),
    "alloc": ("alloc",),
}


def plan(backend: str, *args: str, **more: Any) -> Plan:
    config = {"Network": str(OVERLAY), "Backend": {"Type": backend}}
    return Plan(fresh_name(), **{"hosts": 3, "families": "46", "config": config, "agent_args": args, **more})


def underlay(host: Host, version: int) -> str:
    """Return its address on the underlay, as `ip address` is told."""
    return f"{host.underlay_of(version)}/{64 if version == 6 else 24}"


def comes(host: Host, version: int) -> None:
    host.configure(f"address add {underlay(host, version)} dev eth0{' nodad' if version == 6 else ''}")


def goes(host: Host, version: int) -> None:
    host.configure(f"address del {underlay(host, version)} dev eth0")


def start_without(host: Host, version: int) -> None:
    goes(host, version)
    host.start_agent()
    host.wait_ready()
    host.attach_pods()


def attach_late(host: Host, version: int) -> dict[Pod, Address]:
    """Give the pods of a host the addresses of the family that it joins by now; return them."""
    subnet = host.subnet_of(version)
    assert subnet is not None
    part = HostSubnet(subnet, host.mtu or 0)
    host.configure(f"address add {interface_address(part.gateway, subnet)} dev cni0")
    found = {pod: part.pod_address(pod.name) for pod in host.pods}
    for pod, address in found.items():
        pod.configure(
            f"address add {interface_address(address, subnet)} dev eth0", f"route add default via {part.gateway}"
        )
    return found


def answers(pod: Pod, address: Address) -> bool:
    return pod.run(["ping", "-c1", "-W1", str(address)], check=False).returncode == 0


@contextmanager
def pinged(*ways: tuple[Pod, Address]) -> Iterator[list[tuple[int, int]]]:
    """Ping all the time inside the block; then what is yielded has how many were sent and lost, one pair a way.

    What was sent after the last answer was on its way when that ended.
    """
    results: list[tuple[int, int]] = []
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in ways]  # a pipe would be full in seconds
        running = [
            pod.popen(["ping", "-i", str(PING_EVERY_S), str(address)], stdout=output)
            for (pod, address), output in zip(ways, outputs, strict=True)
        ]
        try:
            yield results
        finally:
            for process in running:
                process.send_signal(signal.SIGINT)
            for process, output in zip(running, outputs, strict=True):
                process.wait(PATIENCE_S)
                output.seek(0)
                answered = {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", output.read())}
                results.append((max(answered), max(answered) - len(answered)))


def key_of(host: Host) -> str:
    key: str = host.control("/v1/status")["lease"]["key"]
    return key


def joined(host: Host, version: int) -> bool:
    status = host.control("/v1/status")
    env = {4: "FLANNEL_SUBNET", 6: "FLANNEL_IPV6_SUBNET"}[version]
    return not status["problems"] and status["ready"] and env in host.subnet_file.read_text()


@pytest.mark.parametrize(
    ("way", "registry"), [*((way, "file") for way in WAYS), ("udp", "etcd"), ("vxlan by the kernel", "etcd")]
)
def test_an_ipv6_address_that_comes_late_is_joined_by_and_no_ipv4_packet_is_lost(
    way: str, registry: str, record_property: Callable[[str, object], None]
) -> None:
    backend, *args = WAYS[way]
    with Lab(plan(backend, *args, registry=registry, agents=("h1", "h2"))) as lab:
        h1, _, h3 = lab.hosts
        start_without(h3, 6)
        first, late = h1.pods[0], h3.pods[0]
        carries = backend != "alloc"
        if carries:
            wait_for("IPv4", lambda: all_reach(lab, 4))
        before, pid, mtu = key_of(h3), pid_of(h3), h3.mtu
        (lack,) = h3.control("/v1/status")["problems"]
        assert lack == (
            "interface eth0 has no IPv6 address: this host takes no part in the overlay by IPv6 until it gets one"
        )
        with pinged(*([(first, late.ip), (late, first.ip)] if carries else [])) as counted:
            comes(h3, 6)
            took_s = wait_for("joined", lambda: joined(h3, 6))
            addresses = attach_late(h3, 6)
            if carries:
                wait_for("IPv6 there", lambda: answers(first, addresses[late]))
                wait_for("IPv6 back", lambda: answers(late, first.address(6)))
            goes(h3, 6)
            wait_for("its loss is told", lambda: "no IPv6 traffic" in str(h3.control("/v1/status")["problems"]))
            comes(h3, 6)
            wait_for("it is back", lambda: not h3.control("/v1/status")["problems"])
            if carries:
                wait_for("IPv6 once more", lambda: answers(first, addresses[late]) and answers(late, first.address(6)))
        record_property("figure", f"{way}, {registry}: {took_s:.1f} s; sent and lost: {counted}")
        assert all(lost <= LOST_AT_MOST for _, lost in counted)
        assert (pid_of(h3), h3.mtu, key_of(h3).partition("&")[0]) == (pid, mtu, before)
        status = h3.control("/v1/status")
        assert (status["public_ipv6"], status["ipv6_subnet"]) == (str(h3.underlay_of(6)), str(h3.subnet_of(6)))
        assert key_of(h3).replace("-64", "/64").endswith(f"&{h3.subnet_of(6)}")
        assert not [line for line in log_of(h1) if "is ignored" in line or "hold one subnet" in line]


def test_an_ipv6_address_that_stays_tentative_costs_ipv4_nothing_and_is_joined_by_when_it_is_checked() -> None:
    with Lab(plan("udp", hosts=2, agents=("h1",))) as lab:
        h1, h2 = lab.hosts
        goes(h2, 6)
        write_sysctls(h2.namespace, {"ipv6/conf/all/accept_dad": 1, "ipv6/conf/eth0/accept_dad": 1})
        # As behind a switch that wants 802.1X: nothing is sent there yet (RFC 2863's dormant).
        h2.configure("link set eth0 down mode dormant", "link set eth0 up", f"address add {underlay(h2, 6)} dev eth0")
        h2.start_agent()
        wait_for("the reason", lambda: "is tentative" in str(h2.control("/v1/status")["last_errors"]))
        h2.wait_ready()
        h2.attach_pods()
        wait_for("IPv4", lambda: all_reach(lab, 4))
        h2.configure("link set eth0 mode default state up")
        wait_for("joined", lambda: joined(h2, 6))
        addresses = attach_late(h2, 6)
        wait_for("IPv6", lambda: answers(h1.pods[0], addresses[h2.pods[0]]))
        assert unanswered(lab.pods(), 4) == []


@pytest.mark.parametrize("way", ["udp", "vxlan by the kernel", "host-gw"])
def test_an_ipv4_address_that_comes_late_is_joined_by_and_no_ipv6_packet_is_lost(
    way: str, record_property: Callable[[str, object], None]
) -> None:
    backend, *args = WAYS[way]
    with Lab(plan(backend, *args, agents=("h1", "h2"))) as lab:
        h1, _, h3 = lab.hosts
        start_without(h3, 4)
        first, late = h1.pods[0], h3.pods[0]
        wait_for("IPv6", lambda: all_reach(lab, 6))
        before = key_of(h3)
        assert before.startswith("0.0.0.0-0&")
        with pinged((first, late.address(6)), (late, first.address(6))) as counted:
            comes(h3, 4)
            wait_for("joined", lambda: joined(h3, 4))
            addresses = attach_late(h3, 4)
            wait_for("IPv4 there", lambda: answers(first, addresses[late]))
            wait_for("IPv4 back", lambda: answers(late, first.ip))
        record_property("figure", f"{way}: sent and lost: {counted}")
        assert all(lost <= LOST_AT_MOST for _, lost in counted)
        assert key_of(h3).partition("&")[2] == before.partition("&")[2]


@contextmanager
def port_in_use(host: Host, address: Address, port: int) -> Iterator[None]:
    """Have another program receive there."""
    with host.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as udp:
        udp.bind((str(address), port))
        yield


@pytest.mark.parametrize(("way", "port"), [("udp", 8285), ("vxlan by the kernel", 8472), ("vxlan in userspace", 8472)])
@pytest.mark.parametrize("version", [4, 6])
def test_what_keeps_one_familys_port_costs_the_other_nothing_and_is_joined_by_when_it_goes(
    way: str, port: int, version: int
) -> None:
    backend, *args = WAYS[way]
    other = 10 - version
    with Lab(plan(backend, *args, hosts=2, agents=("h1",))) as lab:
        h1, h2 = lab.hosts
        with port_in_use(h2, h2.underlay_of(version), port):
            h2.start_agent()
            h2.wait_ready()
            wait_for("it is noted", lambda: h2.control("/v1/status")["problems"] != [])
            (fault,) = h2.control("/v1/status")["problems"]
            assert fault.startswith(f"no IPv{version} traffic (trying again): ")
            assert "in use" in fault
            assert str(port) in fault
            h2.attach_pods()
            wait_for(f"IPv{other}", lambda: all_reach(lab, other))
            pid = pid_of(h2)
            assert len([line for line in log_of(h2) if line.startswith("degraded: ")]) == 1
        wait_for("joined", lambda: joined(h2, version))
        addresses = attach_late(h2, version)
        wait_for("it travels", lambda: answers(h1.pods[0], addresses[h2.pods[0]]))
        assert unanswered(lab.pods(), other) == []
        assert pid_of(h2) == pid


@pytest.mark.parametrize("way", ["udp", "vxlan by the kernel"])
@pytest.mark.parametrize("version", [4, 6])
def test_of_a_family_that_came_late_icmp_errors_are_heard(way: str, version: int) -> None:
    backend, *args = WAYS[way]
    with Lab(plan(backend, *args, hosts=2, agents=("h2",))) as lab:
        h1, h2 = lab.hosts
        start_without(h1, version)
        comes(h1, version)
        wait_for("joined", lambda: joined(h1, version))
        addresses = attach_late(h1, version)
        (pod,), (peer,) = h1.pods, h2.pods
        wait_for("it travels", lambda: answers(peer, addresses[pod]))
        assert h1.control("/v1/status")["icmp_errors"] == 0
        h2.kill_agent()
        if way == "vxlan by the kernel":
            h2.configure("link del flannel.1", "link del flannel-v6.1")  # they receive without it

        def heard() -> bool:
            answers(pod, peer.address(version))
            rows = {row["public_ip"]: row for row in h1.control("/v1/peers")}
            return "port unreachable" in (rows[str(h2.underlay_of(version))]["error"] or "")

        wait_for("what the underlay says is told", heard)
        assert h1.control("/v1/status")["icmp_errors"] > 0


def test_where_no_familys_port_can_be_had_the_agent_ends_with_one_line() -> None:
    with Lab(plan("udp", hosts=1, pods=0, agents=())) as lab:
        (h1,) = lab.hosts
        with port_in_use(h1, h1.underlay_of(4), 8285), port_in_use(h1, h1.underlay_of(6), 8285), Agent(h1) as agent:
            assert agent.exit_code() == 1
            assert "192.0.2.1" in agent.said()[-1]


def take_over(host: Host) -> Agent:
    """Start an agent that takes over, and return it when it carries packets."""
    old = pid_of(host)
    agent = Agent(host, "--takeover", *host.plan.agent_args)
    agent.wait_for_take_over(old)
    return agent


@pytest.mark.parametrize("way", ["udp", "vxlan in userspace"])
def test_a_take_over_goes_on_with_the_family_that_there_is_and_hands_on_the_one_that_came(way: str) -> None:
    backend, *args = WAYS[way]
    with Lab(plan(backend, *args, hosts=2, agents=("h1",))) as lab, ExitStack() as ends:
        h1, h2 = lab.hosts
        with port_in_use(h2, h2.underlay_of(6), {"udp": 8285, "vxlan": 8472}[backend]):
            h2.start_agent()
            h2.wait_ready()
            h2.attach_pods()
            wait_for("IPv4", lambda: all_reach(lab, 4))
            ends.enter_context(take_over(h2))
            assert unanswered(lab.pods(), 4) == []
        wait_for("joined", lambda: joined(h2, 6))
        addresses = attach_late(h2, 6)
        wait_for("IPv6", lambda: answers(h1.pods[0], addresses[h2.pods[0]]))
        last = ends.enter_context(take_over(h2))
        assert ping(h1.pods[0], [addresses[h2.pods[0]]], PATIENCE_S) != [None]
        assert unanswered(lab.pods(), 4) == []
        assert last.stop() == 0


@pytest.mark.parametrize("way", ["udp", "vxlan by the kernel", "host-gw"])
def test_a_host_that_restarts_before_its_ipv6_address_is_there_has_its_former_subnets_all_the_time(way: str) -> None:
    backend, *args = WAYS[way]
    with Lab(plan(backend, *args, hosts=2)) as lab:
        h2 = lab.hosts[1]
        wait_for("IPv6", lambda: all_reach(lab, 6))
        key, env = key_of(h2), h2.subnet_file.read_text()
        h2.stop_agent()
        goes(h2, 6)
        h2.start_agent()
        h2.wait_ready()
        wait_for("IPv4", lambda: all_reach(lab, 4))
        assert (key_of(h2), h2.subnet_file.read_text()) == (key, env)
        comes(h2, 6)
        wait_for("IPv6 again", lambda: all_reach(lab, 6))
        wait_for("all is told", lambda: joined(h2, 6))
        assert unanswered(lab.pods(), 4) == []
        assert (key_of(h2), h2.subnet_file.read_text()) == (key, env)
