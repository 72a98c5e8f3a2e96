"""Agents and a registry, nothing else: every pod reaches every other, and nothing is left when all is over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.lab import netns
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import STATE_DIR, Plan
from flannel_udp.lab.probe import ping_matrix
from tests.support.agents import log_of, subnet_of, unanswered, up_with_peers, wait_for
from tests.support.by_hand import PREFIX, EtcdByHand, by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name, namespaces_of
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

LEASE_TTL_S = 86_400


@pytest.fixture(scope="module", params=["file", "etcd"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if request.param == "etcd":
        request.getfixturevalue("needs_etcd")
    with Lab(Plan(fresh_name(), hosts=2, registry=request.param)) as lab:
        yield up_with_peers(lab)


def test_pods_of_two_hosts_reach_each_other_both_ways(lab: Lab) -> None:
    assert unanswered(lab.pods()) == []


def test_hosts_and_pods_of_other_hosts_reach_each_other(lab: Lab) -> None:
    h1, h2 = lab.hosts
    for source, target in ((h1, h2), (h2, h1)):
        source.run(["ping", "-c1", "-W60", str(target.pods[0].ip)])
        # flannel0's address too is one of the overlay, as flanneld has it.
        source.run(["ping", "-c1", "-W60", str(subnet_of(target).network_address)])


def test_every_host_holds_one_entry_with_exactly_flannels_value(lab: Lab) -> None:
    entries = by_hand(lab).subnets()
    assert entries.keys() == {str(subnet_of(host)).replace("/", "-") for host in lab.hosts}
    for host in lab.hosts:
        value = entries[str(subnet_of(host)).replace("/", "-")]
        if lab.plan.registry == "etcd":
            assert value == f'{{"PublicIP":"{host.underlay}","PublicIPv6":null}}'
        else:
            fields = json.loads(value)
            assert fields.pop("Expires").endswith("Z")
            assert fields.pop("Owner")[:8] == host.control("/v1/status")["lease"]["mark"]
            assert fields == {"PublicIP": str(host.underlay), "PublicIPv6": None}


@pytest.mark.parametrize("lab", ["etcd"], indirect=True)
def test_leases_in_etcd_live_for_a_day(lab: Lab) -> None:
    etcd = EtcdByHand(lab)
    leases = etcd.etcdctl("lease", "list").splitlines()[1:]
    assert len(leases) == len(lab.hosts)
    held, left_s = {}, []
    for lease in leases:
        state = json.loads(etcd.etcdctl("lease", "timetolive", lease, "--keys", "--write-out=json"))
        assert state["granted-ttl"] == LEASE_TTL_S
        left_s.append(state["ttl"])
        held[lease] = len(state["keys"])
    oldest_s = max(host.control("/v1/status")["uptime_s"] for host in lab.hosts)
    assert LEASE_TTL_S - oldest_s - 1 <= min(left_s) <= max(left_s) <= LEASE_TTL_S  # in whole seconds
    assert set(held.values()) == {1}
    assert len(etcd.etcdctl("get", "--prefix", "--keys-only", f"{PREFIX}/subnets/").split()) == len(lab.hosts)


def test_subnet_env_is_flannels_byte_for_byte(lab: Lab) -> None:
    for host in lab.hosts:
        gateway = subnet_of(host).network_address + 1
        assert host.subnet_file.read_text() == (
            f"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={gateway}/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
        )
        assert host.subnet_file.stat().st_mode & 0o777 == 0o644


def test_flannel0_has_flannels_shape(lab: Lab) -> None:
    for host in lab.hosts:
        (link,) = json.loads(host.run(["ip", "-json", "addr", "show", "dev", "flannel0"]).stdout)
        addresses = [(a["local"], a["prefixlen"]) for a in link["addr_info"] if a["family"] == "inet"]
        assert addresses == [(str(subnet_of(host).network_address), 32)]
        assert link["mtu"] == 1472
        assert "UP" in link["flags"]
        routes = host.run(["ip", "route", "show", "dev", "flannel0"]).stdout.splitlines()
        assert [route.strip() for route in routes] == ["10.244.0.0/16"]


def test_the_log_of_an_ordinary_start_is_one_plain_line_a_step(lab: Lab) -> None:
    for host, other in zip(lab.hosts, reversed(lab.hosts), strict=True):
        # Both start at once, and once in a hundred times they pick the same subnet: who is slower says so.
        said = [line for line in log_of(host) if not line.startswith("another host was faster: ")]
        said.sort(key=lambda line: not line.startswith("peer added"))  # that one may come anywhere
        assert said == [
            f"peer added: {other.subnet} via {other.underlay}",
            f"using interface eth0, address {host.underlay}, public IP {host.underlay}",
            (
                "kept CAP_NET_ADMIN, CAP_NET_RAW, CAP_NET_BIND_SERVICE and gave up all other capabilities; "
                "no_new_privs is set"
            ),
            f"opened flannel0 and UDP {host.underlay}:8285",
            (
                "offloads in use: tso, uso, udp-segment, udp-gro, join-tcp, join-udp; workers: 1; "
                "socket buffers: receive 4194304, send 196608 bytes"
            ),
            f"acquired a new subnet {host.subnet}",
            "applying firewall rules by iptables",
            f"wrote {host.subnet_file}",
        ]


def root_state() -> tuple[set[str], set[str], list[str]]:
    """Links, files of the usual run folder and routes of the machine itself."""
    run = Path("/run/flannel")
    files = {str(path) for path in run.iterdir()} if run.is_dir() else set()
    links = {path.name for path in Path("/sys/class/net").iterdir()}
    return links, files, Path("/proc/net/route").read_text().splitlines()


def test_five_hosts_of_two_pods_lose_none_of_ninety_pings_and_leave_nothing() -> None:
    before = root_state()
    with Lab(Plan(fresh_name(), hosts=5, pods=2)) as lab:
        up_with_peers(lab)
        times = ping_matrix(lab.pods(), PATIENCE_S)
        namespaces = namespaces_of(lab.name)
        # Now and then an agent runs a tool that looks at its firewall rules.
        wait_for("only the agents run", lambda: len(netns.processes(namespaces)) == 5)
        pids = [host.agent_pid() for host in lab.hosts]
    assert len(times) == 90
    assert [pair for pair, seconds in times.items() if seconds is None] == []
    assert len(namespaces) == 16
    assert namespaces_of(lab.name) == []
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert not (STATE_DIR / lab.name).exists()
    assert root_state() == before
