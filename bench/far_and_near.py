"""What a near peer's TCP keeps while another peer is far behind: a slow line, or dead and never answering.

    python -m bench.far_and_near [--rounds N] [--seconds N] [--dead N]

Each round measures one TCP stream to the near peer alone, and beside datagrams to the far one, which is behind a line
of 10 Mbit/s with a long queue; then beside datagrams to peers that have leases, but that nobody is. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.table import Table

from bench.console import show
from flannel_udp.bench.generators import GRACE_S, build_blast, iperf3_server
from flannel_udp.bench.streams import parse_iperf3
from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import AGENT_TIMEOUT_S, Host
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.sites import UNDERLAY
from tests.support.agents import subnet_of, wait_for_peers

_FAR_PPS, _PAYLOAD_BYTES = 27_000, 1_400
"""300 Mbit/s."""
_FAR_PORT = 5302
_LINE = "rate 10mbit burst 256k limit 64m"
"""Of the far peer: its queue holds more than any send buffer."""
_DEAD_FROM = 100
"""The dead peers' addresses begin here."""


def _lab(dead: int) -> Lab:
    reservations = {f"10.244.{_DEAD_FROM + i}.0/24": str(UNDERLAY[_DEAD_FROM + i]) for i in range(dead)}
    return Lab(Plan(f"bench{os.getpid()}-far", hosts=3, pods=0, agents=(), reservations=reservations))


def _put_far_behind_a_line(sender: Host, far: Host) -> None:
    """Give the sender a cable of its own to the far host, and put the line on it."""
    sender.configure(f"link add eth1 type veth peer name eth1 netns {far.namespace}")
    for host, peer in ((sender, far), (far, sender)):
        host.configure("link set eth1 up", f"route add {peer.underlay}/32 dev eth1 src {host.underlay}")
    sender.run(["tc", "qdisc", "add", "dev", "eth1", "root", "tbf", *_LINE.split()])


def _tcp_gbit_s(sender: Host, near: Host, seconds: int) -> float:
    target = subnet_of(near).network_address
    with iperf3_server(near, target):
        command = ["iperf3", "-c", str(target), "-J", "-t", str(seconds), "-C", "cubic"]
        done = sender.run(command, check=False, timeout_s=seconds + GRACE_S)
    (transfer,) = parse_iperf3(done.stdout or done.stderr)
    return transfer.bits_per_s / 1e9


@contextmanager
def _datagrams_to_far(sender: Host, far: Host, seconds: int) -> Iterator[None]:
    target = str(subnet_of(far).network_address)
    command = [
        str(build_blast()),
        "send",
        target,
        str(_FAR_PORT),
        str(_PAYLOAD_BYTES),
        str((seconds + 2) * 1000),
        str(_FAR_PPS),
    ]
    with far.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken, sender.popen(command) as process:
        taken.bind((target, _FAR_PORT))  # read by nobody: it must only be open
        try:
            yield
        finally:
            process.kill()


@contextmanager
def _datagrams_to_dead(sender: Host, n: int) -> Iterator[None]:
    ending = threading.Event()

    def send() -> None:
        with sender.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            while not ending.wait(0.01):
                for i in range(n):
                    for _ in range(5):  # 500 a second each
                        udp.sendto(bytes(_PAYLOAD_BYTES), (f"10.244.{_DEAD_FROM + i}.1", 9))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def measure(rounds: int, seconds: int, dead: int) -> dict[str, list[float]]:
    """Return the near peer's TCP in Gbit/s, round by round: alone, beside the far peer, beside the dead ones."""
    found: dict[str, list[float]] = {name: [] for name in ("alone", "beside far", *(("beside dead",) if dead else ()))}
    with _lab(dead) as lab:
        sender, near, far = lab.hosts
        _put_far_behind_a_line(sender, far)
        for host in lab.hosts:
            host.start_agent()
        for host in lab.hosts:
            host.wait_ready(AGENT_TIMEOUT_S)
        wait_for_peers(lab.hosts)
        for _ in range(rounds):
            found["alone"].append(_tcp_gbit_s(sender, near, seconds))
            with _datagrams_to_far(sender, far, seconds):
                found["beside far"].append(_tcp_gbit_s(sender, near, seconds))
            if dead:
                with _datagrams_to_dead(sender, dead):
                    found["beside dead"].append(_tcp_gbit_s(sender, near, seconds))
        counted = sender.control("/v1/status")["counters"]["out"]
    sys.stderr.write(json.dumps(counted) + "\n")
    return found


def judged(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return what the near peer's TCP keeps of what it has alone: the median over the rounds, by what it is beside."""
    return {
        name: statistics.median(each / alone for each, alone in zip(values, found["alone"], strict=True))
        for name, values in found.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.far_and_near", allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=3, metavar="N", help="of each stream (default: %(default)s)")
    parser.add_argument("--dead", type=int, default=60, metavar="N", help="how many dead peers (default: %(default)s)")
    given = parser.parse_args(argv)
    if not (1 <= given.rounds <= 100 and 1 <= given.seconds <= 60 and 0 <= given.dead <= 100):
        parser.error("give --rounds from 1 to 100, --seconds from 1 to 60, --dead up to 100")
    try:
        netns.require()
        found = measure(given.rounds, given.seconds, given.dead)
    except FlannelError as error:
        sys.stderr.write(f"far_and_near: {error}\n")
        return error.exit_code
    table = Table(title=f"the near peer's TCP, medians of {given.rounds} rounds", title_justify="left")
    for heading in ("", "Gbit/s", "to alone"):
        table.add_column(heading, justify="right")
    for name, kept in judged(found).items():
        table.add_row(name, f"{statistics.median(found[name]):.2f}", f"{kept:.2f}")
    show(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
