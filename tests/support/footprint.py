"""What an agent costs a host that has very much of something: time to be ready, processor time, memory, a repair."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import NamedTuple

from flannel_udp.lab.node import Host
from tests.support.agents import Agent, wait_for

REPAIRS = 3


class Footprint(NamedTuple):
    """From the agent's start through some repairs of its route."""

    ready_s: float
    cpu_s: float
    """User and system."""
    memory_bytes: int
    """Resident at most."""
    repair_s: float
    """The slowest one."""

    def __str__(self) -> str:
        """Return it as a row of a table has it."""
        return (
            f"ready after {self.ready_s:.1f} s, {self.cpu_s:.1f} s of CPU, {self.memory_bytes / 1e6:.0f} MB at most, "
            f"a repair {self.repair_s:.1f} s"
        )


def footprint_of_an_agent(host: Host, iface: str | None = "eth0") -> Footprint:
    """Start an agent, take its route away again and again, and end it; h1's lab has another host with one."""

    def repairs() -> int:
        return sum(host.control("/v1/status")["host_repairs"].values())

    started_s = time.monotonic()
    with Agent(host, iface=iface) as agent:
        agent.wait_ready()
        ready_s = time.monotonic() - started_s
        wait_for("its peer", lambda: len(host.control("/v1/peers")) == 1)
        backend = host.control("/v1/status")["backend"]["type"]
        destination = "10.244.0.0/16" if backend == "udp" else host.control("/v1/peers")[0]["subnet"]

        def is_right(made: int = 0) -> bool:
            return repairs() >= made and host.run(["ip", "route", "show", "exact", destination]).stdout != ""

        wait_for("its route", is_right)
        took_s = []
        for _ in range(REPAIRS):
            once_more = partial(is_right, repairs() + 1)
            host.configure(f"route del {destination}")
            took_s.append(wait_for("it is put right", once_more))
        found = Footprint(ready_s, _cpu_s(agent.process.pid), _resident_bytes(agent.process.pid), max(took_s))
        assert agent.stop() == 0
    return found


def _resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))


def _cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
        user, system = stat.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
