"""`flannel-udp doctor` where the overlay has IPv6: each family is asked, and what is wrong with one is that one's."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from flannel_udp.host.family import family_of
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.netns.test_doctor import faults, mend, rows_of
from tests.support.agents import up_with_peers, wait_for, wait_for_pings
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS
DEVICES: dict[str | None, dict[int, str]] = {
    "udp": {4: "flannel0", 6: "flannel0"},
    "vxlan": {4: "flannel.1", 6: "flannel-v6.1"},
}
BY_FAMILY = ("forwarding", "routes", "cut off", "underlay", "rules", "firewall for pods")


def config(backend: str) -> dict[str, object]:
    return {"Network": str(OVERLAY), "Backend": {"Type": backend}}


@pytest.fixture(scope="module", params=["udp", "vxlan", "host-gw"])
def duo(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two hosts in order, by both families; tests leave them so."""
    with Lab(Plan(fresh_name(), hosts=2, families="46", config=config(request.param))) as lab:
        yield up_with_peers(lab)


@pytest.fixture
def h1(duo: Lab) -> Host:
    """The host that is examined; its agent finds all well, what an earlier test did is over."""
    host = duo.host("h1")
    wait_for_pings(duo)
    wait_for("all is well", lambda: host.control("/v1/status")["problems"] == [])
    return host


def only_fault(host: Host, question: str) -> tuple[str, str]:
    """Return what is wrong: nothing but what this question finds, and what the agent makes of it in its own words."""
    found = faults(host)
    assert set(found) - {"agent", "peers"} == {question}
    return found[question]


def test_a_host_in_order_is_asked_about_each_family(h1: Host) -> None:
    rows: list[dict[str, Any]] = []

    def all_is_well() -> bool:
        code, rows[:] = rows_of(h1)
        return code == 0 and all(row["ok"] for row in rows)

    wait_for("all is well", all_is_well)
    said = {row["question"]: row["what"] for row in rows}
    for question in BY_FAMILY:
        assert {f"{question} (IPv4)", f"{question} (IPv6)"} <= set(said)
        assert question not in said
    for version in (4, 6):
        # Whoever is asked about is there: a question that is skipped is no answer.
        assert said[f"routes (IPv{version})"] == "the kernel sends packets for all 1 peers where they belong"
        assert said[f"underlay (IPv{version})"] == "there is a way to all 1 other hosts"


def test_forwarding_that_is_off_for_ipv6_only(h1: Host) -> None:
    h1.run(["sysctl", "-w", "net.ipv6.conf.all.forwarding=0"])
    what, command = only_fault(h1, "forwarding (IPv6)")
    assert what.startswith("this host does not forward, net.ipv6.conf.all.forwarding is 0: dropped is ")
    mend(h1, command)
    assert "forwarding (IPv6)" not in faults(h1)


@pytest.mark.parametrize("version", [4, 6])
def test_a_black_hole_in_one_family(h1: Host, duo: Lab, version: int) -> None:
    subnet = duo.host("h2").subnet_of(version)
    assert subnet is not None
    hole = f"{subnet[2]}/{subnet.max_prefixlen}"
    h1.run(["ip", f"-{version}", "route", "add", "blackhole", hole])
    try:
        what, command = only_fault(h1, f"routes (IPv{version})")
        assert what.startswith(f"packets for {hole} are refused, not sent to ")
    finally:
        mend(h1, f"ip -{version} route del blackhole {hole}")
    assert command.startswith(f"{family_of(version).ip} route del blackhole {subnet[2]}")
    assert f"routes (IPv{version})" not in faults(h1)


@pytest.mark.parametrize("version", [4, 6])
def test_a_host_that_cannot_be_sent_to_by_one_family(h1: Host, duo: Lab, version: int) -> None:
    address = duo.host("h2").underlay_of(version)
    h1.run(["ip", f"-{version}", "route", "add", "blackhole", str(address)])
    try:
        what, command = faults(h1)[f"underlay (IPv{version})"]
        assert what == f"no way to 1 of 1 other hosts ({address}, say: refused (blackhole))"
        assert command.startswith("ip -6 route get" if version == 6 else "ip route get")
    finally:
        h1.run(["ip", f"-{version}", "route", "del", "blackhole", str(address)])


@pytest.mark.parametrize("version", [4, 6])
def test_a_host_whose_way_leads_into_our_own_tunnel(h1: Host, duo: Lab, version: int) -> None:
    """As where a DHCP client gave the tunnel's device an address of the hosts' network."""
    if h1.backend not in DEVICES:
        pytest.skip("has no tunnel")
    address, device = duo.host("h2").underlay_of(version), DEVICES[h1.backend][version]
    h1.run(["ip", f"-{version}", "route", "add", str(address), "dev", device])
    try:
        what, command = faults(h1)[f"underlay (IPv{version})"]
        assert what.startswith(f"the way to 1 of 1 other hosts leads into {device}, our own tunnel ({address}, say: ")
        assert f"dev {device}" in what.partition("say: ")[2]
        look, _, undo = command.partition(", then ")
        h1.run(look.split())
        mend(h1, undo)
        assert f"underlay (IPv{version})" not in faults(h1)
    finally:
        h1.run(["ip", f"-{version}", "route", "del", str(address), "dev", device], check=False)


def test_an_address_that_leads_a_host_into_our_own_tunnel_is_to_be_taken_off(h1: Host, duo: Lab) -> None:
    if h1.backend not in DEVICES:
        pytest.skip("has no tunnel")
    device = DEVICES[h1.backend][4]
    address = f"192.0.2.200 peer {duo.host('h2').underlay} dev {device}"
    h1.configure(f"address add {address}")
    try:
        _, command = faults(h1)["underlay (IPv4)"]
        assert command.endswith(f", then take the address that brought it off {device}: ip address show dev {device}")
    finally:
        h1.configure(f"address del {address}")


def test_a_rule_by_mark_is_named_with_its_family(h1: Host) -> None:
    h1.run(["ip", "-6", "rule", "add", "pref", "100", "fwmark", "5", "lookup", "77"])
    try:
        said = {row["question"]: row for row in rows_of(h1)[1]}
    finally:
        h1.run(["ip", "-6", "rule", "del", "pref", "100"])
    assert '"100: from all fwmark 0x5/0xffffffff lookup 77"' in said["rules (IPv6)"]["what"]
    assert said["rules (IPv6)"]["mend"] == "ip -6 rule"
    assert said["rules (IPv4)"]["what"] == "none is for packets with a mark, a port or the like only"


CLOSED = {
    "ip6tables": ("ip6tables -w -I FORWARD -s fd00:10:244::/48 -j DROP", "ip6tables -w -F FORWARD"),
    "nft": (
        "nft 'add table ip6 own; add chain ip6 own through { type filter hook forward priority 0; policy drop; }'",
        "nft delete table ip6 own",
    ),
}


@pytest.mark.parametrize("tool", CLOSED)
def test_an_own_firewall_that_forwards_ipv4_only(h1: Host, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    close, undo = CLOSED[tool]
    h1.run(["sh", "-c", close])
    try:
        what, command = only_fault(h1, "firewall for pods (IPv6)")
        assert what.startswith("this host's own firewall drops what ")
        mend(h1, command)
        assert "firewall for pods (IPv6)" not in faults(h1)
    finally:
        h1.run(["sh", "-c", undo])


def test_an_own_firewall_that_takes_no_datagrams_of_ipv6(h1: Host) -> None:
    if h1.backend == "host-gw":
        pytest.skip("has no port")
    port = 8285 if h1.backend == "udp" else 8472
    rule = ["INPUT", "-i", "eth0", "-p", "udp", "--dport", str(port), "-j", "DROP"]
    h1.run(["ip6tables", "-w", "-A", *rule])
    try:
        what, command = only_fault(h1, "firewall (IPv6)")
        assert what.startswith(f"this host's own firewall drops UDP port {port}: ")
        mend(h1, command)
        assert "firewall (IPv6)" not in faults(h1)
    finally:
        h1.run(["ip6tables", "-w", "-F", "INPUT"])


def test_neighbours_that_cannot_be_found_by_ipv6(h1: Host) -> None:
    h1.run(["ip6tables", "-w", "-A", "INPUT", "-p", "ipv6-icmp", "-j", "DROP"])
    try:
        what, command = only_fault(h1, "firewall (IPv6)")
        assert what.startswith("this host's own firewall drops ICMPv6: ")
        mend(h1, command)
        assert "firewall (IPv6)" not in faults(h1)
    finally:
        h1.run(["ip6tables", "-w", "-F", "INPUT"])


@pytest.mark.parametrize("backend", ["udp", "vxlan"])
def test_without_an_agent_the_configuration_tells_the_families(backend: str) -> None:
    plan = Plan(fresh_name(), hosts=1, pods=0, agents=(), families="6", config=config(backend))
    with Lab(plan) as lab:
        (host,) = lab.hosts
        host.run(["sysctl", "-w", "net.ipv6.conf.all.forwarding=0"])
        found = faults(host)
        assert set(found) == {"agent", "subnet file", "forwarding"}  # one family needs no naming
        assert found["forwarding"][1] == "sysctl -w net.ipv6.conf.all.forwarding=1"
        said = {row["question"]: row["what"] for row in rows_of(host)[1]}
        assert str(host.underlay_of(6)) in said["interface"]
        port = 8285 if backend == "udp" else 8472
        with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("", port))
            assert "UDP port" not in faults(host)  # IPv4's is nothing to it
        with host.socket(socket.AF_INET6, socket.SOCK_DGRAM) as holder:
            holder.bind(("", port))
            assert faults(host)["UDP port"][0] == f"another process has {port}, and no agent can start"
