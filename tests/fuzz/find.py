"""What is said of a find, and kept of it, so that it repeats."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.fuzz import target
from tests.support.twin import Difference

ROW_MAX = 10_000
"""Inputs that a run remembers: some ten megabytes, half a minute."""


def explain(row: Sequence[bytes], folder: Path) -> Iterator[str]:
    """Yield what the last input of a row does, and whether it shows the difference alone; or keep the row in `folder`.

    Its files are numbered in their order: libFuzzer runs the files that it is given one after the other.
    """
    yield from target.describe(row[-1])
    target.close()  # other sockets, too
    try:
        target.run(row[-1])
    except Difference as again:
        yield f"again, this input alone: {again}"
        return
    kept = folder / f"row-{hashlib.sha256(row[-1]).hexdigest()[:12]}"
    kept.mkdir(exist_ok=True)
    for n, data in enumerate(row):
        (kept / f"{n:05}").write_bytes(data)
    yield f"this input alone shows nothing: behind the {len(row) - 1} inputs before it: tests/fuzz/run.py {kept}/*"
