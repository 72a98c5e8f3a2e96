"""`flannel-udp doctor` about the other hosts: it asks them, names each once, and takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.netns.test_doctor import faults, rows_of, run_doctor
from tests.support.agents import subnet_of, up_with_peers, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS


@pytest.fixture(params=["udp", "host-gw"])
def trio(request: pytest.FixtureRequest) -> Iterator[Lab]:
    config = {"Network": str(OVERLAY), "Backend": {"Type": request.param}}
    with Lab(Plan(fresh_name(), hosts=3, config=config)) as lab:
        yield up_with_peers(lab)


def told(host: Host, question: str) -> list[str]:
    return [row["what"] for row in rows_of(host)[1] if row["question"] == question]


def wait_for_told(host: Host, what: str) -> None:
    """Wait until that alone is said of the peers: on a busy machine one may answer too late."""
    wait_for(what, lambda: told(host, "peers") == [what])


def test_idle_peers_are_asked_and_who_is_silent_is_named(trio: Lab) -> None:
    h1, h2, _ = trio.hosts
    wait_for_told(h1, "2, and nothing is known to be in the way to any; 2 were asked")
    subnet = subnet_of(h2)
    if h1.backend == "udp":
        h2.kill_agent()
    else:
        h2.configure("link set eth0 down")
    (what,) = told(h1, "peers")
    # The agent may know by now why: an ICMP error came.
    assert f"{subnet} on {h2.underlay}" in what
    assert "peers" in faults(h1)


def test_an_ill_peer_is_named_once(trio: Lab) -> None:
    h1, h2, _ = trio.hosts
    h2.configure("link set eth0 down")
    with h1.pods[0].popen(["ping", "-q", "-i", "0.2", str(h2.pods[0].ip)]) as ping:
        try:
            wait_for("the agent knows", lambda: h1.control("/v1/status")["degraded"] == ["peers"])
            named = [line for line in run_doctor(h1).stdout.splitlines() if str(h2.underlay) in line]
        finally:
            ping.kill()
    (line,) = named
    # With host-gw nothing tells what else comes back; the kernel may say first that nobody answers ARP.
    ways = [" and nothing comes back ("] + [", and it answers no echo ("] * (h1.backend == "host-gw")
    begin = f"FAULT peers: {subnet_of(h2)} on {h2.underlay}: packets go there"
    assert line.startswith(tuple(f"{begin}{way}" for way in ways))


def test_a_hundred_dead_peers_take_seconds() -> None:
    reservations = {f"10.244.{n}.0/24": f"192.0.2.{n}" for n in range(100, 200)}
    with Lab(Plan(fresh_name(), hosts=2, reservations=reservations)) as lab:
        up_with_peers(lab)
        lines = told(lab.hosts[0], "peers")
    # Those of which the underlay says something are ill by then, ten of them named; the others, if any, are one line.
    assert len(lines) <= 12
    if not lines[-1].endswith(" more peers have problems"):
        assert " that were asked answer no echo through the overlay: 10.244.1" in lines[-1]
        assert lines[-1].rpartition(", and ")[2].endswith(" more")


def test_without_an_agent_the_hosts_of_the_registry_are_asked(trio: Lab) -> None:
    h1, h2, h3 = trio.hosts
    h1.stop_agent()
    wait_for_told(h1, "3 hosts that the registry names answer")
    h2.run(["iptables", "-w", "-A", "INPUT", "-p", "icmp", "-j", "DROP"])
    wait_for_told(h1, f"of 3 hosts that the registry names, 1 answer no echo: {h2.underlay}")
    h3.run(["iptables", "-w", "-A", "INPUT", "-p", "icmp", "-j", "REJECT", "--reject-with", "icmp-admin-prohibited"])
    lost = f"{h3.underlay} (unreachable, says {h3.underlay})"
    wait_for_told(h1, f"of 3 hosts that the registry names, 1 cannot be reached: {lost}")
    assert "peers" in faults(h1)
