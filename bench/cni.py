"""How long the CNI plugin takes to start, and what it adds to the bridge's own time for a pod.

    python -m bench.cni [--rounds N] [--python FILE] [--json FILE]

On a lab's host with our agent, every command once a round, one after the other, so that a machine that changes its
speed changes it for all. Needs root and the CNI plugins.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table

from bench import chart
from bench.command import parser_of
from bench.console import show
from flannel_udp.bench import machine
from flannel_udp.cni.install import install_plugin
from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import Plan
from tests.support.cni import NEEDED, Runtime, plugins_are_here

Medians = Mapping[str, float]
"""What was run → milliseconds of wall time, the median over the rounds."""


def measure(rounds: int, python: str) -> Medians:
    """Return what each command takes with this interpreter. Raises `FlannelError`."""
    with Lab(Plan(f"bench{os.getpid()}-cni", hosts=1, pods=0)) as lab, TemporaryDirectory() as folder:
        (host,) = lab.hosts
        host.configure("link del cni0")  # the lab's, in place of a plugin's
        runtime = Runtime(host, Path(folder))
        plugin = install_plugin(runtime.bin_dir, python)
        pod = runtime.new_pod()
        runtime.call("ADD", runtime.flannel, pod)
        bridge = json.loads((runtime.state_dir / pod.container_id).read_text())
        runtime.call("DEL", runtime.flannel, pod)
        commands: dict[str, Callable[[], object]] = {
            "Python alone": lambda: _run([python, "-IS", "-c", ""]),
            "VERSION": lambda: _run([str(plugin)]),
            "ADD": lambda: runtime.call("ADD", runtime.flannel, pod),
            "DEL": lambda: runtime.call("DEL", runtime.flannel, pod),
            "ADD, bridge alone": lambda: runtime.call("ADD", bridge, pod),
            "DEL, bridge alone": lambda: runtime.call("DEL", bridge, pod),
        }
        times = [{name: _ms(command) for name, command in commands.items()} for _ in range(rounds)]
    return {name: statistics.median(each[name] for each in times) for name in commands}


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, env={"CNI_COMMAND": "VERSION"}, stdin=subprocess.DEVNULL, capture_output=True, check=True)


def _ms(command: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    command()
    return (time.perf_counter() - started_s) * 1e3


def _table(found: Medians, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("median")
    table.add_column("ms", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{value:.1f}")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench and return the exit code."""
    parser = parser_of("bench.cni", __doc__)
    parser.add_argument("--rounds", type=int, default=25, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--python",
        default=os.path.realpath(sys.executable),
        metavar="FILE",
        help="that runs the plugin (default: this)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, and a plot beside it")
    given = parser.parse_args(argv)
    if not 1 <= given.rounds <= 1000:
        parser.error("give --rounds from 1 to 1000")
    logging.basicConfig(format="%(name)s: %(message)s")
    try:
        netns.require()
        if not plugins_are_here():
            raise FlannelError(f"the bench needs {NEEDED}")
        found = measure(given.rounds, given.python)
        show(_table(found, f"{given.rounds} rounds"))
        if given.json:
            options = {"rounds": given.rounds, "python": given.python}
            plot = chart.Chart("CNI plugin, time of a call", {name: {"ms": value} for name, value in found.items()})
            chart.write(given.json, {"machine": machine.describe(), "options": options, "medians_ms": found}, [plot])
    except FlannelError as error:
        logging.getLogger("bench").error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
