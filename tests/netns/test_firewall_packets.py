"""Masquerade and forwarding rules under real packets, the same in both dialects.

h1, h2   agents with --ip-masq, a pod each
h3       outside: a host of the underlay that is in no overlay
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host, Pod
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import subnet_of, up_with_peers
from tests.support.firewall import PORT, kernel_listing, shown, source_seen
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

GROUP = "239.1.2.3"
SOURCE_PORT = 40_000
LOST_S = 0.5


@dataclass(frozen=True)
class Scene:
    dialect: str
    h1: Host
    h2: Host
    outside: Host

    @property
    def pod(self) -> Pod:
        return self.h1.pods[0]

    @property
    def remote_pod(self) -> Pod:
        return self.h2.pods[0]

    @property
    def bridge(self) -> str:
        """The address of h1's cni0, which belongs to the overlay."""
        return str(subnet_of(self.h1).network_address + 1)


@pytest.fixture(scope="module", params=["nftables", "iptables"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    config = {"Network": str(OVERLAY), "EnableNFTables": request.param == "nftables"}
    plan = Plan(fresh_name(), hosts=3, agents=("h1", "h2"), config=config, agent_args=("--ip-masq",))
    with Lab(plan) as lab:
        up_with_peers(lab)
        h1, h2, outside = lab.hosts
        for host in (h1, h2):  # everything for the overlay goes through h1, as if h1 were its gateway
            outside.configure(f"route add {subnet_of(host)} via {h1.underlay}")
        yield Scene(request.param, h1, h2, outside)


def test_the_kernel_lists_what_firewall_show_prints_in_the_same_order(scene: Scene) -> None:
    assert kernel_listing(scene.h1, scene.dialect) == shown(scene.h1, scene.dialect)
    assert "asquerade" in shown(scene.h1, scene.dialect).lower()


def test_the_other_dialect_holds_nothing(scene: Scene) -> None:
    other = "iptables" if scene.dialect == "nftables" else "nftables"
    assert kernel_listing(scene.h1, other) == ""


def test_container_runtimes_are_told_that_we_masquerade(scene: Scene) -> None:
    assert "FLANNEL_IPMASQ=true\n" in scene.h1.subnet_file.read_text()


def test_pod_to_pod_keeps_its_source(scene: Scene) -> None:
    seen = source_seen(scene.pod, scene.remote_pod, scene.remote_pod.ip, bind=("", SOURCE_PORT))
    assert seen == (str(scene.pod.ip), SOURCE_PORT)


def test_pod_to_outside_has_the_hosts_address_and_another_port(scene: Scene) -> None:
    seen = {
        source_seen(scene.pod, scene.outside, scene.outside.underlay, bind=("", port))
        for port in range(SOURCE_PORT, SOURCE_PORT + 5)
    }
    assert {address for address, _ in filter(None, seen)} == {str(scene.h1.underlay)}
    ports = {port for _, port in filter(None, seen)}
    # Fully random: of five ports, five others (one in 64 thousand stays by chance, hence not "none in common").
    assert len(ports - set(range(SOURCE_PORT, SOURCE_PORT + 5))) >= 4


def test_outside_to_a_pod_keeps_its_source(scene: Scene) -> None:
    seen = source_seen(scene.outside, scene.pod, scene.pod.ip, bind=("", SOURCE_PORT))
    assert seen == (str(scene.outside.underlay), SOURCE_PORT)


def test_host_to_remote_pod_is_answered_through_the_overlay(scene: Scene) -> None:
    tunnel = str(subnet_of(scene.h1).network_address)
    plain = source_seen(scene.h1, scene.remote_pod, scene.remote_pod.ip)
    assert plain is not None
    assert plain[0] == tunnel
    bound = source_seen(scene.h1, scene.remote_pod, scene.remote_pod.ip, bind=(str(scene.h1.underlay), 0))
    assert bound is not None
    assert bound[0] == tunnel


def test_outside_through_a_host_to_another_hosts_pod_comes_back_through_it(scene: Scene) -> None:
    seen = source_seen(scene.outside, scene.remote_pod, scene.remote_pod.ip)
    assert seen is not None
    assert seen[0] == str(subnet_of(scene.h1).network_address)


def test_multicast_is_not_masqueraded(scene: Scene) -> None:
    with (
        scene.outside.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        scene.h1.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind((GROUP, PORT))
        membership = socket.inet_aton(GROUP) + scene.outside.underlay.packed
        server.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        server.settimeout(PATIENCE_S)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, scene.h1.underlay.packed)
        client.bind((scene.bridge, SOURCE_PORT))
        client.sendto(b"to all", (GROUP, PORT))
        assert server.recvfrom(100) == (b"to all", (scene.bridge, SOURCE_PORT))


@pytest.mark.parametrize(("mark", "masqueraded"), [(0x4000, False), (0xC001, False), (0x8000, True), (0, True)])
def test_what_kube_proxy_marked_is_left_to_it(scene: Scene, mark: int, masqueraded: bool) -> None:
    seen = source_seen(scene.h1, scene.outside, scene.outside.underlay, bind=(scene.bridge, 0), mark=mark)
    assert seen is not None
    assert seen[0] == (str(scene.h1.underlay) if masqueraded else scene.bridge)


def test_the_forwarding_rules_accept_what_another_rule_of_the_same_chain_would_drop(scene: Scene) -> None:
    """A verdict of nftables binds its own chain only; iptables has one chain for all, and a policy comes last."""
    passes = scene.dialect == "iptables"
    scene.h1.run(["iptables", "-w", "-P", "FORWARD", "DROP"])
    try:
        for sender, receiver, address in (
            (scene.pod, scene.remote_pod, scene.remote_pod.ip),
            (scene.remote_pod, scene.pod, scene.pod.ip),
            (scene.pod, scene.outside, scene.outside.underlay),
            (scene.outside, scene.pod, scene.pod.ip),
        ):
            seen = source_seen(sender, receiver, IPv4Address(address), timeout_s=PATIENCE_S if passes else LOST_S)
            assert (seen is not None) == passes, (sender.path, receiver.path)
    finally:
        scene.h1.run(["iptables", "-w", "-P", "FORWARD", "ACCEPT"])
