"""One agent takes over from another under small datagrams at a fixed rate, and beside a TCP stream: what is lost.

    python -m bench.takeover [--rate PPS] [--seconds N] [--times N]

Needs root. Each is done as often without a take-over: what is lost then, the machine loses. How long packets waited is
the new agent's own figure; "queues full" counts what the kernel dropped at flannel0 and at the agents' UDP sockets.
Lost of a TCP stream is what was sent again and the receiver had not yet, as it says itself (DSACK, RFC 2883).
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
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.table import Table

from bench.console import show
from flannel_udp.bench.generators import GRACE_S, build_blast, parse_blast, server
from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host, Pod
from flannel_udp.lab.plan import Plan

_PORT = 5301
_PAYLOAD_BYTES = 64
_BESIDE_PPS = 1_000
"""Of datagrams beside a TCP stream."""
_TUNNEL_PORT = 8285
_SILENCE_MS = 2000  # a machine busy with other things may stand still for longer than half a second
_LEAD_S = 0.5
"""How long traffic flows before something happens to the agent."""
_NOTHING_S = 1.0
"""About as long as a take-over, from the start of the new agent on."""
_WAITED = re.compile(r"took over from process .*; packets waited ([0-9.]+) ms at most")

Event = Callable[[], float | None]
"""What happens while traffic flows; returns for how many milliseconds packets waited, if it is a take-over."""


@dataclass(frozen=True, slots=True)
class Passage:
    """What became of the datagrams of one run."""

    sent: int
    lost: int
    reordered: int
    overflowed: int
    """Packets, of whichever flow, that found flannel0 or a UDP socket of the tunnel full."""
    waited_ms: float | None


@dataclass(frozen=True, slots=True)
class Stream:
    """What became of a TCP stream, and of the datagrams beside it."""

    gbits: float
    """Received, per second."""
    again: int
    """Segments that were sent again."""
    needlessly: int
    """Of those, what the receiver had already: it reports duplicates (DSACK, RFC 2883)."""
    beside: Passage

    @property
    def lost(self) -> int:
        """Segments that did not arrive at first."""
        return self.again - self.needlessly


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
            *("--state-dir", str(host.state_dir)),
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


def pass_datagrams(
    sender: Host, receiver: Host, rate_pps: int, seconds: float, event: Event, *, silence_ms: int = _SILENCE_MS
) -> Passage:
    """Send small datagrams from pod to pod at a fixed rate while `event` happens, and count what arrives.

    Once nothing has come for `silence_ms` it is over: an end that stands still for so long seems to lose the rest.
    """
    blast = str(build_blast())
    source, target = sender.pods[0], receiver.pods[0]
    ends = (str(target.ip), str(_PORT))
    before = _overflows(sender) + _overflows(receiver)
    with server(target, [blast, "count", *ends, str(silence_ms)], "ready") as counter:
        send = [blast, "send", *ends, str(_PAYLOAD_BYTES), str(round(seconds * 1000)), str(rate_pps)]
        with source.popen(send, stdout=subprocess.PIPE) as blasting:
            try:
                time.sleep(_LEAD_S)
                waited_ms = event()
                if blasting.poll() is not None:
                    raise FlannelError(f"it was not over within the {seconds:g} s in which traffic flowed")
                sent = parse_blast(blasting.communicate(timeout=seconds + GRACE_S)[0])
            finally:
                blasting.kill()
        text = counter.stdout.readline() if counter.stdout else ""
    received = parse_blast(text)
    overflowed = _overflows(sender) + _overflows(receiver) - before
    lost = sent.packets - received.packets
    return Passage(sent.packets, lost, json.loads(text)["reordered"], overflowed, waited_ms)


def _overflows(host: Host) -> int:
    """Return what the kernel has dropped at flannel0's queue and at the UDP sockets of the tunnel."""
    queue = host.run(["cat", "/sys/class/net/flannel0/statistics/tx_dropped"]).stdout
    # /proc/net/udp: the second column is the local address:port in hex, the last one the socket's drops.
    sockets = [line.split() for line in host.run(["cat", "/proc/net/udp"]).stdout.splitlines()[1:]]
    return int(queue) + sum(int(fields[-1]) for fields in sockets if fields[1].endswith(f":{_TUNNEL_PORT:04X}"))


def pass_stream(sender: Host, receiver: Host, seconds: int, event: Event) -> Stream:
    """Send one TCP stream from pod to pod, and some datagrams beside it, while `event` happens."""
    source, target = sender.pods[0], receiver.pods[0]
    before = _segments_again(source)
    with server(target, ["iperf3", "--server", "--one-off", "--forceflush"], "Server listening"):
        client = ["iperf3", "--client", str(target.ip), "--time", str(seconds), "--json", "-C", "cubic"]
        with source.popen(client, stdout=subprocess.PIPE) as stream:
            try:
                beside = pass_datagrams(sender, receiver, _BESIDE_PPS, seconds, event)
                text = stream.communicate(timeout=seconds + GRACE_S)[0]
            finally:
                stream.kill()
    again, needlessly = (after - then for after, then in zip(_segments_again(source), before, strict=True))
    received = json.loads(text[text.index("{") :])["end"]["sum_received"]
    return Stream(received["bits_per_second"] / 1e9, again, needlessly, beside)


def _segments_again(pod: Pod) -> tuple[int, int]:
    """Return how many TCP segments a pod's kernel has sent again, and of how many it heard that they came twice."""
    counted: dict[str, int] = {}
    for file in ("/proc/net/snmp", "/proc/net/netstat"):  # pairs of lines: names, values
        lines = [line.split() for line in pod.run(["cat", file]).stdout.splitlines()]
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            counted |= zip(names[1:], map(int, values[1:]), strict=True)
    return counted["RetransSegs"], counted["TCPDSACKRecvSegs"]


def nothing() -> None:
    """Let the time of a take-over pass."""
    time.sleep(_NOTHING_S)


def main() -> int:
    """Run the bench and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.takeover", description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=int, default=100_000, metavar="PPS", help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=4, metavar="N", help="of each run (default: %(default)s)")
    parser.add_argument("--times", type=int, default=3, metavar="N", help="default: %(default)s")
    given = parser.parse_args()
    table = Table(title=f"take-overs during {given.seconds} s of traffic", title_justify="left")
    for heading in ("traffic", "taken over", "sent", "lost", "sent again", "reordered", "queues full", "waited, ms"):
        table.add_column(heading, justify="right")
    try:
        netns.require()
        with Lab(Plan(f"bench{os.getpid()}-takeover", hosts=2)) as lab:
            first, second = lab.hosts
            for host in lab.hosts:
                host.wait_ready()
                host.wait_peers({other.subnet for other in lab.hosts if other is not host and other.subnet})
            with Successors(first) as firsts, Successors(second) as seconds:
                events = {"nobody": nothing, "the sender's agent": firsts.next, "the receiver's agent": seconds.next}
                for who, event in events.items():
                    _add_rows(table, who, event, lab, given)
    except FlannelError as error:
        sys.stderr.write(f"bench: {error}\n")
        return error.exit_code
    show(table)
    return 0


def _add_rows(table: Table, who: str, event: Event, lab: Lab, given: argparse.Namespace) -> None:
    sender, receiver = lab.hosts
    for _ in range(given.times):
        passage = pass_datagrams(sender, receiver, given.rate, given.seconds, event)
        _add_row(table, f"{given.rate:,} datagrams/s", who, passage)
    for _ in range(given.times):
        stream = pass_stream(sender, receiver, given.seconds, event)
        table.add_row(f"TCP, {stream.gbits:.1f} Gbit/s", who, "", f"{stream.lost:,}", f"{stream.again:,}")
        _add_row(table, f"and {_BESIDE_PPS:,} datagrams/s", who, stream.beside)


def _add_row(table: Table, traffic: str, who: str, passage: Passage) -> None:
    waited = "" if passage.waited_ms is None else f"{passage.waited_ms:.1f}"
    figures = (f"{passage.sent:,}", f"{passage.lost:,}", "", f"{passage.reordered:,}", f"{passage.overflowed:,}")
    table.add_row(traffic, who, *figures, waited)


if __name__ == "__main__":
    sys.exit(main())
