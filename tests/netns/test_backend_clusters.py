"""Five hosts by each backend: all pods reach all, and the registry holds what flannel's agent would have written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from flannel_udp.files import subnet_env
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping_matrix, tcp_rate
from tests.support.agents import command_line, restart_agents, subnet_of, wait_for
from tests.support.by_hand import by_hand
from tests.support.by_hand_vxlan import vxlan_value
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

N_HOSTS = 5


@dataclass(frozen=True)
class Way:
    """A backend, how its agents are started, and what the overlay's MTU is with it."""

    kind: str
    mtu: int
    arguments: tuple[str, ...] = ()

    @property
    def in_userspace(self) -> bool:
        """Whether packets take our packet path."""
        return self.kind == "udp" or self.arguments == USERSPACE

    @property
    def status(self) -> dict[str, object]:
        """What `status` says of it, but for what a lease says of its host."""
        datapath = {"datapath": "userspace" if self.in_userspace else "kernel"} if self.arguments else {}
        port = {"udp": 8285, "vxlan": 8472}.get(self.kind)
        return {"type": self.kind, **({"port": port} if port else {}), **datapath}


KERNEL, USERSPACE = ("--datapath=kernel",), ("--datapath=userspace",)
WAYS = {
    "host-gw": Way("host-gw", 1500),
    "udp": Way("udp", 1472),
    "vxlan by the kernel": Way("vxlan", 1450, KERNEL),
    "vxlan by us": Way("vxlan", 1450, USERSPACE),
    "ipip by us": Way("ipip", 1480, USERSPACE),
    "alloc": Way("alloc", 1500),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "host-gw"}}
    with Lab(Plan(fresh_name(), hosts=N_HOSTS, registry="etcd", config=config)) as lab:
        yield lab


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest, lab: Lab) -> Way:
    """All hosts go that way; alloc leaves the routes to us."""
    way = WAYS[request.param]
    if way.kind != "host-gw":
        by_hand(lab).choose_backend(way.kind)
        restart_agents(lab.hosts, *way.arguments)
    if way.kind == "alloc":
        for host in lab.hosts:
            others = [other for other in lab.hosts if other is not host]
            host.configure(*(f"route add {subnet_of(other)} via {other.underlay}" for other in others))
    return way


def test_every_pod_reaches_every_other_one(lab: Lab, way: Way) -> None:
    pods = lab.pods()
    wait_for("traffic", lambda: None not in ping_matrix(pods, timeout_s=0.5).values())
    assert len(ping_matrix(pods)) == N_HOSTS * (N_HOSTS - 1), way


def test_tcp_passes_both_ways(lab: Lab, way: Way) -> None:
    p1, p2 = lab.pods()[:2]
    for source, target in ((p1, p2), (p2, p1)):
        assert tcp_rate(source, target, target.ip, duration_s=0.2) > 0, way


def test_etcd_holds_flannels_values_byte_for_byte(lab: Lab, way: Way) -> None:
    values = by_hand(lab).subnets()
    assert values == {
        str(subnet_of(host)).replace("/", "-"): value_of(host, way, values[str(subnet_of(host)).replace("/", "-")])
        for host in lab.hosts
    }


def value_of(host: Host, way: Way, found: str) -> str:
    """Return a lease's value as flannel writes it; only the MAC address is that of what was found."""
    if way.kind == "vxlan":
        return vxlan_value(host.underlay, json.loads(found)["BackendData"]["VtepMAC"])
    kind = "" if way.kind in ("udp", "alloc") else f',"BackendType":"{way.kind}"'
    return f'{{"PublicIP":"{host.underlay}","PublicIPv6":null{kind}}}'


def test_status_peers_and_route_get_speak_of_the_backend(lab: Lab, way: Way) -> None:
    h1, h2 = lab.hosts[:2]
    status: dict[str, Any] = {}

    def is_well() -> bool:
        status.update(h1.control("/v1/status"))
        return bool(status["problems"] == [])

    # Until a host's new agent has written its entry, the former backend's is ignored, and named.
    wait_for("nothing is wrong", is_well)
    peer, *_ = h1.control("/v1/peers")
    tells = {
        "udp": "via 192.0.2.2:8285 dev eth0 tunnel flannel0",
        "vxlan": "via 192.0.2.2:8472 dev eth0 tunnel flannel.1",
        "ipip": "via 192.0.2.2 dev eth0 tunnel flannel.ipip",
        "host-gw": "via 192.0.2.2 dev eth0 subnet",
    }
    backend = {key: value for key, value in status["backend"].items() if key not in ("data", "why")}
    assert (backend, status["ready"]) == (way.status, True)
    assert (
        (peer["packets_out"] is None) == (status["counters"] is None) == (status["offload"] is None) != way.in_userspace
    )
    answer = command_line(h1, "route", "get", str(h2.pods[0].ip)).stdout
    assert tells.get(way.kind, "192.0.2.2 has it; the backend alloc leaves routes to you") in answer
    assert f"backend    {way.kind}" in command_line(h1, "status").stdout


def test_a_capture_shows_packets_or_names_what_does(lab: Lab, way: Way) -> None:
    h1 = lab.hosts[0]
    if way.in_userspace:
        done = command_line(h1, "capture", "--for=1")
        assert (done.returncode, done.stderr.endswith(" none lost\n")) == (0, True), way
        return
    shown = {
        "vxlan": "tcpdump -ni flannel.1 shows the inner ones, tcpdump -ni eth0 'udp port 8472' the outer ones",
        "ipip": "tcpdump -ni flannel.ipip shows the inner ones, tcpdump -ni eth0 'proto 4' the outer ones",
    }.get(way.kind, f"tcpdump -ni eth0 'net {OVERLAY}' shows them")
    done = command_line(h1, "capture")
    none_passes = f"with {way.kind} the kernel carries packets, and none passes the agent"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"flannel-udp: {none_passes}: {shown}\n")


def test_subnet_env_has_the_mtu_that_the_backend_leaves(lab: Lab, way: Way) -> None:
    assert {subnet_env.require(host.subnet_file).mtu for host in lab.hosts} == {way.mtu}
