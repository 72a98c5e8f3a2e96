"""A run as one HTML file that stands alone: no script, no font, no style and no picture from elsewhere. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from flannel_udp import __version__
from flannel_udp.bench import judging, sheets
from flannel_udp.bench.latency_plot import latency_plot
from flannel_udp.bench.names import RTT, RTT_LOADED
from flannel_udp.bench.page_style import STYLE
from flannel_udp.bench.plots import ratio_plot, spread_plot
from flannel_udp.bench.results import Place, Result
from flannel_udp.bench.samples import contenders, round_trips, series, taken
from flannel_udp.bench.sheets import Sheet

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What the page may load: nothing."""
_ROUND_TRIPS = {RTT: "How long pings took", RTT_LOADED: "How long pings took beside a TCP stream"}


def page(result: Result) -> str:
    """Return the report of a run."""
    rows = judging.judge(result.places)
    shown = {sheet.title: sheet for sheet in sheets.run_sheets(rows)}
    sections = [("promises", "Promises", _promises(result.targets))] if result.targets else []
    for number, place in enumerate(result.places, 1):
        if place.name in shown:
            of_place = [row for row in rows if row.place == place.name]
            key = f"place{number}"
            sections.append((key, _capital(place.name), _place(place, of_place, shown[place.name], key)))
    sections.append(("reading", "How to read this", _listed(sheets.legend())))
    title = f"flannel-udp bench, {str(result.machine.get('date', ''))[:10]}".rstrip(", ")
    contents = "".join(f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>{text}</section>\n' for name, heading, text in sections
    )
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{_said(name, said)}</dd>" for name, said in sheets.facts(result))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#results">Skip to the results</a>
<header>
<h1>{escape(title)}</h1>
<p>What is forwarded from one host to another by flannel-udp (ours), beside what it is compared with.</p>
<dl>{facts}</dl>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
</header>
<main id="results" tabindex="-1">
{body}</main>
<footer><p>Written by flannel-udp {escape(__version__)}, <code>flannel-udp bench report</code>.</p></footer>
</body>
</html>
"""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _said(name: str, said: str) -> str:
    return f"<code>{escape(said)}</code>" if name == "command" else escape(said)


def _listed(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _place(place: Place, rows: Sequence[judging.Row], sheet: Sheet, key: str) -> str:
    found = series(place.samples)
    parts = [f"<p>{escape(sheets.mtu_note(place))}</p>"] if place.mtus else []
    if any(row.ratio for row in rows):
        parts.append(_figure("Ours beside the others", ratio_plot(rows, key)))
    parts.append(_table(sheet))
    plots = []
    for metric in taken(place.samples):
        measured = contenders(sample for sample in place.samples if metric.name in sample.values)
        of_all = {name: found.get(metric.name, {}).get(name, {}) for name in measured}
        title = f"{metric.label} ({metric.better} is better)"
        plots.append(_figure(title, spread_plot(metric, of_all, f"{key}-{metric.name}")))
    of_pings = round_trips(place.samples)
    plots += [
        _figure(title, latency_plot(title, of_pings[measure], f"{key}-{measure}"))
        for measure, title in _ROUND_TRIPS.items()
        if measure in of_pings
    ]
    folded = f"<summary>Each figure, with every sample: {len(plots)} plots</summary>{''.join(plots)}"
    return "".join([*parts, f"<details open>{folded}</details>"])


def _figure(title: str, plot: str) -> str:
    return f"<h3>{escape(title)}</h3><figure>{plot}</figure>"


def _table(sheet: Sheet) -> str:
    words_at = (0, sheet.verdict_at)
    head = _cells(sheet.headings, words_at, heading=True)
    groups = "".join(
        f'<tbody><tr><th scope="rowgroup" colspan="{len(sheet.headings)}">{escape(group.title)}</th></tr>'
        f"{''.join(f'<tr>{_cells(cells, words_at)}</tr>' for cells in group.rows)}</tbody>"
        for group in sheet.groups
    )
    return _scrolled(f"Medians, {sheet.title}", f"<thead><tr>{head}</tr></thead>{groups}")


def _cells(cells: Sequence[str], words_at: Container[int], *, heading: bool = False) -> str:
    """Return the cells of a row: the first one is its name, the others are figures, but those of words."""
    made = []
    for at, cell in enumerate(cells):
        kind = "" if at in words_at else ' class="number"'
        if heading:
            made.append(f'<th scope="col"{kind}>{escape(cell)}</th>')
        elif at == 0:
            made.append(f'<th scope="row">{escape(cell)}</th>')
        else:
            made.append(f"<td{kind}>{_verdict(cell)}</td>")
    return "".join(made)


def _verdict(said: str) -> str:
    kinds = {judging.BETTER: "good", judging.WORSE: "bad", "met": "good", "not met": "bad"}
    return f'<strong class="{kinds[said]}">{escape(said)}</strong>' if said in kinds else escape(said)


def _scrolled(caption: str, inside: str) -> str:
    """Return a table that scrolls where the window is narrow, by the keyboard, too."""
    name = escape(caption)
    table = f"<table><caption>{name}</caption>{inside}</table>"
    return f'<div class="wide" role="region" aria-label="{name}" tabindex="0">{table}</div>'


def _promises(targets: Sequence[Mapping[str, Any]]) -> str:
    headings = ("measure", "where", "compared", "promised", "measured", "quartiles", "verdict")
    words_at = (0, 1, 2, 6)
    rows = "".join(f"<tr>{_cells(_promise(target), words_at)}</tr>" for target in targets)
    head = _cells(headings, words_at, heading=True)
    return _scrolled("What is promised, and what was measured", f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>")


def _promise(target: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a target's record; whatever is missing or of another kind is shown as it is."""
    sign = "≥" if target.get("higher_is_better") else "≤"
    quartiles = target.get("quartiles")
    return (
        str(target.get("title", "?")),
        _joined(target, ", ", "underlay", "between"),
        _joined(target, " to ", "contender", "baseline") if _is_forwarded(target) else "-",
        f"{sign} {_number(target.get('bound'))}",
        _number(target.get("figure")),
        " to ".join(map(_number, quartiles)) if isinstance(quartiles, list) else "-",
        "not measured" if target.get("figure") is None else "met" if target.get("met") is True else "not met",
    )


def _is_forwarded(target: Mapping[str, Any]) -> bool:
    """Tell whether it is about traffic on an underlay, and not another bench's, which is named in place of all that."""
    return target.get("baseline") != target.get("underlay")


def _joined(target: Mapping[str, Any], between: str, *names: str) -> str:
    """Return what a target has under two names; once where both say the same, as where there is no underlay."""
    return between.join(dict.fromkeys(str(target[name]) for name in names if target.get(name))) or "-"


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "-"
