"""What processes call themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def name_cut_in_a_letter() -> Iterator[None]:
    """Give this process a name such as the kernel makes of a long one: 15 bytes of UTF-8, the last letter not whole."""
    comm = Path("/proc/self/comm")
    before = comm.read_bytes().removesuffix(b"\n")  # which the kernel adds
    comm.write_bytes(b"Ueberwachungs-\xc3")
    try:
        yield
    finally:
        comm.write_bytes(before)
