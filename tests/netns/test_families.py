"""Clusters with IPv6, beside IPv4 or alone: what test_backend_families.py leaves, with its five hosts and etcd."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flannel_udp.lab.by_hand import put_routes
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import ping_matrix, tcp_rate
from tests.support.agents import wait_for
from tests.support.by_hand import by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

N_HOSTS = 5
BACKENDS = ("udp", "host-gw", "vxlan", "alloc")
"""Those that carry both families."""
OVERHEAD_BYTES = {"udp": 48, "host-gw": 0, "vxlan": 70, "alloc": 0}
ELSEWHERE = ("host-gw", "vxlan")
"""Those that the other module has five hosts of, with etcd."""


@contextmanager
def cluster(backend: str, families: str, *, hosts: int = N_HOSTS, registry: str = "file") -> Iterator[Lab]:
    config = {"Network": "10.244.0.0/16", "Backend": {"Type": backend}}
    with Lab(Plan(fresh_name(), hosts=hosts, registry=registry, families=families, config=config)) as lab:
        if backend == "alloc":
            put_routes(lab)
        yield lab


def wait_for_traffic(lab: Lab, version: int, hosts: int = N_HOSTS) -> None:
    """Wait until every pod of the first hosts reaches every other one."""
    pods = [host.pods[0] for host in lab.hosts[:hosts]]
    wait_for(
        f"traffic by IPv{version}",
        lambda: None not in ping_matrix(pods, timeout_s=0.5, version=version).values(),
    )


def problems_of(host: Host) -> list[str]:
    found: list[str] = host.control("/v1/status")["problems"]
    return found


def subnets_of(lab: Lab) -> list[tuple[str, ...]]:
    """Return what each host has."""
    return [tuple(map(str, host.prefixes)) for host in lab.hosts]


@pytest.mark.parametrize("backend", [kind for kind in BACKENDS if kind not in ELSEWHERE])
def test_every_pod_reaches_every_pod_by_both_families(backend: str) -> None:
    with cluster(backend, "46") as lab:
        for version in (4, 6):
            wait_for_traffic(lab, version)
            first, last = lab.hosts[0].pods[0], lab.hosts[-1].pods[0]
            for source, target in ((first, last), (last, first)):
                assert tcp_rate(source, target, target.address(version), duration_s=0.3) > 0
        assert lab.hosts[0].mtu == 1500 - OVERHEAD_BYTES[backend]


@pytest.mark.parametrize(
    ("backend", "registry"),
    [
        (kind, registry)
        for kind in BACKENDS
        for registry in ("file", "etcd")
        if registry == "file" or kind not in ELSEWHERE
    ],
)
def test_with_ipv6_alone_five_hosts_have_five_subnets_and_keep_them(backend: str, registry: str) -> None:
    with cluster(backend, "6", registry=registry) as lab:
        wait_for_traffic(lab, 6)
        before = subnets_of(lab)
        assert len(set(before)) == N_HOSTS
        assert all(len(parts) == 1 for parts in before)
        for host in lab.hosts:
            host.stop_agent()
        for host in lab.hosts:
            host.start_agent()
        for host in lab.hosts:
            host.wait_ready()
        assert subnets_of(lab) == before
        wait_for_traffic(lab, 6)
        entries = {key: json.loads(value) for key, value in by_hand(lab).subnets().items()}
        assert len(entries) == N_HOSTS
        assert all(key.startswith("0.0.0.0-0&fd00:10:244:") for key in entries)
        assert {value["PublicIP"] for value in entries.values()} == {"0.0.0.0"}
        assert {value["PublicIPv6"] for value in entries.values()} == {str(host.underlay_of(6)) for host in lab.hosts}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_host_without_an_ipv6_address_takes_part_by_ipv4_and_says_what_it_lacks(backend: str) -> None:
    config = {"Network": "10.244.0.0/16", "Backend": {"Type": backend}}
    with Lab(Plan(fresh_name(), hosts=3, agents=(), families="46", config=config)) as lab:
        poor = lab.hosts[-1]
        poor.run(["sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1"])
        for host in lab.hosts:
            host.start_agent()
        for host in lab.hosts:
            host.wait_ready()
            host.attach_pods()
        if backend == "alloc":
            put_routes(lab)
        assert [len(host.prefixes) for host in lab.hosts] == [2, 2, 1]
        wait_for_traffic(lab, 4, hosts=3)
        wait_for_traffic(lab, 6, hosts=2)
        wait_for("it says what it lacks, and nothing else", lambda: len(problems_of(poor)) == 1)
        (lack,) = problems_of(poor)
        assert lack.endswith("until it gets one: IPv6 is disabled on eth0: sysctl -w net.ipv6.conf.eth0.disable_ipv6=0")
        assert str(poor.prefixes[0]).replace("/", "-") in by_hand(lab).subnets()
