"""How many instructions the packet path takes for a packet, counted by callgrind; and how many another build took.

    python -m bench.instructions [--json FILE] [--against FILE]

Counted is what runs in user space from the start of a batch to its end, on one engine between sockets in the place of
the TUN and the underlay. The same build gives the same figures on a busy machine, too: to compare two, run this in both
trees with --json, and in the second with --against the first one's file. Needs no root.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table

from bench import chart
from bench.command import parser_of
from bench.console import show
from bench.hot_path import CASES
from flannel_udp.bench import machine
from flannel_udp.errors import FlannelError

_ROOT = Path(__file__).parent.parent
_MARKS = Path(__file__).with_name("callgrind_marks.c")
_NEEDED = "valgrind with its headers and a C compiler (Debian: valgrind, gcc, libc6-dev)"
_COUNTED = ("*outbound_batch*", "*inbound_batch*")
"""The C functions that a batch is: all that runs below them counts."""
_TIMEOUT_S = 300.0
_KEY = "instructions_per_packet"

Counts = Mapping[str, float]
"""Case (see `hot_path.CASES`) → instructions a packet."""


def measure() -> Counts:
    """Return what each case takes. Raises `FlannelError`."""
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        marks = folder / "marks.so"
        _run(["cc", "-shared", "-fPIC", "-O2", "-o", str(marks), str(_MARKS)])
        callgrind = ["valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no"]
        callgrind += [f"--toggle-collect={pattern}" for pattern in _COUNTED]
        callgrind += [f"--callgrind-out-file={folder / 'dump'}"]
        # This folder last: the package that is installed counts, if one is, and not a checkout without its build.
        code = f"import sys; sys.path.append({str(_ROOT)!r}); from bench.hot_path import main; sys.exit(main())"
        packets = json.loads(_run([*callgrind, sys.executable, "-c", code, str(marks)]))
        dumps = [parse_dump(path.read_text()) for path in folder.glob("dump.*")]
    # A datagram that comes too late for its batch costs another one: what disturbs a repetition only adds to it.
    least = {name: min((count for case, count in dumps if case == name), default=0) for name in CASES}
    if not all(least.values()):
        raise FlannelError("callgrind did not find the packet path's functions: are the extension modules stripped?")
    return {name: count / packets[name] for name, count in least.items()}


def parse_dump(text: str) -> tuple[str, int]:
    """Return the case that a dump of callgrind's is of, and the instructions that were counted."""
    case = re.search(r"^desc: Trigger: Client Request: (\w+)$", text, re.MULTILINE)
    total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
    if case is None or total is None:
        raise FlannelError("callgrind wrote a dump that this bench cannot read: it was made for valgrind 3.19")
    return case[1], int(total[1])


def read_counts(path: Path) -> Counts:
    """Return the figures of a file that `--json` wrote, of those cases that it has. Raises `FlannelError`."""
    try:
        found = json.loads(path.read_text())[_KEY]
        if common := {name: float(found[name]) for name in CASES if name in found}:
            return common
    except OSError as error:
        raise FlannelError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise FlannelError(f"{path} holds no figures of these cases: give a file that --json of this bench wrote")


def table(found: Counts, against: Counts | None) -> Table:
    """Return the figures, beside those of another build if there are any; a ratio below 1 is better."""
    drawn = Table(title="instructions a packet", title_justify="left")
    drawn.add_column("case")
    for heading in ("this build", *(("the other", "ratio") if against else ())):
        drawn.add_column(heading, justify="right")
    for name, case in CASES.items():
        others: tuple[str, ...] = ("", "") if against else ()
        if against and name in against:
            others = (f"{against[name]:.1f}", f"{found[name] / against[name]:.3f}")
        drawn.add_row(case.title, f"{found[name]:.1f}", *others)
    return drawn


def _run(command: Sequence[str]) -> str:
    if shutil.which(command[0]) is None:
        raise FlannelError(f"{command[0]} was not found: the bench needs {_NEEDED}")
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode != 0:
        last = "".join(done.stderr.strip().splitlines()[-1:])
        raise FlannelError(f"`{command[0]}` failed: {last} (the bench needs {_NEEDED})")
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench and return the exit code."""
    parser = parser_of("bench.instructions", __doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, and a plot beside it")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with what --json wrote for another build")
    given = parser.parse_args(argv)
    logging.basicConfig(format="%(name)s: %(message)s")
    try:
        against = read_counts(given.against) if given.against else None
        found = measure()
        show(table(found, against))
        if given.json:
            builds = {"this build": found, **({"the other": against} if against else {})}
            rows = {
                case.title: {build: counts[name] for build, counts in builds.items() if name in counts}
                for name, case in CASES.items()
            }
            plot = chart.Chart("Instructions a packet", rows)
            chart.write(given.json, {"machine": machine.describe(), _KEY: found}, [plot])
    except FlannelError as error:
        logging.getLogger("bench").error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
