"""Sheets as text for a terminal of 80 columns, as Markdown, and records as CSV. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import chain
from textwrap import fill
from typing import Any

from flannel_udp.bench.sheets import Sheet

WIDTH = 80
"""Columns of text."""


def text(sheet: Sheet, note: str = "") -> str:
    """Return a sheet as aligned lines: a line a metric, and one for each contender below it."""
    rows = list(chain.from_iterable(group.rows for group in sheet.groups))
    names, *widths = (max(map(len, column)) for column in zip(sheet.headings, *rows, strict=True))
    gap = "  " if names + sum(widths) + 2 * len(widths) <= WIDTH else " "
    names = min(names, WIDTH - sum(widths) - len(gap) * len(widths))

    def aligned(cells: Sequence[str]) -> str:
        """Words to the left, figures to the right; a name that is too long has a line of its own."""
        name, *others = cells
        padded = (
            f"{cell:{'<' if at == sheet.verdict_at else '>'}{width}}"
            for at, (cell, width) in enumerate(zip(others, widths, strict=True), 1)
        )
        alone, name = (f"{name}\n", "") if len(name) > names else ("", name)
        return alone + gap.join([f"{name:<{names}}", *padded]).rstrip()

    lines = [wrapped(line) for line in (sheet.title, note) if line]
    lines.append(aligned(sheet.headings))
    for group in sheet.groups:
        lines += ["", group.title, *map(aligned, group.rows)]
    return "".join(f"{line}\n" for line in lines)


def wrapped(line: str) -> str:
    """Return a sentence in lines of 80 columns, words uncut."""
    return fill(line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def named(facts: Sequence[tuple[str, str]]) -> str:
    """Return names and what they say, a line each."""
    width = max(len(name) for name, _ in facts) + 2
    indent = " " * width
    return "".join(
        fill(f"{name:<{width}}{said}", WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        + "\n"
        for name, said in facts
    )


def markdown(sheet: Sheet) -> str:
    """Return a sheet as a table of Markdown; what is better or worse is bold."""
    headings = ("measure", *sheet.headings)
    numeric = ["---:" if at not in (0, sheet.verdict_at) else "---" for at in range(len(sheet.headings))]
    lines = [f"### {_escaped(sheet.title)}", "", _md_row(headings), _md_row(["---", *numeric])]
    for group in sheet.groups:
        for cells in group.rows:
            bold = [
                f"**{cell}**" if at == sheet.verdict_at and cell in ("better", "worse") else _escaped(cell)
                for at, cell in enumerate(cells)
            ]
            lines.append(_md_row([_escaped(group.title), *bold]))
    return "".join(f"{line}\n" for line in lines)


def _md_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Return a text that Markdown shows as it is; only names from a file could hold such signs."""
    return "".join(f"\\{sign}" if sign in "|*_`<[\\" else sign for sign in text)


def text_page(
    facts: Sequence[tuple[str, str]],
    sheets: Sequence[Sheet],
    legend: Sequence[str],
    notes: Mapping[str, str] | None = None,
) -> str:
    """Return all as text: what was measured, the sheets with the notes on their places, what the columns mean."""
    shown = [text(sheet, (notes or {}).get(sheet.title, "")) for sheet in sheets]
    return "\n".join([named(facts), *shown, "".join(f"{wrapped(line)}\n" for line in legend)])


def markdown_page(facts: Sequence[tuple[str, str]], sheets: Sequence[Sheet], legend: Sequence[str]) -> str:
    """Return the same as Markdown."""
    listed = "".join(f"- {name}: {_escaped(said)}\n" for name, said in facts)
    return "\n".join([listed, *map(markdown, sheets), "".join(f"- {_escaped(line)}\n" for line in legend)])


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as CSV (RFC 4180 but for the line ends); nothing where there is no figure."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()
