"""Faults of a lab by command: each does what it says, tells it in a line, and `lab heal` undoes it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from flannel_udp.lab import faults, netns
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.links import interfaces_of
from flannel_udp.lab.node import Node
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.poison import NONSENSE, store_of
from flannel_udp.lab.probe import ping
from flannel_udp.lab.registry import Etcd
from tests.support.agents import wait_for, wait_for_pings
from tests.support.labs import NEEDS_NETNS, fresh_name, longest_packet
from tests.support.patience import PATIENCE_S

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

SEVERAL = ("-c", "3", "-i", "0.2", "-W", "2", "-q")
"""One lost packet is no proof of anything."""


@pytest.fixture(scope="module")
def the_lab(needs_etcd: None) -> Iterator[Lab]:
    """Two hosts with our agent, one pod each, and an etcd."""
    with Lab(Plan(fresh_name(), registry="etcd")) as lab:
        yield lab


@pytest.fixture
def lab(the_lab: Lab) -> Iterator[Lab]:
    """The same; what a test leaves broken is healed after it, by another process, whose children are not ours."""
    yield the_lab
    if faults.present_faults(the_lab) or NONSENSE in str(store_of(the_lab.plan).read()):
        told(the_lab, "heal")


def run(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "flannel_udp", "lab", *words, "--name", lab.name]
    return subprocess.run(argv, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)


def told(lab: Lab, *words: str) -> list[str]:
    """Return the lines of a command that does what it is told."""
    done = run(lab, *words)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.splitlines()


def reaches(node: Node, *words: str) -> bool:
    return node.run(["ping", *SEVERAL, *words], check=False).returncode == 0


def test_a_lab_with_no_fault_has_nothing_to_heal(lab: Lab) -> None:
    assert told(lab, "heal") == ["nothing to heal"]
    assert json.loads("".join(told(lab, "heal", "--json"))) == {"done": []}
    assert told(lab, "heal", "h1") == ["nothing to heal"]


def test_a_cut_link_has_no_carrier_until_it_is_healed(lab: Lab) -> None:
    h1, h2 = lab.hosts
    assert told(lab, "cut", "h2") == ["h2: the link is cut"]
    eth0 = interfaces_of(h2)["eth0"]
    assert "UP" in eth0["flags"]
    assert "LOWER_UP" not in eth0["flags"]
    assert not reaches(h1, str(h2.underlay))
    assert "192.0.2.2/24" in h2.run(["ip", "address", "show", "eth0"]).stdout
    assert told(lab, "heal", "h1") == ["nothing to heal"]
    assert told(lab, "heal", "h2") == ["h2: the link is plugged in again"]
    wait_for("a ping over the healed link", lambda: None not in ping(h1, [h2.underlay]))


def test_the_link_of_a_pod_is_one_too(lab: Lab) -> None:
    host, pod = lab.host("h1"), lab.host("h1").pod("p1")
    assert told(lab, "cut", "h1/p1") == ["h1/p1: the link is cut"]
    assert not reaches(host, str(pod.ip))
    assert told(lab, "heal") == ["h1/p1: the link is plugged in again"]
    wait_for("a ping to the pod", lambda: None not in ping(host, [pod.ip]))


def test_a_narrow_link_carries_what_it_says_super_packets_too_until_it_is_healed(lab: Lab) -> None:
    _, h2 = lab.hosts
    assert longest_packet(lab, h2, "eth0") > 1500
    assert told(lab, "mtu", "h2", "1400") == ["h2: the link carries 1400 bytes, otherwise 1500"]
    assert reaches(lab.net, "-M", "do", "-s", str(1400 - 28), str(h2.underlay))
    assert not reaches(lab.net, "-M", "do", "-s", str(1401 - 28), str(h2.underlay))
    assert longest_packet(lab, h2, "eth0") <= 1400
    assert told(lab, "heal") == ["h2: the link carries 1500 bytes again"]
    assert {interfaces_of(h2)["eth0"]["mtu"], interfaces_of(lab.net)["h2"]["mtu"]} == {1500}
    assert longest_packet(lab, h2, "eth0") > 1500


def test_an_agent_is_killed_started_restarted_and_taken_over_from(lab: Lab) -> None:
    host = lab.host("h1")
    first = host.agent_pid()
    assert told(lab, "kill", "h1") == [f"h1: the agent (process {first}) was killed, and could clean up nothing"]
    assert host.agent_pid() is None
    (line,) = told(lab, "start", "h1")
    second = host.agent_pid()
    assert line == f"h1: an agent runs (process {second})"
    assert host.is_ready()
    (line,) = told(lab, "restart", "h1")
    third = host.agent_pid()
    assert line == f"h1: the agent (process {second}) was stopped; an agent runs (process {third})"
    (line,) = told(lab, "takeover", "h1")
    fourth = host.agent_pid()
    assert line == f"h1: another agent (process {fourth}) has taken over from process {third}"
    assert host.control("/v1/status")["pid"] == fourth
    assert len({first, second, third, fourth}) == 4
    assert second is not None
    assert not netns.holds(host.namespace, second)


def test_heal_starts_the_agents_that_have_ended(lab: Lab) -> None:
    hosts = lab.hosts
    for host in hosts:
        told(lab, "kill", host.name)
    assert told(lab, "heal") == [f"{host.name}: an agent runs (process {host.agent_pid()})" for host in hosts]
    wait_for_pings(lab)


def test_etcd_stops_and_starts_and_loses_nothing(lab: Lab) -> None:
    etcd, held = Etcd(lab.plan), store_of(lab.plan).read()
    assert told(lab, "etcd", "stop") == ["etcd: stopped; nothing that it held is lost"]
    assert etcd.pid() is None
    assert told(lab, "etcd", "start") == [f"etcd: runs again (process {etcd.pid()})"]
    assert store_of(lab.plan).read() == held
    told(lab, "etcd", "stop")
    assert told(lab, "heal") == [f"etcd: runs again (process {etcd.pid()})"]


def test_etcd_forgets_its_history(lab: Lab) -> None:
    (line,) = told(lab, "etcd", "compact")
    assert line.startswith("etcd: has forgotten what was before revision ")
    again = run(lab, "etcd", "compact")
    assert (again.returncode, len(again.stderr.splitlines())) in ((1, 1), (0, 0))


def test_a_poisoned_lease_costs_its_host_the_subnet_and_heal_moves_the_pods(lab: Lab) -> None:
    host = lab.host("h2")
    former = host.subnet
    assert former is not None
    key = f"{former.network_address}-24"
    assert told(lab, "poison", "h2") == [f"{key}: its PublicIP is 'poisoned' now"]
    wait_for("another subnet", lambda: host.subnet != former and host.is_ready())
    assert host.pod("p1").ip in former
    assert told(lab, "heal") == [f"{key}: the nonsense is gone", f"h2: its pods have moved to {host.subnet}"]
    assert key not in store_of(lab.plan).read()
    wait_for_pings(lab)


def test_poisoned_configuration_and_subnets_of_nobody_are_healed(lab: Lab) -> None:
    before = store_of(lab.plan).read()
    assert told(lab, "poison", "config") == ["config: its Network is 'poisoned' now"]
    assert told(lab, "poison", "10.244.200.0/24") == ["10.244.200.0-24: is there now, with nonsense in it"]
    assert store_of(lab.plan).read()["config"] == {"Network": "poisoned"}
    assert told(lab, "heal") == ["config: is as it was", "10.244.200.0-24: the nonsense is gone"]
    assert store_of(lab.plan).read() == before


def test_what_nobody_may_send_is_dropped_and_the_reason_told(lab: Lab) -> None:
    wait_for_pings(lab)  # h1 knows its peer by now
    assert told(lab, "spoof") == [
        "net, which has no lease, sent h1 a ping as if from h2/p1: h1 dropped it (unknown_peer)",
        "h2, a peer, sent h1 a ping as if from h1/p1: h1 dropped it (spoofed_source)",
    ]
    stranger, liar = json.loads("".join(told(lab, "spoof", "--json")))
    assert stranger == {
        "sender": "net",
        "claims": "h2/p1",
        "target": "h1/p1",
        "version": 4,
        "arrived": False,
        "dropped": "unknown_peer",
    }
    assert (liar["sender"], liar["dropped"]) == ("h2", "spoofed_source")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("cut", "h22"), 1, "has no link h22: it has h1, h1/p1, h2, h2/p1: did you mean h2?"),
        (("heal", "h1/p2"), 1, "has no link h1/p2: it has h1, h1/p1, h2, h2/p1: did you mean h1/p1?"),
        (("mtu", "h1", "10"), 2, "a link cannot carry 10 bytes: give 576 to 65535"),
        (("mtu", "h1", "many"), 2, "lab mtu: 'many' is not a whole number"),
        (("kill", "h11"), 1, "has no host h11: it has h1, h2: did you mean h1?"),
        (("start", "h1"), 1, "h1: the agent runs already (process "),
        (("etcd", "stpo"), 2, "lab etcd: 'stpo' is not one of stop, start, compact: did you mean stop?"),
        (("etcd", "start"), 1, "etcd runs already (process "),
        (("poison", "confg"), 1, ": did you mean config?"),
    ],
)
def test_what_cannot_be_done_is_one_line(lab: Lab, words: tuple[str, ...], code: int, message: str) -> None:
    done = run(lab, *words)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert message in line


def test_an_agent_that_cannot_get_ready_is_one_line(lab: Lab) -> None:
    told(lab, "etcd", "stop")
    told(lab, "kill", "h1")
    code = (
        "import sys; from flannel_udp.cli.main import main; from flannel_udp.lab import faults\n"
        "faults.AGENT_TIMEOUT_S = 3.0\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "lab", "start", "h1", "--name", lab.name]
    done = subprocess.run(words, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("flannel-udp: h1: the agent runs, and is not ready after 3 s: ")
    assert line.endswith(f"(see: flannel-udp lab logs --name {lab.name} h1)")


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    """Two hosts without agent or pods; the leases are in a file, one is planned."""
    plan = Plan(fresh_name(), pods=0, agents=(), reservations={"10.244.2.0/24": "192.0.2.2"})
    with Lab(plan) as lab:
        yield lab


def test_keys_in_a_file_are_poisoned_and_healed_likewise(bare: Lab) -> None:
    before = store_of(bare.plan).read()
    assert before == {"config": {"Network": "10.244.0.0/16"}, "10.244.2.0-24": {"PublicIP": "192.0.2.2"}}
    for key in ("10.244.2.0-24", "config", "10.244.3.0/24"):
        told(bare, "poison", key)
    assert [value["PublicIP"] for key, value in store_of(bare.plan).read().items() if key != "config"] == [
        "poisoned"
    ] * 2
    assert sorted(told(bare, "heal")) == [
        "10.244.2.0-24: is as it was",
        "10.244.3.0-24: the nonsense is gone",
        "config: is as it was",
    ]
    assert store_of(bare.plan).read() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("etcd", "stop"), "has its leases in a file: make one with --registry etcd"),
        (("kill", "h1"), "h1 has no agent of ours"),
        (("poison", "h1"), "h1 has no lease in the registry"),
        (("spoof",), "spoofing needs at least 2 hosts with 1 pod each"),
    ],
)
def test_what_a_lab_does_not_have_is_named(bare: Lab, words: tuple[str, ...], message: str) -> None:
    (line,) = run(bare, *words).stderr.splitlines()
    assert message in line


def test_what_could_be_healed_is_told_also_where_something_could_not() -> None:
    with Lab(Plan(fresh_name(), pods=0, agents=())) as lab:
        told(lab, "cut", "h1")
        lab.net.configure("link del h2")
        done = run(lab, "heal")
        assert done.returncode == 1
        assert done.stderr == "flannel-udp: the link h2 was removed by hand, and only a new lab has it again\n"
        assert done.stdout == "h1: the link is plugged in again\n"


def test_the_kernels_vxlan_asks_nobody_who_they_are() -> None:
    config = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
    with Lab(Plan(fresh_name(), config=config, agent_args=("--datapath=kernel",), families="46")) as lab:
        wait_for_pings(lab)
        lines = told(lab, "spoof")
        assert [line.partition(": ")[2] for line in lines] == ["it arrived in h1/p1: nobody had asked who sent it"] * 4
        assert ["by IPv6" in line for line in lines] == [False, False, True, True]
