"""The findings for human eyes, one line each; colours appear on a terminal only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from flannel_udp.doctor.finding import Finding, Verdict

_WIDTH = 1_000  # columns: rich never wraps or cuts a line
_STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.SKIPPED: "dim", Verdict.FAULT: "bold red"}


def show(found: Sequence[Finding], stream: TextIO) -> None:
    """Write a line a finding, and how many faults there are."""
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import, and --json does without
    from rich.text import Text  # noqa: PLC0415 - as above

    console = Console(file=stream, highlight=False, width=_WIDTH)
    for item in found:
        mend = f": mend: {item.mend}" if item.mend else ""
        # Text, never markup: a value may hold square brackets.
        line = Text.assemble((f"{item.verdict.value:<6}", _STYLES[item.verdict]), (item.question, "bold"))
        console.print(line.append(f": {item.what}{mend}"))
    faults = sum(item.verdict is Verdict.FAULT for item in found)
    console.print("nothing is wrong" if not faults else f"{faults} wrong" if faults > 1 else "1 is wrong")
