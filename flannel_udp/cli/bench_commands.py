"""`bench …`: what benches have found, shown and compared; the logic is in `flannel_udp.bench`."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must load nothing)

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from flannel_udp.cli.arguments import Values
from flannel_udp.cli.command import Argument, Command
from flannel_udp.cli.flags import JSON_FLAG, Flag, choice_flag
from flannel_udp.cli.parsers import parse_bool, parse_path
from flannel_udp.errors import UsageError

FORMAT = choice_flag("format", "how to write it", ("text", "md", "csv"), default="text", in_environment=False)
_ANYWAY = Flag("anyway", "compare the results of two machines", "BOOL", parse_bool, switch=True, in_environment=False)
_OUTPUT = Flag("o", "where to write it", "FILE", parse_path, default="RESULT.html", in_environment=False)
_RESULT = Argument("RESULT", "the JSON file of a run")


def chosen_format(given: Values) -> str:
    """Return how the result is to be shown. Raises `UsageError` where two ways are given."""
    if given.get("json") and "format" in given:
        raise UsageError("--json and --format are both given: give one")
    return "json" if given.get("json") else given.get("format", "text")


def _show(given: Values) -> int:
    chosen = chosen_format(given)
    from flannel_udp.bench.results import read_result
    from flannel_udp.bench.showing import show_result

    show_result(read_result(Path(given["RESULT"])), chosen, sys.stdout)
    return 0


def _compare(given: Values) -> int:
    chosen = chosen_format(given)
    from flannel_udp.bench import sheets, writing
    from flannel_udp.bench.comparing import compare
    from flannel_udp.bench.results import read_result

    old, new = (read_result(Path(given[name])) for name in ("OLD", "NEW"))
    found = compare(old, new, any_machine=given.get("anyway", False))
    facts, shown = sheets.compared_facts(found), sheets.compared_sheets(found.rows)
    if chosen == "json":
        sys.stdout.write(json.dumps(sheets.compared_document(found), indent=2) + "\n")
    elif chosen == "csv":
        sys.stdout.write(writing.csv_text(sheets.compared_records(found.rows)))
    elif chosen == "md":
        sys.stdout.write(writing.markdown_page(facts, shown, sheets.compared_legend()))
    else:
        sys.stdout.write(writing.text_page(facts, shown, sheets.compared_legend()))
    return 0


def _report(given: Values) -> int:
    from flannel_udp.bench.page import page
    from flannel_udp.bench.results import read_result
    from flannel_udp.bench.showing import write_file

    source = Path(given["RESULT"])
    output: Path = given.get("o", source.with_suffix(".html"))
    write_file(output, page(read_result(source)), beside=source)
    if given.get("json"):
        sys.stdout.write(json.dumps({"written": [str(output)]}, indent=2) + "\n")
    else:
        sys.stdout.write(f"wrote {output}\n")
    return 0


BENCH_COMMANDS: Mapping[str, Command] = {
    "bench show": Command(
        "show what a run found: medians, spread, and what is beyond the noise",
        "Each contender's median of the accepted samples; ours divided by it, between what that ratio lies, and what\n"
        "it says of ours. The intervals are a bootstrap's over the rounds, seeded: one file gives one answer.\n\n"
        "example: flannel-udp bench show run.json --format=md",
        _show,
        {"output": (FORMAT, JSON_FLAG)},
        (_RESULT,),
    ),
    "bench compare": Command(
        "say what became better or worse from one run to another",
        "Each contender's medians in both, new divided by old, between what that ratio lies, and whether that is\n"
        "better, worse or no difference. The contenders that are none of ours tell how much the machine itself has\n"
        "changed: what they changed as well is no build's. Runs of other options or of another machine are refused.\n"
        "exit codes: 0 compared, whatever came out; 1 failed; 2 what cannot be compared, or wrong usage.\n\n"
        "example: flannel-udp bench compare before.json after.json",
        _compare,
        {"which": (_ANYWAY,), "output": (FORMAT, JSON_FLAG)},
        (Argument("OLD", "the JSON file of the former run"), Argument("NEW", "that of the later one")),
    ),
    "bench report": Command(
        "write what a run found as one HTML file: tables, plots, machine, command",
        "It stands alone: a browser opens it without any network, light or dark as the reader has it.\n\n"
        "example: flannel-udp bench report run.json -o report.html",
        _report,
        {"output": (_OUTPUT, JSON_FLAG)},
        (_RESULT,),
    ),
}
