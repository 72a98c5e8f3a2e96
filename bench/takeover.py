"""One agent takes over from another at a fixed rate of small datagrams, or beside a TCP stream: what is lost.

    python -m bench.takeover [--rate PPS] [--seconds N] [--times N]

Needs root. How long packets waited is the new agent's own figure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from rich.table import Table

from bench.console import show
from bench.datagrams import build_blast, parse_blast
from bench.generators import GRACE_S, server
from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan

_PORT = 5301
_PAYLOAD_BYTES = 64
_SILENCE_MS = 500
_LEAD_S = 0.5
"""How long traffic flows before something happens to the agent."""
_WAITED = re.compile(r"took over from process .*; packets waited ([0-9.]+) ms at most")


@dataclass(frozen=True, slots=True)
class Passage:
    """What became of the datagrams of one run; `waited_ms` is the new agent's figure, where one took over."""

    sent: int
    lost: int
    reordered: int
    waited_ms: float | None = None


class Successors:
    """Agents on a host that take over, each from the one before; the last one is killed at the end of the block."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._last: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._last is not None:
            self._last.kill()
            self._last.wait()

    def next(self) -> float:
        """Start one and wait until it has taken over; return for how many milliseconds packets waited."""
        host = self._host
        command = [
            *(sys.executable, "-P", "-m", "flannel_udp", "--takeover", "--iface", "eth0"),
            *("--subnet-file", str(host.subnet_file), "--control-socket", str(host.control_socket)),
            *(*host.plan.registry_args, *host.plan.agent_args),
        ]
        env = {name: value for name, value in os.environ.items() if not name.startswith("FLANNELD_")}
        with host.log_file.open("a") as log:
            start = log.tell()
            former, self._last = (
                self._last,
                host.popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env),
            )
        process = self._last
        netns.wait_until(lambda: _ready_agent(host) == process.pid or process.poll() is not None, GRACE_S)
        said = host.log_file.read_bytes()[start:].decode(errors="replace")
        found = _WAITED.search(said)
        if found is None or process.poll() is not None:
            raise FlannelError(f"{host.name}: nobody took over: {said}")
        if former is not None and former.wait(GRACE_S) != 0:
            raise FlannelError(f"{host.name}: the former agent ended with exit code {former.returncode}")
        return float(found[1])


def _ready_agent(host: Host) -> int | None:
    with suppress(FlannelError):
        status = host.control("/v1/status")
        return int(status["pid"]) if status["ready"] else None
    return None


def pass_datagrams(sender: Host, receiver: Host, rate_pps: int, seconds: float, event: Callable[[], object]) -> Passage:
    """Send small datagrams from pod to pod at a fixed rate while `event` happens, and count what arrives."""
    blast = str(build_blast())
    source, target = sender.pods[0], receiver.pods[0]
    ends = (str(target.ip), str(_PORT))
    with server(target, [blast, "count", *ends, str(_SILENCE_MS)], "ready") as counter:
        send = [blast, "send", *ends, str(_PAYLOAD_BYTES), str(round(seconds * 1000)), str(rate_pps)]
        with source.popen(send, stdout=subprocess.PIPE) as blasting:
            try:
                time.sleep(_LEAD_S)
                event()
                if blasting.poll() is not None:
                    raise FlannelError(f"it was not over within the {seconds:g} s in which traffic flowed")
                sent = parse_blast(blasting.communicate(timeout=seconds + GRACE_S)[0])
            finally:
                blasting.kill()
        text = counter.stdout.readline() if counter.stdout else ""
    received = parse_blast(text)
    return Passage(sent.packets, sent.packets - received.packets, json.loads(text)["reordered"])


def take_over(successors: Successors, sender: Host, receiver: Host, rate_pps: int, seconds: float) -> Passage:
    """Take over while small datagrams flow."""
    waited_ms: list[float] = []
    passage = pass_datagrams(sender, receiver, rate_pps, seconds, lambda: waited_ms.append(successors.next()))
    return replace(passage, waited_ms=waited_ms[0])


def take_over_beside_tcp(successors: Successors, sender: Host, receiver: Host, seconds: int) -> dict[str, Any]:
    """Take over during one TCP stream; return iperf3's document."""
    source, target = sender.pods[0], receiver.pods[0]
    with server(target, ["iperf3", "--server", "--one-off", "--forceflush"], "Server listening"):
        client = ["iperf3", "--client", str(target.ip), "--time", str(seconds), "--json", "-C", "cubic"]
        with source.popen(client, stdout=subprocess.PIPE) as stream:
            try:
                time.sleep(_LEAD_S)
                successors.next()
                text = stream.communicate(timeout=seconds + GRACE_S)[0]
            finally:
                stream.kill()
    document: dict[str, Any] = json.loads(text[text.index("{") :])
    return document


def main() -> int:
    """Run the bench and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.takeover", description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=int, default=100_000, metavar="PPS", help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=4, metavar="N", help="of each run (default: %(default)s)")
    parser.add_argument("--times", type=int, default=3, metavar="N", help="default: %(default)s")
    given = parser.parse_args()
    table = Table(title=f"take-overs at {given.rate:,} packets/s, {given.seconds} s each", title_justify="left")
    for heading in ("who is taken over", "sent", "lost", "reordered", "packets waited, ms"):
        table.add_column(heading, justify="right")
    try:
        netns.require()
        with Lab(Plan(f"bench{os.getpid()}-takeover", hosts=2)) as lab:
            first, second = lab.hosts
            for host in lab.hosts:
                host.wait_ready()
                host.wait_peers({other.subnet for other in lab.hosts if other is not host and other.subnet})
            with Successors(first) as firsts, Successors(second) as seconds:
                for who, successors in {"the sender's agent": firsts, "the receiver's agent": seconds}.items():
                    for _ in range(given.times):
                        passage = take_over(successors, first, second, given.rate, given.seconds)
                        figures = (passage.sent, passage.lost, passage.reordered, passage.waited_ms)
                        table.add_row(who, *(f"{figure:,}" for figure in figures if figure is not None))
                    end = take_over_beside_tcp(successors, first, second, given.seconds)["end"]
                    retransmits = end["sum_sent"]["retransmits"]
                    rate = end["sum_received"]["bits_per_second"] / 1e9
                    table.add_row(f"{who}, TCP", f"{rate:.1f} Gbit/s", f"{retransmits} retransmits", "", "")
    except FlannelError as error:
        sys.stderr.write(f"bench: {error}\n")
        return error.exit_code
    show(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
