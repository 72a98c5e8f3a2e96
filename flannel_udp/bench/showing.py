"""What was found, written: to standard output as text, Markdown, CSV or JSON, to files whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from flannel_udp.bench import sheets, writing
from flannel_udp.bench.judging import judge
from flannel_udp.bench.results import Result
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.files.atomic import replace_file


def show_result(result: Result, form: str, out: TextIO) -> None:
    """Write what a run found; `form` is text, md, csv or json."""
    rows = judge(result.places)
    facts, shown, records = sheets.facts(result), sheets.run_sheets(rows), sheets.run_records(rows)
    if form == "json":
        document = {"machine": dict(result.machine), "options": dict(result.options), "rows": records}
        out.write(json.dumps(document, indent=2) + "\n")
    elif form == "csv":
        out.write(writing.csv_text(records))
    elif form == "md":
        out.write(writing.markdown_page(facts, shown, sheets.legend()))
    else:
        out.write(writing.text_page(facts, shown, sheets.legend(), sheets.place_notes(result)))


def write_file(path: Path, text: str, *, beside: Path | None = None) -> None:
    """Write a file whole: a full disk costs no former one.

    Raises `FlannelError` where it cannot be written, and `UsageError` where it is the very file `beside`.
    """
    try:
        if beside is not None and path.exists() and path.samefile(beside):
            raise UsageError(f"{path} is the result itself: name another file")
        if path.exists() and not path.is_file():
            path.write_bytes(text.encode())  # a pipe or a device
        else:
            replace_file(path, text.encode())
    except OSError as error:
        raise FlannelError(f"cannot write {path}: {error.strerror}") from None
