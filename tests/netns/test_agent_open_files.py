"""An agent that may open nothing, as where a program has taken all files: it lives on, and puts right what it left."""

from __future__ import annotations

import resource

import pytest

from flannel_udp.lab.lab import Lab
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
