"""`monitor`: what happens to a live agent, told as it happens; what becomes of it when the agent or the reader goes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from flannel_udp import __version__
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, pid_of, subnet_of, up_with_peers, wait_for, wait_for_peers
from tests.support.by_hand import by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS


_PATIENT = """
import sys
from flannel_udp.admin import client
from flannel_udp.cli import monitor_commands
from flannel_udp.cli.main import main
client.fetch_status.__defaults__ = (90.0,)
monitor_commands.SUCCESSOR_S = 20.0
sys.exit(main())
"""
WITH_TIME_TO_FIND_THE_NEXT = ("-c", _PATIENT)
"""What runs where another agent takes over: on a busy machine it may need longer than 5 s to answer."""


class Viewer:
    """`monitor --json` on a host, or another form of it, which writes to a file."""

    def __init__(self, host: Host, shown: Path, *flags: str, program: Sequence[str] = ("-m", "flannel_udp")) -> None:
        self.path = shown
        self.errors = shown.with_suffix(".err")
        argv = [sys.executable, *program, "monitor", *flags, "--control-socket", str(host.control_socket)]
        with shown.open("w") as out, self.errors.open("w") as err:
            self.process = host.popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    def lines(self) -> list[str]:
        """Return the whole lines so far."""
        text = self.path.read_text()
        return text[: text.rfind("\n") + 1].splitlines()

    def events(self, **facts: Any) -> list[dict[str, Any]]:
        """Return what was told so far, as far as it has these facts."""
        told = [json.loads(line) for line in self.lines()]
        return [event for event in told if facts.items() <= event.items()]

    def wait_for(self, **facts: Any) -> dict[str, Any]:
        """Wait for an event that has these facts, and return it."""
        wait_for(f"{facts} in {self.path.read_text()}", lambda: bool(self.events(**facts)))
        return self.events(**facts)[0]

    def __enter__(self) -> Self:
        wait_for("it has begun", lambda: bool(self.lines()))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two hosts that know each other; every test leaves them so."""
    with Lab(Plan(fresh_name(), hosts=2)) as lab:
        yield up_with_peers(lab)


def test_two_viewers_are_told_of_peers_drops_repairs_and_leases(lab: Lab, tmp_path: Path) -> None:
    h1, h2 = lab.hosts
    hand, key = by_hand(lab), str(subnet_of(h1)).replace("/", "-")
    with Viewer(h1, tmp_path / "one", "--json") as one, Viewer(h1, tmp_path / "two") as two:
        first = one.wait_for(event="agent", pid=pid_of(h1), ready=True, state="running")
        assert first["subnet"] == str(subnet_of(h1))

        hand.put("10.244.250.0-24", '{"PublicIP": "192.0.2.77"}')
        one.wait_for(event="peer", what="added", subnet="10.244.250.0/24", public_ip="192.0.2.77")
        hand.put("10.244.250.0-24", '{"PublicIP": "192.0.2.78"}')
        one.wait_for(event="peer", what="changed", subnet="10.244.250.0/24", public_ip="192.0.2.78")
        hand.delete("10.244.250.0-24")
        one.wait_for(event="peer", what="removed", subnet="10.244.250.0/24")

        h1.pods[0].run(["ping", "-c3", "-i0.01", "-W1", "10.244.255.7"], check=False)
        told = one.wait_for(event="drops", direction="out", reason="no_route")
        assert "> 10.244.255.7, ICMP" in told["text"]
        wait_for("all three", lambda: sum(each["count"] for each in one.events(reason="no_route")) == 3)

        h1.run(["ip", "link", "set", "flannel0", "mtu", "1400"])
        one.wait_for(event="repair", what="mtu")

        hand.delete(key)
        one.wait_for(event="lease", what="lost", key=key)
        one.wait_for(event="error", part="lease")
        one.wait_for(event="lease", what="acquired", key=key)
        one.wait_for(event="state", ready=True, state="running")
        one.wait_for(event="works", part="lease")
        times = [event["time"] for event in one.events()]
        assert times == sorted(times)

        wait_for("the other one has them, too", lambda: any("state running (ready)" in line for line in two.lines()))
        shown = [line.split(" ", 1)[1] for line in two.lines()]
        whose = f"pid {pid_of(h1)}: running (ready), subnet {subnet_of(h1)}"
        assert shown[0] == f"agent flannel-udp {__version__}, {whose}"
        for line in ("peer added 10.244.250.0/24 via 192.0.2.77", f"lease lost {key}"):
            assert line in shown
    wait_for_peers([h1, h2])


def test_an_agent_that_takes_over_is_followed_and_the_end_of_the_last_one_is_told(lab: Lab, tmp_path: Path) -> None:
    h1 = lab.hosts[0]
    h1.stop_agent()
    with Agent(h1) as first:
        first.wait_ready()
        with Viewer(h1, tmp_path / "shown", "--json", program=WITH_TIME_TO_FIND_THE_NEXT) as viewer:
            with Agent(h1, "--takeover") as second:
                assert first.exit_code() == 0
                viewer.wait_for(event="agent", pid=second.process.pid)
                by_hand(lab).put("10.244.250.0-24", '{"PublicIP": "192.0.2.77"}')
                viewer.wait_for(event="peer", what="added", subnet="10.244.250.0/24")
                by_hand(lab).delete("10.244.250.0-24")
                assert second.stop() == 0
            assert viewer.process.wait(PATIENCE_S) == 1
            line = f"flannel-udp: the agent on {h1.control_socket} has ended, and no other one came\n"
            assert viewer.errors.read_text() == line
    h1.start_agent()
    h1.wait_ready()
    wait_for_peers(lab.hosts)


def test_an_agent_that_is_killed_is_an_agent_that_has_ended(lab: Lab, tmp_path: Path) -> None:
    h1 = lab.hosts[0]
    h1.stop_agent()
    with Agent(h1) as agent:
        agent.wait_ready()
        with Viewer(h1, tmp_path / "shown") as viewer:
            agent.process.kill()
            assert viewer.process.wait(60) == 1
            assert "has ended, and no other one came" in viewer.errors.read_text()
    h1.start_agent()
    h1.wait_ready()
    wait_for_peers(lab.hosts)


def test_who_interrupts_it_leaves_nothing_behind(lab: Lab, tmp_path: Path) -> None:
    h1 = lab.hosts[0]
    with Viewer(h1, tmp_path / "shown") as viewer:
        viewer.process.send_signal(signal.SIGINT)
        assert viewer.process.wait(60) == 130
        assert viewer.errors.read_text() == ""


def test_where_no_agent_runs_it_says_so(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "flannel_udp", "monitor", "--control-socket", str(tmp_path / "nobody.sock")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("flannel-udp: flannel-udp is not running: nothing answers on ")
    assert len(done.stderr.splitlines()) == 1
