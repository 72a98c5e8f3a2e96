"""An agent under a service manager: a real notify socket, confined as the example unit does, reload and watchdog."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import Agent, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.standstill import freeze
from tests.support.systemd import open_notify_socket

pytestmark = NEEDS_NETNS

UNIT = Path(__file__).parents[2] / "examples" / "flannel-udp.service"
WATCHDOG_S = 1.0
UNORDERED = ("WATCHDOG=", "STATUS=", "FDSTORE")


class Manager:
    """The manager's end of the notify socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.heard: list[str] = []

    def listen(self) -> list[str]:
        """Return all that was said so far, but the pings, the status lines and the descriptors to store."""
        while True:
            try:
                self.heard.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return [message for message in self.heard if not message.startswith(UNORDERED)]

    def pings(self) -> int:
        """Return how many pings came so far."""
        self.listen()
        return self.heard.count("WATCHDOG=1")

    def wait_for(self, *messages: str) -> None:
        """Wait until these, and nothing else that `listen` returns, were said."""
        wait_for(f"{messages}; heard {self.heard}", lambda: self.listen() == [*messages])


# <linux/prctl.h>: PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN (since Linux 6.3): what MemoryDenyWriteExecute does by seccomp.
DENY_WRITE_EXECUTE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def confinement() -> tuple[str, ...]:
    """Return the command that takes away what the unit takes away and can be had without systemd."""
    found = re.search(r"(?m)^CapabilityBoundingSet=(.+)$", UNIT.read_text())
    assert found
    kept = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in found[1].split())
    drop = ("setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all", "--no-new-privs")
    return (*drop, sys.executable, "-c", DENY_WRITE_EXECUTE)


@contextmanager
def managed(lab: Lab, tmp_path: Path) -> Iterator[tuple[Agent, Manager]]:
    with open_notify_socket(lab.hosts[0], tmp_path / "notify") as sock:
        environment = {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": str(int(WATCHDOG_S * 1_000_000)),
        }
        with Agent(lab.hosts[0], "--ip-masq", wrapper=confinement(), environment=environment) as agent:
            yield agent, Manager(sock)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        yield lab


def test_from_ready_over_a_reload_to_the_end(lab: Lab, tmp_path: Path) -> None:
    with managed(lab, tmp_path) as (agent, manager):
        manager.wait_for("READY=1")
        earlier_us = time.monotonic_ns() // 1000
        agent.process.send_signal(signal.SIGHUP)
        agent.wait_for_line("reload: the network configuration is the one in force")
        wait_for("the end of the reload", lambda: len(manager.listen()) == 3)
        ready, reloading, again = manager.listen()
        assert (ready, again) == ("READY=1", "READY=1")
        assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert earlier_us <= int(reloading.partition("USEC=")[2]) <= time.monotonic_ns() // 1000
        assert agent.stop() == 0
        assert manager.listen()[3:] == ["STOPPING=1"]
        assert any(message.startswith("STATUS=running with subnet 10.") for message in manager.heard)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"Network": "10.9.0.0/16"}, "reload: the network configuration has changed: start the agent again to use it"),
        ({"Network": "nonsense"}, "; going on with the network configuration in force"),
    ],
    ids=["changed", "broken"],
)
def test_a_reload_tells_of_a_configuration_that_cannot_be_taken_on_and_changes_nothing(
    lab: Lab, tmp_path: Path, config: dict[str, str], line: str
) -> None:
    with managed(lab, tmp_path) as (agent, manager):
        manager.wait_for("READY=1")
        table = json.loads(lab.plan.registry_file.read_text())
        lab.plan.registry_file.write_text(json.dumps({**table, "config": config}))
        agent.process.send_signal(signal.SIGHUP)
        agent.wait_for_line(line)
        wait_for("the end of the reload", lambda: manager.listen()[-1:] == ["READY=1"] and len(manager.listen()) == 3)
        status = lab.hosts[0].control("/v1/status")
        assert (status["ready"], status["network"]) == (True, str(OVERLAY))


def test_pings_come_in_time_while_it_waits_and_while_it_runs_and_stop_with_it(lab: Lab, tmp_path: Path) -> None:
    table = lab.plan.registry_file.read_text()
    lab.plan.registry_file.write_text("{}")
    with managed(lab, tmp_path) as (agent, manager):
        wait_for("pings before there is a configuration", lambda: manager.pings() >= 2)
        assert manager.listen() == []
        agent.process.send_signal(signal.SIGHUP)  # nothing is in force yet: no reload, and no end either
        lab.plan.registry_file.write_text(table)
        wait_for("ready", lambda: "READY=1" in manager.listen())
        so_far = manager.pings()
        wait_for("pings while it runs", lambda: manager.pings() >= so_far + 3)
        freeze(agent.process.pid)
        so_far = manager.pings()
        time.sleep(WATCHDOG_S)  # what a manager waits
        assert manager.pings() == so_far
        agent.process.send_signal(signal.SIGCONT)
