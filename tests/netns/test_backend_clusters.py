"""Five hosts by each backend: all pods reach all, and the registry holds what flannel's agent would have written."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flannel_udp.files import subnet_env
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping_matrix, tcp_rate
from tests.support.agents import command_line, restart_agents, subnet_of, wait_for
from tests.support.by_hand import by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

BACKEND_TYPE = {"host-gw": ',"BackendType":"host-gw"', "udp": "", "alloc": ""}
"""What a lease's value says beside the public IP."""
MTU = {"host-gw": 1500, "udp": 1472, "alloc": 1500}
KINDS = list(MTU)
N_HOSTS = 5


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    config = {"Network": str(OVERLAY), "Backend": {"Type": KINDS[0]}}
    with Lab(Plan(fresh_name(), hosts=N_HOSTS, registry="etcd", config=config)) as lab:
        yield lab


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, lab: Lab) -> str:
    """All hosts run that backend; alloc leaves the routes to us."""
    kind = str(request.param)
    if kind != KINDS[0]:
        by_hand(lab).choose_backend(kind)
        restart_agents(lab.hosts)
    if kind == "alloc":
        for host in lab.hosts:
            others = [other for other in lab.hosts if other is not host]
            host.configure(*(f"route add {subnet_of(other)} via {other.underlay}" for other in others))
    return kind


def test_every_pod_reaches_every_other_one(lab: Lab, kind: str) -> None:
    pods = lab.pods()
    wait_for("traffic", lambda: None not in ping_matrix(pods, timeout_s=0.5).values())
    assert len(ping_matrix(pods)) == N_HOSTS * (N_HOSTS - 1), kind


def test_tcp_passes_both_ways(lab: Lab, kind: str) -> None:
    p1, p2 = lab.pods()[:2]
    for source, target in ((p1, p2), (p2, p1)):
        assert tcp_rate(source, target, target.ip, duration_s=0.2) > 0, kind


def test_etcd_holds_flannels_values_byte_for_byte(lab: Lab, kind: str) -> None:
    expected = {
        str(subnet_of(host)).replace(
            "/", "-"
        ): f'{{"PublicIP":"{host.underlay}","PublicIPv6":null{BACKEND_TYPE[kind]}}}'
        for host in lab.hosts
    }
    assert by_hand(lab).subnets() == expected


def test_status_peers_and_route_get_speak_of_the_backend(lab: Lab, kind: str) -> None:
    h1, h2 = lab.hosts[:2]
    status, (peer, *_) = h1.control("/v1/status"), h1.control("/v1/peers")
    tells = {"udp": "via 192.0.2.2:8285 dev eth0 tunnel flannel0", "host-gw": "via 192.0.2.2 dev eth0 subnet"}
    backend = {"type": kind, "port": 8285} if kind == "udp" else {"type": kind}
    assert (status["backend"], status["ready"], status["problems"]) == (backend, True, [])
    assert (
        (peer["packets_out"] is None) == (status["counters"] is None) == (status["tunnel"] is None) == (kind != "udp")
    )
    answer = command_line(h1, "route", "get", str(h2.pods[0].ip)).stdout
    assert tells.get(kind, "192.0.2.2 has it; the backend alloc leaves routes to you") in answer
    assert f"backend    {kind}" in command_line(h1, "status").stdout


def test_subnet_env_has_the_mtu_that_the_backend_leaves(lab: Lab, kind: str) -> None:
    assert {subnet_env.require(host.subnet_file).mtu for host in lab.hosts} == {MTU[kind]}
