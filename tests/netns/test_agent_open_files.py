"""An agent that may open nothing, as where a program has taken all files: it lives on, and puts right what it left."""

from __future__ import annotations

import resource
import subprocess
import sys
from contextlib import suppress
from functools import partial

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import Log, up_with_peers, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS


@pytest.mark.parametrize("backend", ["udp", "vxlan", "host-gw"])
def test_an_agent_that_may_open_nothing_while_the_firewall_changes_lives_on_and_looks_again(backend: str) -> None:
    config = {"Network": str(OVERLAY), "Backend": {"Type": backend}}
    with Lab(Plan(fresh_name(), hosts=2, config=config)) as lab:
        host = up_with_peers(lab).hosts[1]
        log, pid = Log(host), host.agent_pid()
        assert pid is not None
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            host.run(["iptables", "-w", "-I", "FORWARD", "-j", "DROP"])
            wait_for("it is told", lambda: bool(log.lines("looking at the firewall rules of others: ")))
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        wait_for("it looks again", lambda: bool(log.lines("FORWARD")))
        host.run(["iptables", "-w", "-D", "FORWARD", "-j", "DROP"])
        wait_for("ready", host.is_ready)
        assert host.agent_pid() == pid


def test_an_agent_that_may_open_too_few_files_to_start_says_so_in_one_line() -> None:
    """Whichever file it is that is one too many; with some more it starts, and lives with what it cannot do."""
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        (host,) = lab.hosts
        flags = [word for flag, value in host.flags.items() for word in (f"--{flag}", value)]
        for n_files in (7, 9, 11, *range(18, 48, 3)):  # with fewer Python itself does not start
            with host.log_file.open("w") as log:
                command = ["prlimit", f"--nofile={n_files}", sys.executable, "-P", "-m", "flannel_udp", *flags]
                agent = host.popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
            with agent:
                try:
                    wait_for("it opens what it needs, or ends", partial(is_on_its_way, agent, host))
                    with suppress(subprocess.TimeoutExpired):
                        agent.wait(1.0)
                finally:
                    agent.terminate()
            said = host.log_file.read_text()
            assert "Traceback" not in said, said
            assert agent.returncode == 0 or said.splitlines()[-1].startswith("flannel-udp: cannot "), said


def is_on_its_way(agent: subprocess.Popen[str], host: Host) -> bool:
    return agent.poll() is not None or "opened flannel0" in host.log_file.read_text()
