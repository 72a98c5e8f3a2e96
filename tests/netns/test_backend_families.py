"""Five hosts of both families, or of IPv6 alone, by each backend that carries IPv6: pods, registry, host, lease."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping_matrix, tcp_rate
from tests.support.agents import command_line, restart_agents, wait_for, wait_for_pings
from tests.support.by_hand import by_hand
from tests.support.by_hand_vxlan import mac_of
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.vxlan_state import has_device, link_of

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

N_HOSTS = 5
DEVICE = "flannel-v6.1"


@dataclass(frozen=True)
class Way:
    """A backend, which families are on, and what the overlay's MTU is with it."""

    kind: str
    families: str
    mtu: int


WAYS = {
    "host-gw, both": Way("host-gw", "46", 1500),
    "vxlan, both": Way("vxlan", "46", 1430),
    "host-gw, IPv6 alone": Way("host-gw", "6", 1500),
    "vxlan, IPv6 alone": Way("vxlan", "6", 1430),
    "udp, both": Way("udp", "46", 1452),
    "udp, IPv6 alone": Way("udp", "6", 1452),
}


@pytest.fixture(scope="module", params=WAYS)
def cluster(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, Way]]:
    way = WAYS[request.param]
    network = {"Network": str(OVERLAY)} if "4" in way.families else {}
    config = {**network, "Backend": {"Type": way.kind}}
    arguments = ("--datapath=kernel",) if way.kind == "vxlan" else ()
    plan = Plan(*(fresh_name(), N_HOSTS), registry="etcd", families=way.families, config=config, agent_args=arguments)
    with Lab(plan) as lab:
        yield lab, way


def test_every_pod_reaches_every_other_one_by_each_family(cluster: tuple[Lab, Way]) -> None:
    lab, _ = cluster
    wait_for_pings(lab)
    for version in lab.plan.versions:
        assert len(ping_matrix(lab.pods(), version=version)) == N_HOSTS * (N_HOSTS - 1)


def test_tcp_passes_both_ways_by_each_family(cluster: tuple[Lab, Way]) -> None:
    lab, _ = cluster
    p1, p2 = lab.pods()[:2]
    for version in lab.plan.versions:
        for source, target in ((p1, p2), (p2, p1)):
            assert tcp_rate(source, target, target.address(version), duration_s=0.2) > 0


def test_etcd_holds_flannels_keys_and_values_byte_for_byte(cluster: tuple[Lab, Way]) -> None:
    lab, way = cluster
    assert by_hand(lab).subnets() == {key_of(host): value_of(host, way) for host in lab.hosts}


def key_of(host: Host) -> str:
    subnet = host.subnet
    return f"{'0.0.0.0-0' if subnet is None else dashed(subnet)}&{dashed(host.subnet_of(6))}"


def dashed(subnet: object) -> str:
    return str(subnet).replace("/", "-")


def value_of(host: Host, way: Way) -> str:
    public_ip = host.underlay if "4" in way.families else "0.0.0.0"
    data = {"BackendData": "flannel.1", "BackendV6Data": DEVICE} if way.kind == "vxlan" else {}
    said = "".join(
        f',"{key}":{{"VNI":1,"VtepMAC":"{mac_of(host, device)}"}}'
        for key, device in data.items()
        if key == "BackendV6Data" or "4" in way.families
    )
    kind = "" if way.kind == "udp" else f',"BackendType":"{way.kind}"'
    return f'{{"PublicIP":"{public_ip}","PublicIPv6":"{host.underlay_of(6)}"{kind}{said}}}'


def test_the_host_has_flannels_routes_and_entries_of_each_peer(cluster: tuple[Lab, Way]) -> None:
    lab, way = cluster
    h1, *others = lab.hosts
    if way.kind == "udp":
        shown = [line.split()[0] for line in lines(h1, "ip -6 route show dev flannel0")]
        own = str(h1.subnet_of(6)).split("/")[0]
        assert shown == [own, "fd00:10:244::/48"]
        assert f"{own}/128" in [line.split()[3] for line in lines(h1, "ip -o -6 address show dev flannel0")]
        return
    routes = [line.split(" proto")[0] for line in lines(h1, "ip -6 route show proto 82")]
    if way.kind == "host-gw":
        assert sorted(line.split(" metric")[0] for line in routes) == sorted(
            f"{each.subnet_of(6)} via {each.underlay_of(6)} dev eth0" for each in others
        )
        return
    first = {each: str(each.subnet_of(6)).split("/")[0] for each in lab.hosts}
    assert sorted(line.split(" metric")[0] for line in routes) == sorted(
        f"{each.subnet_of(6)} via {first[each]} dev {DEVICE}" for each in others
    )
    assert sorted(lines(h1, f"ip -6 neighbour show dev {DEVICE} nud permanent")) == sorted(
        f"{first[each]} lladdr {mac_of(each, DEVICE)} PERMANENT" for each in others
    )
    assert sorted(lines(h1, f"bridge fdb show dev {DEVICE}")) == sorted(
        f"{mac_of(each, DEVICE)} dst {each.underlay_of(6)} self permanent" for each in others
    )
    assert [line.split()[3] for line in lines(h1, f"ip -o address show dev {DEVICE}")] == [f"{first[h1]}/128"]
    link = link_of(h1, DEVICE)
    assert (link["mtu"], "UP" in link["flags"], link["ifalias"]) == (way.mtu, True, "flannel-udp")
    data = link["linkinfo"]["info_data"]
    assert {key: data[key] for key in ("id", "port", "local6", "link", "learning")} == {
        "id": 1,
        "port": 8472,
        "local6": str(h1.underlay_of(6)),
        "link": "eth0",
        "learning": False,
    }


def lines(host: Host, command: str) -> list[str]:
    return [line.strip() for line in host.run(command.split()).stdout.splitlines()]


def test_status_and_subnet_env_tell_of_both_families(cluster: tuple[Lab, Way]) -> None:
    lab, way = cluster
    h1, h2 = lab.hosts[:2]
    wait_for("nothing wrong", lambda: h1.control("/v1/status")["problems"] == [])
    status = h1.control("/v1/status")
    assert (status["ready"], status["peers"]) == (True, (N_HOSTS - 1) * len(lab.plan.versions))
    env = dict(line.split("=") for line in h1.subnet_file.read_text().splitlines())
    assert (env["FLANNEL_MTU"], env["FLANNEL_IPV6_NETWORK"]) == (str(way.mtu), "fd00:10:244::/48")
    assert {host.mtu for host in lab.hosts} == {way.mtu}
    answer = command_line(h1, "route", "get", str(h2.pods[0].address(6))).stdout
    assert f"via {h2.underlay_of(6)}" in answer.replace("[", "").replace("]", "")
    assert (f"tunnel {DEVICE}" in answer) == (way.kind == "vxlan")


def test_a_restart_keeps_subnets_and_macs(cluster: tuple[Lab, Way]) -> None:
    lab, way = cluster
    before = by_hand(lab).subnets()
    restart_agents(lab.hosts)
    assert by_hand(lab).subnets() == before
    if way.kind == "vxlan":  # back from our own entry
        h1 = lab.hosts[0]
        h1.stop_agent()
        h1.configure(f"link del {DEVICE}")
        assert not has_device(h1, DEVICE)
        h1.start_agent()
        h1.wait_ready()
        assert by_hand(lab).subnets() == before
        assert mac_of(h1, DEVICE) == json.loads(before[key_of(h1)])["BackendV6Data"]["VtepMAC"]
    wait_for_pings(lab)
