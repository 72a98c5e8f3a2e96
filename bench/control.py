"""What the control plane takes with 10,000 and 100,000 subnets: time to load, delay of changes, memory, throughput.

    python -m bench.control [--backend udp|vxlan] [--subnets N,N] [--seconds N] [--rounds N] [--quick] [--json FILE]

A real agent in a lab, with a real etcd and with the file registry. The delay of a change is the time from etcd's answer
to whoever wrote it until a packet goes to the new peer. Changes go through etcd only: a registry file is written whole
and looked at five times a second. With vxlan the kernel carries packets. Needs root.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import churn, probes
from bench.console import show
from flannel_udp.bench import machine
from flannel_udp.bench.contenders import Pair
from flannel_udp.bench.cpu import daemons_cpu_s
from flannel_udp.bench.generators import Load
from flannel_udp.bench.names import Streams
from flannel_udp.bench.streams import tcp
from flannel_udp.errors import FlannelError
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import ETCD_PORT, UNDERLAY_GATEWAY, Plan
from tests.support.agents import subnet_of

logger = logging.getLogger("bench")

RATES = {"udp": 1000, "vxlan": 100}
"""Changes a second. The kernel takes three messages for each, and each is a call of ours."""
CARRIED = {backend: 0.99 * rate for backend, rate in RATES.items()}
"""What etcd has to take of them, or the delays are those of another rate."""
_READY_TIMEOUT_S, _STOP_TIMEOUT_S = 60.0, 30.0
_POLL_S = 0.02
_STREAM = Load(2, "cubic")
_QUICK = {"seconds": 8, "rounds": 2}
_ASIDE = "/elsewhere"
"""A prefix that no agent looks at: what is written there loads etcd and the machine alike, but not the agent."""
_OURS, _SINK = "10.255.0.0/26", "10.255.0.64/26"
_RESERVED = {_OURS: "192.0.2.1", _SINK: "192.0.2.2"}
_BACKENDS: Mapping[str, tuple[str, ...]] = {"udp": (), "vxlan": ("--datapath=kernel",)}
"""What can be measured, and the agent's arguments for it."""


@dataclass(frozen=True, slots=True)
class Promise:
    """An upper bound, or where `at_least` is set a lower one."""

    title: str
    subnets: int
    figure: str
    bound: float
    unit: str
    at_least: bool = False
    backend: str = "udp"

    def words(self, figure: float | None) -> str:
        """Say whether it is kept."""
        if figure is None:
            return "not measured"
        return "met" if (figure >= self.bound if self.at_least else figure <= self.bound) else "NOT met"


PROMISES = (
    Promise("load from etcd", 10_000, "etcd_load_s", 2, "s"),
    Promise("load from etcd", 100_000, "etcd_load_s", 10, "s"),
    Promise("load from a file", 10_000, "file_load_s", 2, "s"),
    Promise("load from a file", 100_000, "file_load_s", 10, "s"),
    Promise("changes that etcd carried", 10_000, "changes_per_s", CARRIED["udp"], "/s", at_least=True),
    Promise("changes that etcd carried", 100_000, "changes_per_s", CARRIED["udp"], "/s", at_least=True),
    Promise("1,000 changes/s, delay p99", 10_000, "delay_p99_ms", 50, "ms"),
    Promise("1,000 changes/s, delay p99", 100_000, "delay_p99_ms", 50, "ms"),
    Promise("packets to a wrong peer", 10_000, "wrong", 0, ""),
    Promise("packets to a wrong peer", 100_000, "wrong", 0, ""),
    Promise("throughput, changing to idle", 10_000, "throughput_ratio", 0.95, "", at_least=True),
    Promise("throughput, changing to idle", 100_000, "throughput_ratio", 0.95, "", at_least=True),
    Promise("memory of the agent, at most", 10_000, "rss_mib", 120, "MiB"),
    Promise("load from etcd", 10_000, "etcd_load_s", 5, "s", backend="vxlan"),
    Promise("load from a file", 10_000, "file_load_s", 5, "s", backend="vxlan"),
    Promise(
        "changes that etcd carried", 10_000, "changes_per_s", CARRIED["vxlan"], "/s", at_least=True, backend="vxlan"
    ),
    Promise("100 changes/s, delay p99", 10_000, "delay_p99_ms", 50, "ms", backend="vxlan"),
    Promise("packets to a wrong peer", 10_000, "wrong", 0, "", backend="vxlan"),
)


def config_of(backend: str) -> dict[str, Any]:
    """Return the network configuration."""
    return {"Network": str(churn.OVERLAY), "SubnetLen": churn.SUBNET_LEN, "Backend": {"Type": backend}}


def memory_mib(pid: int) -> float:
    """Return the largest resident set of a process so far (VmHWM, proc(5)), in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise FlannelError(f"process {pid} has no memory: it has ended")


def load(host: Host, n_subnets: int, *arguments: str) -> float:
    """Start the host's agent and return the seconds from its start as a process until it forwards to all peers."""
    started_s = time.monotonic()
    host.start_agent(*arguments)
    while time.monotonic() - started_s < _READY_TIMEOUT_S:
        # Ready means that a table is in force, and the first one holds all that the first listing held.
        if host.is_ready() and host.control("/v1/status")["peers"] >= n_subnets:
            return time.monotonic() - started_s
        time.sleep(_POLL_S)
    host.wait_ready(0)
    raise FlannelError(f"the agent has not got {n_subnets} peers after {_READY_TIMEOUT_S:g} s")


@dataclass(slots=True)
class Bench:
    """One size of the cluster. h1 is measured; h2 takes the packets for all peers; the etcd is beside the bridge."""

    lab: Lab
    n_subnets: int
    seconds: int
    rounds: int
    epoch: int = 0

    def run(self) -> dict[str, float]:
        """Return all figures."""
        sender, sink = self.lab.hosts
        figures = {"file_load_s": load(sender, self.n_subnets, *self._arguments, f"--registry=file:{self._file()}")}
        figures["file_rss_mib"] = memory_mib(_pid(sender))
        sender.stop_agent(_STOP_TIMEOUT_S)
        self._churn("fill")
        figures["etcd_load_s"] = load(sender, self.n_subnets, *self._arguments)
        figures["rss_loaded_mib"] = memory_mib(_pid(sender))
        probes.prepare(sender, sink)
        figures |= self._delays(sender, sink)
        if self.rounds and self.lab.plan.backend == "udp":
            figures |= self._throughput(sender, sink)
        figures["rss_mib"] = memory_mib(_pid(sender))
        return figures

    def _delays(self, sender: Host, receiver: Host) -> dict[str, float]:
        before_s = daemons_cpu_s([_pid(sender)])
        with self._writing(self.seconds, churn.PREFIX) as writer:
            seen = probes.watch(sender, receiver, writer, self.n_subnets)
        used_s = daemons_cpu_s([_pid(sender)]) - before_s
        delays = seen.delays_ms()
        span_s = (seen.moved[-1][0] - seen.moved[0][0]) / 1e9
        return {
            "changes_per_s": len(seen.moved) / span_s,
            "delay_p50_ms": statistics.median(delays),
            "delay_p99_ms": probes.percentile(delays, 0.99),
            "delay_max_ms": delays[-1],
            "probed": len(delays),
            "packets": len(seen.arrived),
            "wrong": seen.wrong({}),
            "agent_cpu": used_s / span_s,
        }

    def _throughput(self, sender: Host, sink: Host) -> dict[str, float]:
        """Compare what is forwarded while our peers change with what is while as many others do."""
        others = self.lab.plan.state / "sink.json"
        others.write_text(churn.write_file(0, _RESERVED, config_of("udp")))
        sink.start_agent(f"--registry=file:{others}")
        sink.wait_ready()
        pair = Pair("control", sender, sink, subnet_of(sender).network_address, IPv4Network(_SINK)[0], 1472)
        rates: dict[str, list[float]] = {churn.PREFIX: [], _ASIDE: []}
        chooser = random.Random(1)  # noqa: S311 - to be repeated, no secret
        for _ in range(self.rounds):
            for prefix in chooser.sample(sorted(rates), k=len(rates)):
                with self._writing(2 * _STREAM.seconds, prefix) as writer:
                    rates[prefix].append(tcp(pair, _STREAM, streams=Streams(1, 0)).values["tcp1_gbit_s"])
                    writer.kill()
                logger.info("%s: %.2f Gbit/s", prefix, rates[prefix][-1])
        busy, idle = statistics.median(rates[churn.PREFIX]), statistics.median(rates[_ASIDE])
        return {"busy_gbit_s": busy, "idle_gbit_s": idle, "throughput_ratio": busy / idle}

    def _file(self) -> Path:
        path = self.lab.plan.state / "peers.json"
        backend = self.lab.plan.backend
        path.write_text(churn.write_file(self.n_subnets, _RESERVED, config_of(backend), backend))
        return path

    @property
    def _arguments(self) -> tuple[str, ...]:
        return _BACKENDS[self.lab.plan.backend]

    def _churn(self, what: str) -> None:
        self.lab.net.run([*self._churn_command(what), str(self.n_subnets)], timeout_s=120)

    def _churn_command(self, what: str) -> list[str]:
        endpoint = f"{UNDERLAY_GATEWAY}:{ETCD_PORT}"
        return [sys.executable, "-m", "bench.churn", what, endpoint, self.lab.plan.backend]

    @contextmanager
    def _writing(self, seconds: int, prefix: str) -> Iterator[subprocess.Popen[str]]:
        rate = RATES[self.lab.plan.backend]
        arguments = (str(self.n_subnets), str(rate), str(seconds), str(self.epoch), prefix)
        self.epoch += rate * seconds
        with self.lab.net.popen(
            [*self._churn_command("change"), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as writer:
            try:
                yield writer
            finally:
                writer.kill()


def _pid(host: Host) -> int:
    pid = host.agent_pid()
    if pid is None:
        raise FlannelError(f"{host.name}: the agent has ended")
    return pid


def measure(backend: str, n_subnets: int, seconds: int, rounds: int) -> dict[str, float]:
    """Bring a lab up and return the figures of one size; those of the throughput with udp alone."""
    config, name = config_of(backend), f"control{os.getpid()}"
    plan = Plan(name, pods=0, registry="etcd", config=config, reservations=_RESERVED, agents=())
    with Lab(plan) as lab:
        return Bench(lab, n_subnets, seconds, rounds).run()


def _table(found: dict[int, dict[str, float]], backend: str) -> Table:
    table = Table(title=f"promises, {backend}", title_justify="left")
    for heading in ("measure", "subnets", "target", "measured", "verdict"):
        table.add_column(heading)
    for promise in PROMISES:
        if promise.backend == backend and promise.subnets in found:
            figure = found[promise.subnets].get(promise.figure)
            sign = "≥" if promise.at_least else "≤"
            table.add_row(
                *(promise.title, f"{promise.subnets:,}", f"{sign} {promise.bound:g} {promise.unit}"),
                "-" if figure is None else f"{figure:.3g} {promise.unit}",
                promise.words(figure),
            )
    return table


def _remarks(found: dict[int, dict[str, float]], backend: str) -> list[str]:
    """Say where etcd could not carry what was asked of it."""
    return [
        f"{n_subnets:,} subnets: etcd carried {figures['changes_per_s']:.0f} changes/s only, so the delays are of those"
        for n_subnets, figures in found.items()
        if figures["changes_per_s"] < CARRIED[backend]
    ]


def _all_figures(found: dict[int, dict[str, float]]) -> Table:
    table = Table(title="all figures", title_justify="left")
    table.add_column("figure")
    for n_subnets in found:
        table.add_column(f"{n_subnets:,} subnets", justify="right")
    for name in next(iter(found.values())):
        table.add_row(name, *(f"{figures[name]:.4g}" for figures in found.values()))
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.control", description="Measure the control plane of a real agent.", allow_abbrev=False
    )
    parser.add_argument("--backend", choices=tuple(_BACKENDS), default="udp", help="default: %(default)s")
    parser.add_argument("--subnets", default="10000,100000", metavar="LIST", help="sizes (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="of changes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="of throughput (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="8 seconds and 2 rounds: shows whether something broke")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args(argv)
    if given.quick:
        vars(given).update(_QUICK)
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    try:
        sizes = map(int, given.subnets.split(","))
        found = {n: measure(given.backend, n, given.seconds, given.rounds) for n in sizes}
    except FlannelError as error:
        logger.error("%s", error)
        return error.exit_code
    show(_all_figures(found), _table(found, given.backend), *_remarks(found, given.backend))
    if given.json:
        document: dict[str, Any] = {"machine": machine.describe(), "backend": given.backend, "found": found}
        document["promises"] = [dataclasses.asdict(promise) for promise in PROMISES if promise.backend == given.backend]
        given.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
