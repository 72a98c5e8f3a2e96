"""The kernel's VXLAN with ten thousand peers: what the kernel is asked to do is counted, and its time printed."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Network

import pytest

from flannel_udp.control.synchroniser import PAUSE_S
from flannel_udp.host.monitor import open_monitor_socket
from flannel_udp.lab import netns
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import wait_for
from tests.support.by_hand_vxlan import vxlan_value
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.many_peers import N_PEERS, NETWORK, EtcdGateway, host_number, subnet_number
from tests.support.one_host import News
from tests.support.patience import PATIENCE_S
from tests.support.vxlan_state import DEVICE, entries_for, entries_of, has_device, link_of, peer

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

N_CHANGES = 100


def mac_number(number: int) -> str:
    return f"0a:00:00:00:{number >> 8:02x}:{number & 0xFF:02x}"


def entry(subnet: int, host: int) -> tuple[IPv4Network, str]:
    return subnet_number(subnet), vxlan_value(host_number(host), mac_number(host))


def expected(hosts: dict[int, int]) -> set[str]:
    """Return the entries of subnets by number, of hosts by number."""
    peers = [peer(subnet_number(subnet), str(host_number(host)), mac_number(host)) for subnet, host in hosts.items()]
    return {line for each in peers for line in entries_for(each)}


ALL = {number: number for number in range(N_PEERS)}
MOVED = {number: N_PEERS + number for number in range(N_CHANGES)}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    config = {"Network": NETWORK, "Backend": {"Type": "vxlan"}}
    with Lab(Plan(fresh_name(), hosts=1, registry="etcd", config=config, agents=())) as lab:
        yield lab


@pytest.fixture(scope="module")
def etcd(lab: Lab) -> Iterator[EtcdGateway]:
    """An etcd with all the peers."""
    with lab.net.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        etcd = EtcdGateway(sock)
        etcd.put_all(entry(subnet, host) for subnet, host in ALL.items())
        yield etcd


@pytest.fixture(scope="module")
def host(lab: Lab, etcd: EtcdGateway) -> Host:
    """A host whose agent has loaded the peers."""
    (host,) = lab.hosts
    started_s = time.monotonic()
    host.start_agent("--datapath=kernel")
    host.wait_ready(PATIENCE_S)
    tell(f"started and loaded in {time.monotonic() - started_s:.2f} s")
    return host


def repairs_of(host: Host) -> dict[str, int]:
    repairs: dict[str, int] = host.control("/v1/status")["host_repairs"]
    return repairs


@pytest.fixture
def news(host: Host) -> Iterator[News]:
    with netns.call_inside(host.namespace, lambda: open_monitor_socket(entries=True)) as monitor:
        yield News(monitor, entries_of=link_of(host)["ifindex"])


def tell(figure: str) -> None:
    print(f"{N_PEERS:,} peers: {figure}")  # noqa: T201 - pytest -s shows it


def test_all_have_their_entries(host: Host) -> None:
    assert set(entries_of(host)) == expected(ALL)


def test_a_change_is_one_route_neighbour_and_forwarding_entry(host: Host, etcd: EtcdGateway, news: News) -> None:
    took_ms = []
    for number, to in MOVED.items():
        time.sleep(PAUSE_S)  # each is to be a publish of its own
        started_s = time.monotonic()
        etcd.put([entry(number, to)])
        told: Counter[str] = Counter()
        while told.total() < 3 and time.monotonic() - started_s < PATIENCE_S:
            told.update(news())
        took_ms.append((time.monotonic() - started_s) * 1e3)
        assert told == {"new entry": 2, "deleted entry": 1}  # another MAC: the route and its gateway are the same
    took_ms.sort()
    tell(f"a change from etcd to the kernel: p50 {took_ms[N_CHANGES // 2]:.1f} ms, p99 {took_ms[-2]:.1f} ms")
    assert set(entries_of(host)) == expected(ALL | MOVED)


@pytest.mark.parametrize(
    ("what", "command"),
    [
        ("route", f"ip route del {subnet_number(5_000)}"),
        ("neighbour", f"ip neighbour del {subnet_number(5_000).network_address} dev {DEVICE}"),
        ("fdb", f"bridge fdb del {mac_number(5_000)} dev {DEVICE}"),
    ],
)
def test_what_one_peer_lacks_is_put_right_alone(host: Host, news: News, what: str, command: str) -> None:
    before, started_s = repairs_of(host), time.monotonic()
    host.run(command.split())
    wait_for("it is counted", lambda: repairs_of(host) != before)
    tell(f"a {what} taken away is back in {(time.monotonic() - started_s) * 1e3:.0f} ms")
    wait_for("all is there", lambda: set(entries_of(host)) == expected(ALL | MOVED))
    # Where the agent was just reading the forwarding entries, the kernel leaves out one that is there, as all behind it
    # have moved up by one place: that is set once more, as it is.
    overtaken = what == "fdb" and repairs_of(host)[what] == before[what] + 2
    assert repairs_of(host) == before | {what: before[what] + 1 + overtaken}
    told = Counter(news())
    assert told["new route"] + told["new entry"] <= 2  # a neighbour that is taken away is one that failed, first


def test_a_deleted_device_comes_back_with_all(host: Host) -> None:
    mac, started_s = link_of(host)["address"], time.monotonic()
    host.configure(f"link del {DEVICE}")
    wait_for("the device", lambda: has_device(host))
    tell(f"a deleted device is back in {(time.monotonic() - started_s) * 1e3:.0f} ms")
    wait_for("all entries", lambda: len(entries_of(host)) == 3 * N_PEERS, PATIENCE_S)
    tell(f"and all its entries in {time.monotonic() - started_s:.2f} s")
    assert set(entries_of(host)) == expected(ALL | MOVED)
    assert link_of(host)["address"] == mac


def test_a_restart_writes_nothing(host: Host, news: News) -> None:
    host.stop_agent()
    news()
    started_s = time.monotonic()
    host.start_agent("--clean-on-exit", "--datapath=kernel")
    host.wait_ready(PATIENCE_S)
    tell(f"started again in {time.monotonic() - started_s:.2f} s")
    assert [told for told in news() if "route" in told or "entry" in told] == []


def test_an_end_that_cleans_removes_all(host: Host) -> None:
    started_s = time.monotonic()
    host.stop_agent()  # the one of the test before
    tell(f"ended, and all gone, in {time.monotonic() - started_s:.2f} s")
    assert not has_device(host)
