"""How the benches show what they found."""

from __future__ import annotations

import sys

from rich.console import Console, RenderableType

_WIDTH = 130
"""Of what goes to a file or a pipe."""


def show(*findings: RenderableType) -> None:
    """Print tables and lines to stdout; where that is no terminal, wide enough for all columns."""
    for found in findings:
        width = None if sys.stdout.isatty() else max(_WIDTH, Console(width=10_000).measure(found).minimum)
        Console(width=width).print(found)
