"""Tables of plain text, and what stands in them: quick with thousands of lines, never cut, easy to `grep`."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TextIO

_STEPS = "kMGTPE"


def table_lines(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> list[str]:
    """Return a heading and one line a row; columns in which nothing stands are left out, those of `right` end alike."""
    columns = [column for column in zip(headings, *rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    padded = [
        [cell.rjust(width) if column[0] in right else cell.ljust(width) for cell in column]
        for column, width in zip(columns, widths, strict=True)
    ]
    return ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]


def write_lines(lines: Sequence[str], stream: TextIO) -> None:
    """Write these lines in one go."""
    stream.write("".join(f"{line}\n" for line in lines))


def wrapped(text: str, width: int) -> list[str]:
    """Return lines that cut no word, which may be an address, unless it is wider than a line."""
    return wrap(text, width, subsequent_indent="  ", break_on_hyphens=False) or [""]


def short_number(value: float) -> str:
    """Return a number in three digits or so: "0", "0.5", "12", "850", "1.25k", "12.3M"."""
    if value < 10 and round(value, 1) % 1:
        return f"{value:.1f}"
    if value < 999.5:
        return f"{value:.0f}"
    for step in _STEPS:
        value /= 1000
        if value < 999.5 or step == _STEPS[-1]:
            break
    return f"{value:.{max(0, 2 - (value >= 9.995) - (value >= 99.95))}f}{step}"


def plain(text: str) -> str:
    """Return what anybody may have written so that it can neither break a line nor the terminal."""
    short = text if len(text) <= 80 else f"{text[:79]}…"
    return short if short.isprintable() else repr(short)
