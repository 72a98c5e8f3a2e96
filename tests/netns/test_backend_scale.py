"""Host-gw with ten thousand peers: what the kernel is asked to do is counted; how long it takes is printed."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from ipaddress import IPv4Network

import pytest

from flannel_udp.control.synchroniser import PAUSE_S
from flannel_udp.host.monitor import open_monitor_socket
from flannel_udp.lab import netns
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.kernel_state import ours_of
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.many_peers import N_PEERS, NETWORK, EtcdGateway, host_number, subnet_number
from tests.support.one_host import News
from tests.support.patience import PATIENCE_S

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

N_CHANGES = 100


def entry(subnet: int, host: int) -> tuple[IPv4Network, str]:
    value = f'{{"PublicIP":"{host_number(host)}","PublicIPv6":null,"BackendType":"host-gw"}}'
    return subnet_number(subnet), value


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    config = {"Network": NETWORK, "Backend": {"Type": "host-gw"}}
    with Lab(Plan(fresh_name(), hosts=1, registry="etcd", config=config, agents=())) as lab:
        lab.hosts[0].configure("address add 198.18.0.1/15 dev eth0")
        yield lab


@pytest.fixture(scope="module")
def etcd(lab: Lab) -> Iterator[EtcdGateway]:
    """An etcd with all the peers."""
    with lab.net.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        etcd = EtcdGateway(sock)
        etcd.put_all(entry(number, number) for number in range(N_PEERS))
        yield etcd


@pytest.fixture(scope="module")
def host(lab: Lab, etcd: EtcdGateway) -> Host:
    """A host whose agent has loaded the peers."""
    (host,) = lab.hosts
    started_s = time.monotonic()
    host.start_agent()
    host.wait_ready(PATIENCE_S)
    tell(f"started and loaded in {time.monotonic() - started_s:.2f} s")
    return host


@pytest.fixture
def news(host: Host) -> Iterator[News]:
    with netns.call_inside(host.namespace, open_monitor_socket) as monitor:
        yield News(monitor)


def tell(figure: str) -> None:
    print(f"{N_PEERS:,} peers: {figure}")  # noqa: T201 - pytest -s shows it


def test_all_have_their_route(host: Host) -> None:
    source = host.subnet and host.subnet.network_address
    expected = {f"{subnet_number(i)} via {host_number(i)} dev eth0 src {source}" for i in range(N_PEERS)}
    assert set(ours_of(host)) == expected


def test_a_change_is_one_route_more_and_one_less(host: Host, etcd: EtcdGateway, news: News) -> None:
    took_ms = []
    for number in range(N_CHANGES):
        time.sleep(PAUSE_S)  # each is to be a publish of its own
        started_s = time.monotonic()
        etcd.put([entry(number, N_PEERS + number)])
        told: list[str] = []
        while len(told) < 2 and time.monotonic() - started_s < PATIENCE_S:
            told += [each for each in news() if "route" in each]  # the address that ends them may get another life
        took_ms.append((time.monotonic() - started_s) * 1e3)
        assert told == ["new route", "deleted route"]
    took_ms.sort()
    tell(f"a change from etcd to the kernel: p50 {took_ms[N_CHANGES // 2]:.1f} ms, p99 {took_ms[-2]:.1f} ms")
    changed = {line.split(" dev ")[0] for line in ours_of(host)}
    assert {f"{subnet_number(i)} via {host_number(N_PEERS + i)}" for i in range(N_CHANGES)} <= changed


def test_a_restart_writes_no_route(host: Host, news: News) -> None:
    host.stop_agent()
    started_s = time.monotonic()
    host.start_agent("--clean-on-exit")
    host.wait_ready(PATIENCE_S)
    tell(f"started again in {time.monotonic() - started_s:.2f} s")
    assert [told for told in news() if "route" in told] == []


def test_an_end_that_cleans_removes_all(host: Host) -> None:
    started_s = time.monotonic()
    host.stop_agent()  # the one of the test before
    tell(f"ended, and all routes gone, in {time.monotonic() - started_s:.2f} s")
    assert ours_of(host) == []
