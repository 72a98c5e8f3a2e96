"""How the benches show what they found."""

from __future__ import annotations

import sys

from rich.console import Console, RenderableType

_UNBOUNDED = 10_000
"""Columns: more than any table needs."""


def show(*findings: RenderableType) -> None:
    """Print tables and lines to stdout; where that is no terminal, so wide that no cell is wrapped."""
    for found in findings:
        width = None if sys.stdout.isatty() else Console(width=_UNBOUNDED).measure(found).maximum
        Console(width=width).print(found)
