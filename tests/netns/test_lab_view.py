"""`lab view` on a real lab: figures, faults and a packet's way, over HTTP as the page asks; how it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import names
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import ping
from flannel_udp.view.interfaces import Interface, look
from flannel_udp.view.shapes import Look
from tests.support.agents import has_ended, wait_for
from tests.support.labs import NEEDS_NETNS, cleaned_up, fresh_name
from tests.support.patience import PATIENCE_S
from tests.support.view import View, viewed

pytestmark = NEEDS_NETNS

OWN_LESSON = """\
title = "Ours"
text = "A link."

[topology]
hosts = 1
pods = 0

[topology.host.h1]
agent = false

[[steps]]
name = "down"
task = "Take lo of h1 down."
hints = ["By ip link."]
solve = ["flannel-udp lab exec h1 -- ip link set lo down"]

  [[steps.checks]]
  on = "h1"
  run = "ip link show lo"
  lacks = "UP"
  otherwise = "lo is up."
"""


def looks(events: Iterator[tuple[str, Any]]) -> Iterator[Look]:
    for kind, what in events:
        assert kind == "look", what
        yield what


def test_a_lesson_is_checked_hinted_at_and_solved(view: View) -> None:
    # First: whatever pings the pods makes the step done.
    with view.live() as events:
        lesson = next(looks(events))["lesson"]
        assert lesson is not None
        assert [step["state"] for step in lesson["steps"]] == ["open", "later", "later"]
        checked = view.post("learn", what="check")["found"]
        assert (checked["advanced"], len(checked["steps"][0]["missing"])) == (None, 2)
        assert view.post("learn", what="hint")["found"]["number"] == 1
        solved = view.post("learn", what="solve")
        assert (solved["error"], solved["found"]["progress"]["advanced"]) == (None, "ping")
        for now in looks(events):
            assert now["lesson"] is not None
            if now["lesson"]["steps"][0]["state"] == "done":
                break
    assert view.post("learn", what="start")["error"] == "a lesson has no 'start': it would be one of check, hint, solve"


def test_the_figures_are_the_kernels(lab: Lab, view: View) -> None:
    h1, h2 = lab.hosts
    with view.live() as events:
        following = looks(events)
        before = {link["name"]: link for link in next(following)["links"]}
        assert set(before) == {"h1", "h1/p1", "h2", "h2/p1"}
        for _ in range(20):
            ping(h1.pods[0], [h2.pods[0].ip])
        for now in following:
            rows = {link["name"]: link for link in now["links"]}
            if rows["h2/p1"]["to_node"]["packets"] >= before["h2/p1"]["to_node"]["packets"] + 20:
                break
    assert rows["h1/p1"]["from_node"]["packets"] >= before["h1/p1"]["from_node"]["packets"] + 20

    def both_ends() -> dict[str, tuple[Interface, Interface]]:
        kernel = look([lab.net, h1, h2, *lab.pods()])
        ports = {name: kernel[name[:2]]["p1"] if "/" in name else kernel["net"][name] for name in rows}
        return {name: (port, kernel[name]["eth0"]) for name, port in ports.items()}

    for name, (port, end) in both_ends().items():
        row = rows[name]
        assert row["to_node"]["bytes"] <= port.tx_bytes
        assert row["from_node"]["bytes"] <= port.rx_bytes
        assert (row["up"], row["mtu"]) == (True, end.mtu)
    # What one end sent the other got, but for what is on its way, and comes between the looks at the two.
    wait_for(
        "both ends agree",
        lambda: all(abs(port.tx_packets - end.rx_packets) <= 5 for port, end in both_ends().values()),
    )


def test_hosts_leases_and_peers_are_what_the_agents_say(lab: Lab, view: View) -> None:
    def are_told(now: Look) -> bool:
        """Tell whether all agents have answered, each within the second that a look has for it."""
        return all(row["agent"] is not None and row["agent"]["peers"] == 1 for row in now["hosts"])

    with view.live() as events:
        now = next(filter(are_told, looks(events)))
    assert now["faults"] == {}
    for host, row in zip(lab.hosts, now["hosts"], strict=True):
        agent = row["agent"]
        assert agent is not None
        assert (row["name"], row["addresses"], row["subnets"]) == (host.name, [str(host.underlay)], [str(host.subnet)])
        assert (agent["pid"], agent["ready"], agent["peers"]) == (host.agent_pid(), True, 1)
        assert agent["lease"].startswith(f"{str(host.subnet).replace('/', '-')}, 23 h ")
        assert row["pods"] == [f"{host.name}/p1 {host.pods[0].ip}"]


def test_the_drawing_has_as_many_hosts_in_a_row_as_fit(view: View) -> None:
    for width, rows in ((300, 2), (900, 1)):
        with view.asked("GET", f"drawing?width={width}") as answer:
            picture = answer.read().decode()
        assert picture.count("underlay 192.0.2.0/24") == rows
        assert "<style" not in picture
        assert all(f'data-{kind}="{name}"' in picture for kind in ("node", "link", "rates") for name in ("h1", "h2/p1"))


def test_a_fault_is_made_seen_by_two_pages_and_healed(view: View) -> None:
    with view.live() as one, view.live() as other:
        assert view.post("change", command="cut", words=["h2"])["lines"] == ["h2: the link is cut"]
        for page in (one, other):
            assert next(now for _, now in page if now["faults"])["faults"] == {"h2": ["the link h2 is cut"]}
        done = view.post("change", command="heal")
        assert done["lines"] == ["h2: the link is plugged in again"]
        assert done["error"] is None
        for page in (one, other):
            assert next(now for _, now in page if not now["faults"])["links"][2]["up"]


def test_what_fails_is_a_line_in_the_page(lab: Lab, view: View) -> None:
    done = view.post("change", command="cut", words=["h22"])
    assert done["lines"] == []
    assert done["error"].startswith(f"exit code 1: the lab {lab.name} ")
    assert done["error"].endswith("has no link h22: it has h1, h1/p1, h2, h2/p1: did you mean h2?")
    assert done["command"] == f"flannel-udp lab cut h22 --name {lab.name}"
    way = view.post("follow", **{"from": "h1/p1", "to": "h1"})
    assert way["error"].startswith("exit code 2: lab follow goes from pod to pod")
    assert "has no host h3" in view.post("foretell", **{"from": "h1/p1", "to": "h3/p1"})["error"]


def test_a_packet_is_followed_and_foretold(lab: Lab, view: View) -> None:
    sent = view.post("follow", **{"from": "h1/p1", "to": "h2/p1"})
    assert (sent["end"], sent["error"]) == ("it arrived", None)
    assert [step["node"] for step in sent["steps"]] == ["h1/p1", "h1", "h1", "h2", "h2/p1"]
    assert all(step["good"] for step in sent["steps"])
    told = view.post("foretell", **{"from": "h1/p1", "to": "h2/p1", "proto": "tcp", "dport": "80"})
    assert told["command"] == f"flannel-udp lab trace h1/p1 h2/p1 --proto=tcp --dport=80 --name {lab.name}"
    assert [step["node"] for step in told["steps"]] == ["h1/p1", "h1", "h1", "h1", "h1", "h2", "h2/p1"]
    assert told["steps"][0]["headers"][-1]["name"] == "TCP"
    assert told["end"].startswith("delivered: ")
    lost = view.post("foretell", **{"from": "h1/p1", "to": "h2/p1", "size": "1500", "df": True})
    assert lost["end"].startswith("dropped: ")
    assert [step["good"] for step in lost["steps"]] == [True, False, False]
    nowhere = view.post("foretell", **{"from": "h1/p1", "to": "10.244.255.7"})
    assert "NO: a lease covers the destination (no_route)" in nowhere["steps"][2]["lines"]


def test_nothing_is_asked_while_no_page_is_open(lab: Lab, view: View) -> None:
    (collector,) = children_of(view.process.pid)
    with view.live() as events:
        next(events)
    wait_for("the page to be gone", lambda: is_idle(collector))


def is_idle(pid: int) -> bool:
    """Tell whether a process uses no processor time for one and a half looks."""
    before = ticks_of(pid)
    time.sleep(1.5)
    return ticks_of(pid) == before


def ticks_of(pid: int) -> int:
    """Return what it and its threads have used, in clock ticks (proc_pid_stat(5))."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def children_of(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_viewer_that_leaves_midway_does_not_confuse_the_next_one(view: View) -> None:
    for _ in range(5):
        with view.live() as events:
            next(events)
        with view.asked("GET", "drawing?width=900") as answer:
            assert answer.read().startswith(b"<svg ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_the_page_hears_of_it(lab: Lab, number: signal.Signals) -> None:
    with viewed(lab.name) as view, view.live() as events:
        assert next(events)[0] == "look"
        children = children_of(view.process.pid)
        view.process.send_signal(number)
        assert list(events)[-1] == ("end", "the page's server was ended")
        assert view.process.wait(PATIENCE_S) == 128 + number
        assert view.process.stderr is not None
        assert view.process.stderr.read() == ""
        assert [pid for pid in children if not has_ended(pid)] == []


def run(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "flannel_udp", "lab", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_what_cannot_be_is_one_line(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("view", "--name", lab.name, "--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"flannel-udp: cannot listen on 127.0.0.1, port {port}: another program has it: "
        "give another --port, or none for a free one\n"
    )
    unknown = run("view", "--name", f"{lab.name}x")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    (line,) = unknown.stderr.splitlines()
    assert line.endswith(f": did you mean {lab.name}?")
    assert run("view", "--port", "70000").returncode == 2


def test_a_lab_goes_without_waiting_for_who_looks_at_it_and_the_page_says_so() -> None:
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=())) as lab:
        with viewed(lab.name) as view, view.live() as events:
            kind, first = next(events)
            assert (kind, first["lesson"]) == ("look", None)
            checked = view.post("learn", what="check")
            assert checked["error"].startswith(f"exit code 1: the lab {lab.name} has no lesson")
            assert run("down", "--name", lab.name).returncode == 0
            assert list(events)[-1] == ("end", f"the lab {lab.name} is gone")
            assert view.process.wait(PATIENCE_S) == 0
            assert view.process.stderr is not None
            assert view.process.stderr.read() == f"flannel-udp: the lab {lab.name} is gone\n"
        assert [name for name in names() if lab.name in name] == []


def test_a_lesson_whose_file_is_half_edited_is_told_and_the_figures_go_on(tmp_path: Path) -> None:
    name, path = fresh_name(), tmp_path / "own.toml"
    path.write_text(OWN_LESSON)
    with cleaned_up(Lab(Plan(name))):
        assert run("lesson", "start", str(path), "--name", name).returncode == 0
        with viewed(name) as view, view.live() as events:
            following = looks(events)
            first = next(following)
            assert (first["lesson"] or {})["title"] == "Ours"
            assert first["lesson_wrong"] is None
            path.write_text(OWN_LESSON.replace("lacks", "lakcs"))
            wrong = run("lesson", "check", "--name", name).stderr.removeprefix("flannel-udp: ").rstrip()
            assert wrong.startswith(f"{path}:20: steps[1].checks[1].lakcs: ")
            told = next(now for now in following if now["lesson_wrong"] == wrong)
            assert (told["lesson"], [link["name"] for link in told["links"]]) == (None, ["h1"])
            path.write_text(OWN_LESSON)
            mended = next(now for now in following if now["lesson_wrong"] is None)
            assert mended["lesson"] == first["lesson"]


def test_a_host_that_joins_is_in_the_page() -> None:
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=())) as lab, viewed(lab.name) as view, view.live() as events:
        following = looks(events)
        first = next(following)
        assert [host["name"] for host in first["hosts"]] == ["h1"]
        assert run("add", "host", "--name", lab.name).returncode == 0
        now = next(now for now in following if len(now["hosts"]) == 2)
        assert [link["name"] for link in now["links"]] == ["h1", "h2"]
        assert now["drawing"] > first["drawing"]
        with view.asked("GET", "drawing?width=800") as response:
            assert b'data-node="h2"' in response.read()


def test_it_ends_with_the_lab_also_while_no_page_is_open() -> None:
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=())) as lab, viewed(lab.name) as view:
        lab.down()
        assert view.process.wait(PATIENCE_S) == 0
