"""How the benches show what they found."""

from __future__ import annotations

import sys

from rich.console import Console, RenderableType

WIDTH = 80
"""Columns, where nobody says how wide the output is: what is pasted into a mail or a terminal beside it stays whole."""


def show(*findings: RenderableType) -> None:
    """Print tables and lines to stdout, as wide as the terminal; where there is none, 80 columns."""
    for found in findings:
        Console(width=None if sys.stdout.isatty() else WIDTH).print(found)
