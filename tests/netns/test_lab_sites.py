"""Sites behind routers, NAT, delay and loss with real agents; a host that joins; a lab that is saved."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.backend.table import LAB_BACKENDS
from flannel_udp.lab.faults import present_faults
from flannel_udp.lab.joining import add_host
from flannel_udp.lab.lab import Lab, remove
from flannel_udp.lab.links import link_of
from flannel_udp.lab.netns import wait_until
from flannel_udp.lab.node import Node
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import ping
from flannel_udp.lab.sites import Cable
from flannel_udp.lab.topology import read_topology
from tests.support.labs import NEEDS_NETNS, cleaned_up, fresh_name, namespaces_of, state_of
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

LAB = [sys.executable, "-m", "flannel_udp", "lab"]
TOPOLOGY = """
hosts = 4
[host.h2]
behind = "r1"
arguments = ["--public-ip=192.0.2.201"]
[host.h3]
behind = "r3"
[host.h4]
agent = false
loss = "20%"
[router.r1]
nat = true
forward = "h2"
[router.r2]
delay = "40ms"
mtu = 1400
[router.r3]
behind = "r2"
"""


LATE_S = 5.0
"""What has not come by then is lost."""


def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [*LAB, *words, "--name", name]
    return subprocess.run(argv, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)


def told(lab: Lab, *words: str) -> str:
    """Return what a command says that does what it is told."""
    done = run(lab.name, *words)
    assert done.returncode == 0, done
    return done.stdout


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    name, path = fresh_name(), tmp_path_factory.mktemp("sites") / "x.toml"
    path.write_text(TOPOLOGY)
    try:
        done = run(name, "up", "--topology", str(path))
        assert done.returncode == 0, done.stderr
        yield Lab.attach(name)
    finally:
        remove(name)


def round_trip_s(source: Node, target: str) -> float:
    """Return the time of a ping that was answered; the first of all may be lost while agents learn of each other."""
    found: list[float] = []

    def answered() -> bool:
        done = source.run(["ping", "-c", "1", "-W", "5", target], check=False)
        found.extend(float(time_ms) / 1e3 for time_ms in re.findall(r"time=([0-9.]+) ms", done.stdout))
        return bool(found)

    assert wait_until(answered, PATIENCE_S)
    return found[0]


def ping_once(source: Node, *words: str) -> str:
    """Return what a ping says of its only packet."""
    command = ["ping", "-c", "1", "-W", str(PATIENCE_S), *words]
    return source.run(command, check=False, timeout_s=2 * PATIENCE_S).stdout


def test_pods_reach_each_other_over_two_routers_and_a_far_link_and_into_a_nat(lab: Lab) -> None:
    first, behind_nat, far, _ = lab.pods()
    assert round_trip_s(first, str(far.ip)) >= 0.08
    assert round_trip_s(far, str(behind_nat.ip)) >= 0.08
    assert round_trip_s(first, str(behind_nat.ip)) > 0
    assert round_trip_s(behind_nat, str(first.ip)) > 0
    assert {peer["public_ip"] for peer in lab.host("h1").control("/v1/peers")} == {"192.0.2.201", "172.16.3.3"}


def test_each_router_takes_one_from_the_ttl_and_says_what_its_network_carries(lab: Lab) -> None:
    h1, h3 = lab.host("h1"), lab.host("h3")
    for ttl, router in ((1, "192.0.2.202"), (2, "172.16.2.203")):
        said = ping_once(h1, "-t", str(ttl), str(h3.underlay))
        assert f"From {router} icmp_seq=1 Time to live exceeded" in said
    large = ping_once(h1, "-M", "do", "-s", "1472", str(h3.underlay))
    assert "From 192.0.2.202 icmp_seq=1 Frag needed and DF set (mtu = 1400)" in large


def test_a_narrow_link_behind_a_router_is_a_black_hole_too(lab: Lab) -> None:
    h1, h3 = lab.host("h1"), lab.host("h3")
    large = ["ping", "-c", "3", "-i", "0.2", "-W", "2", "-M", "do", "-s", str(1300 - 28), str(h3.underlay)]
    told(lab, "mtu", "h3", "1200")
    try:
        said = h1.run(large, check=False).stdout
        assert ("100% packet loss" in said, "Frag needed" in said) == (True, False), said
        assert None not in ping(h1, [h3.underlay], PATIENCE_S)
    finally:
        told(lab, "heal", "h3")
    assert h1.run([*large[:-1], "-c", "10", str(h3.underlay)], check=False).returncode == 0


def test_nobody_outside_has_a_way_to_what_is_behind_a_nat(lab: Lab) -> None:
    h1, h2 = lab.host("h1"), lab.host("h2")
    assert "Destination Net Unreachable" in ping_once(h1, str(h2.underlay))
    assert None not in ping(h2, [h1.underlay], PATIENCE_S)
    for source, target in (("h1/p1", "h2/p1"), ("h2/p1", "h1/p1")):
        trace = json.loads(told(lab, "trace", "--json", source, target))
        assert trace["verdict"] == "delivered", trace


def test_so_many_frames_are_lost_and_not_all(lab: Lab) -> None:
    h4 = lab.host("h4").underlay
    assert round_trip_s(lab.net, str(h4)) > 0
    # 36 of 100, with a standard deviation of 5; on a busy machine some more may be late.
    assert wait_until(lambda: 12 <= ping(lab.net, [h4] * 100, LATE_S).count(None) <= 65, PATIENCE_S)


def test_the_drawing_and_the_documents_have_routers_nat_and_what_links_are_like(lab: Lab) -> None:
    drawn = told(lab, "graph")
    for text in (
        f"behind r3, 172.16.3.0/24: a bridge in the namespace fu-{lab.name}-r3\n",
        "NAT, the port goes on to h2",
        "link: 40 ms",
        "link: 20 % lost",
        "eth0  172.16.2.203",
        "site  172.16.2.254/24",
    ):
        assert text in drawn
        assert text.rstrip().partition(": a")[0] in told(lab, "graph", "--svg")
    found = json.loads(told(lab, "inspect", "--json"))
    assert [(router["name"], router["behind"], router["nat"]) for router in found["routers"]] == [
        ("r1", None, True),
        ("r2", None, False),
        ("r3", "r2", False),
    ]
    assert found["routers"][1]["link"] == {"rate": None, "delay_ms": 40.0, "loss": 0.0, "mtu": 1500}
    assert (found["hosts"][2]["behind"], found["hosts"][2]["link"]["mtu"]) == ("r3", 1500)


def has_no_carrier(node: Node) -> bool:
    """Tell whether eth0 says so: kernels before 6.8 do up to a second later."""
    return "NO-CARRIER" in node.run(["ip", "link", "show", "eth0"]).stdout


def test_a_far_link_is_cut_and_healed_and_so_is_its_relay(lab: Lab) -> None:
    r2, link = lab.node("r2"), link_of(lab, "r2")
    told(lab, "cut", "r2")
    assert wait_until(lambda: has_no_carrier(r2), PATIENCE_S)
    assert present_faults(lab) == {"r2": ["the link r2 is cut"]}
    assert told(lab, "heal", "r2") == "r2: the link is plugged in again\n"
    assert link.relay is not None
    pid = link.relay.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: has_no_carrier(r2), PATIENCE_S)
    assert present_faults(lab) == {"r2": ["the relay of the link r2 does not run"]}
    assert told(lab, "heal", "r2") == "r2: the relay runs again\n"
    assert present_faults(lab) == {}
    assert round_trip_s(lab.host("h1"), str(lab.host("h3").underlay)) >= 0.08


def test_a_host_joins_and_the_lab_that_is_saved_has_it(lab: Lab, tmp_path: Path) -> None:
    assert told(lab, "add", "host", "--behind", "r3") == (
        "h5 has joined: 172.16.3.5, subnet 10.244.5.0/24, p1 10.244.5.2\n"
    )
    now = Lab.attach(lab.name)
    assert round_trip_s(now.pods()[0], str(now.host("h5").pods[0].ip)) >= 0.08
    assert round_trip_s(now.host("h5").pods[0], str(now.host("h3").pods[0].ip)) > 0
    path = tmp_path / "saved.toml"
    path.write_text(told(lab, "save"))
    assert read_topology(path, LAB_BACKENDS) == now.plan
    assert run(lab.name, "add", "host", "--behind", "r4").stderr == (
        "flannel-udp: h6 is behind r4, which is no router: there are r1, r2, r3\n"
    )


@pytest.fixture
def waiting() -> Iterator[Lab]:
    """A host without an agent; the agent of one that joins waits for a configuration, and so does who adds it."""
    arguments = ("--registry=file:/nowhere/registry.json",)
    with cleaned_up(Lab(Plan(fresh_name(), hosts=1, pods=1, agents=(), agent_args=arguments))) as lab:
        lab.up()
        yield lab


@pytest.mark.parametrize("what", ["interrupt", "down"])
def test_a_host_that_has_not_joined_leaves_nothing(waiting: Lab, what: str) -> None:
    name = waiting.name
    adding = subprocess.Popen(
        [*LAB, "add", "host", "--name", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert wait_until((state_of(name) / "h2" / "agent.pid").exists, PATIENCE_S)
        assert run(name, "add", "host").stderr == (
            f"flannel-udp: somebody else is adding a host to the lab {name}: try again\n"
        )
        if what == "interrupt":
            adding.send_signal(signal.SIGINT)
        else:
            assert run(name, "down").returncode == 0
        said, complaints = adding.communicate(timeout=PATIENCE_S)
    finally:
        adding.kill()
        adding.communicate()
    last = complaints.splitlines()[-1]
    if what == "interrupt":
        assert (adding.returncode, said, last) == (130, "", "lab: starting 1 agents")
        assert namespaces_of(name) == [waiting.host("h1").namespace, f"fu-{name}-h1-p1", waiting.net.namespace]
        assert waiting.net.run(["ip", "link", "show", "h2"], check=False).returncode != 0
        assert not (state_of(name) / "h2").exists()
        assert Lab.attach(name).plan == waiting.plan
    else:
        assert (adding.returncode, said) == (1, "")
        assert last == f"flannel-udp: the lab {name} was taken down while a host joined it"
        assert namespaces_of(name) == []
        assert not state_of(name).exists()


def test_a_host_that_has_just_joined_stays_when_its_command_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=())) as lab:
        save = Plan.save

        def save_and_be_interrupted(plan: Plan) -> None:
            save(plan)
            raise KeyboardInterrupt

        monkeypatch.setattr(Plan, "save", save_and_be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            add_host(lab.name, lambda plan: replace(plan, hosts=2))
        now = Lab.attach(lab.name)
        assert [host.name for host in now.hosts] == ["h1", "h2"]
        assert present_faults(now) == {}
        assert None not in ping(now.hosts[0], [now.hosts[1].underlay], PATIENCE_S)


def test_a_relay_whose_start_is_interrupted_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(fresh_name(), hosts=1, pods=0, agents=(), cables={"h1": Cable(delay_ms=1.0)})
    with Lab(plan) as lab:
        relay = lab.underlay.relay_of(lab.host("h1"))
        assert relay is not None
        relay.stop()
        popen = Node.popen

        def popen_and_be_interrupted(node: Node, *words: Any, **options: Any) -> subprocess.Popen[str]:
            child = popen(node, *words, **options)
            signal.raise_signal(signal.SIGINT)
            return child

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Node, "popen", popen_and_be_interrupted)
            relay.start()
        assert relay.pid() is None
        assert told(lab, "heal") == "h1: the relay runs again\n"
