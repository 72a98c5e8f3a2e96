"""Ten thousand peers of IPv6, alone and beside IPv4, by each backend: what the kernel is told is counted.

Routes of IPv6 end by themselves, so that a lease's new life, an orderly end and a start each write every route once.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from flannel_udp.control.synchroniser import PAUSE_S
from flannel_udp.host.monitor import open_monitor_socket
from flannel_udp.lab import netns
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, pid_of, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.many_peers import N_PEERS, NETWORK, EtcdGateway, host_of, subnet_of
from tests.support.one_host import News

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

N_CHANGES = 20
PATIENCE_S = 180.0
HOUR_S = 3_600
LIVES_MAX = 3
OF_DEVICES = 500
"""More than the kernel tells of routes that come with addresses and links, and of neighbours on the underlay.

The longer a busy machine takes, the more it tells of the latter. What is done to all peers is twenty times that.
"""
SHOW_V6 = "ip -6 route show proto 82"
DEVICES = {4: "flannel.1", 6: "flannel-v6.1"}
DATA = {4: "BackendData", 6: "BackendV6Data"}


@dataclass(frozen=True)
class Way:
    """A backend with its datapath, and which families are on."""

    kind: str
    families: str
    datapath: str = "auto"

    @property
    def versions(self) -> tuple[int, ...]:
        return tuple(map(int, self.families))

    @property
    def has_routes(self) -> bool:
        """Whether each peer has a route in the kernel."""
        return self.kind == "host-gw" or self.datapath == "kernel"

    @property
    def a_change(self) -> Counter[str]:
        """What the kernel tells of a peer that is at another host now, which has another MAC."""
        if not self.has_routes:
            return Counter()
        if self.kind == "host-gw":
            # IPv4: one more, one less. IPv6: one in the place of the other.
            return Counter({"new route": len(self.versions), "deleted route": int(4 in self.versions)})
        return Counter({"new entry": 2 * len(self.versions), "deleted entry": len(self.versions)})

    def __str__(self) -> str:
        return f"{self.kind}-{self.datapath}-{self.families}"


WAYS = (Way("host-gw", "6"), Way("vxlan", "46", "kernel"), Way("vxlan", "46", "userspace"), Way("udp", "46"))


def mac_of(version: int, number: int) -> str:
    return f"0a:00:00:{version:02x}:{number >> 8:02x}:{number & 0xFF:02x}"


def entry(way: Way, number: int, host: int) -> tuple[str, str]:
    """Return key and value, as flanneld writes them, of a peer by its number, at the host of another one."""
    parts = {version: str(subnet_of(version, number)).replace("/", "-") for version in way.versions}
    public_ip = host_of(4, host) if 4 in parts else "0.0.0.0"
    data = "".join(
        f',"{DATA[version]}":{{"VNI":1,"VtepMAC":"{mac_of(version, host)}"}}'
        for version in way.versions
        if way.kind == "vxlan"
    )
    value = f'{{"PublicIP":"{public_ip}","PublicIPv6":"{host_of(6, host)}","BackendType":"{way.kind}"{data}}}'
    return f"{parts.get(4, '0.0.0.0-0')}&{parts[6]}", value


@pytest.fixture(scope="module", params=WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


@pytest.fixture(scope="module")
def lab(way: Way) -> Iterator[Lab]:
    network = {"Network": NETWORK} if 4 in way.versions else {}
    config = {**network, "Backend": {"Type": way.kind}}
    plan = Plan(
        *(fresh_name(), 1),
        registry="etcd",
        families=way.families,
        config=config,
        agents=(),
        agent_args=(f"--datapath={way.datapath}",),
    )
    with Lab(plan) as lab:
        if 4 in way.versions:
            lab.hosts[0].configure("address add 198.18.0.1/15 dev eth0")
        yield lab


@pytest.fixture(scope="module")
def etcd(lab: Lab, way: Way) -> Iterator[EtcdGateway]:
    """An etcd with all the peers."""
    with lab.net.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        etcd = EtcdGateway(sock)
        etcd.put_all(entry(way, number, number) for number in range(N_PEERS))
        yield etcd


@pytest.fixture(scope="module")
def host(lab: Lab, etcd: EtcdGateway, way: Way) -> Host:
    """A host whose agent has loaded the peers."""
    (host,) = lab.hosts
    started_s = time.monotonic()
    host.start_agent()
    host.wait_ready(PATIENCE_S)
    tell(way, f"started and loaded in {time.monotonic() - started_s:.2f} s")
    wait_for("the lease's life", lambda: lives_of(host, way) == {True}, PATIENCE_S)
    return host


@pytest.fixture
def news(host: Host) -> Iterator[News]:
    with netns.call_inside(host.namespace, lambda: open_monitor_socket(entries=True)) as monitor:
        yield News(monitor)


def tell(way: Way, figure: str) -> None:
    print(f"{N_PEERS:,} peers, {way}: {figure}")  # noqa: T201 - pytest -s shows it


def lines(host: Host, command: str) -> list[str]:
    return [line.strip() for line in host.run(command.split()).stdout.splitlines()]


def routes_of(host: Host, version: int) -> set[str]:
    """Return where the routes of ours lead: destination, gateway."""
    return {line.split(" dev ")[0] for line in lines(host, f"ip -{version} route show proto 82")}


def expected(way: Way, version: int, moved: int = 0) -> set[str]:
    """Return the same as it has to be, if so many peers are at other hosts than at first."""
    found = set()
    for number in range(N_PEERS):
        subnet = subnet_of(version, number)
        at = host_of(version, number + N_PEERS * (number < moved))
        found.add(f"{subnet} via {at if way.kind == 'host-gw' else subnet.network_address}")
    return found


def check_peers(host: Host, way: Way, moved: int = 0) -> None:
    """Check that all peers are known, and have what they need in the kernel."""
    # After a take-over they are read while packets go on.
    wait_for("all", lambda: host.control("/v1/status")["peers"] == N_PEERS * len(way.versions), PATIENCE_S)
    assert host.control("/v1/status")["problems"] == []
    for version in way.versions if way.has_routes else ():
        assert routes_of(host, version) == expected(way, version, moved)
        if way.kind == "vxlan":
            device = DEVICES[version]
            at = {number: number + N_PEERS * (number < moved) for number in range(N_PEERS)}
            assert set(lines(host, f"ip -{version} neighbour show dev {device} nud permanent")) == {
                f"{subnet_of(version, number).network_address} lladdr {mac_of(version, host)} PERMANENT"
                for number, host in at.items()
            }
            assert set(lines(host, f"bridge fdb show dev {device}")) == {
                f"{mac_of(version, host)} dst {host_of(version, host)} self permanent" for host in at.values()
            }


def test_all_peers_are_there(host: Host, way: Way) -> None:
    check_peers(host, way)


def test_a_change_is_written_alone(host: Host, etcd: EtcdGateway, way: Way, news: News) -> None:
    took_ms = []
    for number in range(N_CHANGES):
        time.sleep(PAUSE_S)  # each is to be a publish of its own
        started_s = time.monotonic()
        etcd.put([entry(way, number, N_PEERS + number)])
        told: Counter[str] = Counter()
        while not told >= way.a_change and time.monotonic() - started_s < PATIENCE_S:
            told.update(news())
        took_ms.append((time.monotonic() - started_s) * 1e3)
        further = told - way.a_change  # neighbours on the underlay come and go
        assert told >= way.a_change
        assert further.keys() <= {"new entry", "deleted entry"}
        assert further.total() <= OF_DEVICES
    if took_ms and way.has_routes:
        took_ms.sort()
        tell(way, f"from etcd to the kernel: p50 {took_ms[N_CHANGES // 2]:.1f} ms, longest {took_ms[-1]:.1f} ms")
    wait_for("all changes", lambda: moved(host, way), PATIENCE_S)
    check_peers(host, way, N_CHANGES)


def moved(host: Host, way: Way) -> bool:
    """Tell whether the agent sends what is for the last one that was to move to its new host, by each family."""
    last = N_CHANGES - 1
    answers = [host.control(f"/v1/route?address={subnet_of(v, last)[7]}") for v in way.versions]
    return [each.get("public_ip") for each in answers] == [str(host_of(v, N_PEERS + last)) for v in way.versions]


def check_lives(way: Way, news: News) -> None:
    """Check that each IPv6 route was written for its life alone: a lease is in doubt at first, then renewed."""
    told = Counter(news())
    if way.has_routes:
        assert N_PEERS <= told["new route"] <= LIVES_MAX * N_PEERS + OF_DEVICES
        assert told["deleted route"] <= OF_DEVICES
        assert told["new entry"] + told["deleted entry"] <= OF_DEVICES


def test_an_orderly_end_lets_routes_stay_and_the_next_start_has_them_end_again(
    host: Host, way: Way, news: News
) -> None:
    began_s = time.monotonic()
    host.stop_agent(PATIENCE_S)
    tell(way, f"ended in {time.monotonic() - began_s:.2f} s")
    check_lives(way, news)
    if way.has_routes:
        assert not any("expires" in line for line in lines(host, SHOW_V6))
    began_s = time.monotonic()
    host.start_agent()
    host.wait_ready(PATIENCE_S)
    tell(way, f"started again in {time.monotonic() - began_s:.2f} s")
    check_peers(host, way, N_CHANGES)
    wait_for("the lease's life", lambda: lives_of(host, way) == {True}, PATIENCE_S)
    check_lives(way, news)


def lives_of(host: Host, way: Way) -> set[bool]:
    """Return whether routes end with the lease, not with its first moment, in which it is in doubt."""
    if not way.has_routes:
        return {True}
    return {int(line.partition("expires ")[2].split("sec")[0] or 0) > HOUR_S for line in lines(host, SHOW_V6)}


def test_a_killed_agents_routes_stand_and_the_next_start_keeps_them(host: Host, way: Way, news: News) -> None:
    host.kill_agent()
    for version in way.versions if way.has_routes else ():
        assert routes_of(host, version) == expected(way, version, N_CHANGES)
    host.start_agent()
    host.wait_ready(PATIENCE_S)
    check_peers(host, way, N_CHANGES)
    wait_for("the lease's life", lambda: lives_of(host, way) == {True}, PATIENCE_S)
    check_lives(way, news)


def test_a_takeover_leaves_them_all_and_a_clean_end_none(host: Host, way: Way, news: News) -> None:
    old, began_s = pid_of(host), time.monotonic()
    with Agent(host, *host.plan.agent_args, "--takeover", "--clean-on-exit") as agent:
        agent.wait_for_take_over(old)
        tell(way, f"taken over in {time.monotonic() - began_s:.2f} s")
        check_peers(host, way, N_CHANGES)
        wait_for("the lease's life", lambda: lives_of(host, way) == {True}, PATIENCE_S)
        check_lives(way, news)
        began_s = time.monotonic()
        agent.process.terminate()
        assert agent.exit_code(PATIENCE_S) == 0
        tell(way, f"ended, and all gone, in {time.monotonic() - began_s:.2f} s")
    assert [line for version in (4, 6) for line in lines(host, f"ip -{version} route show proto 82")] == []
