"""Addresses by the thousand as numbers, packed the way the compiled tables take them.

IPv4 addresses are an array of 32-bit words in host order, IPv6 ones 16 bytes each in network order.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

_BYTES6 = 16


class Column6:
    """IPv6 addresses in a row, used like an `array` of their numbers."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self.packed = bytearray()
        for number in numbers:
            self.append(number)

    def append(self, number: int) -> None:
        """Put one more behind the others."""
        self.packed += number.to_bytes(_BYTES6, "big")

    def __len__(self) -> int:
        return len(self.packed) // _BYTES6

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return int.from_bytes(self.packed[index * _BYTES6 : (index + 1) * _BYTES6], "big")

    def __setitem__(self, index: int, number: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(index)
        self.packed[index * _BYTES6 : (index + 1) * _BYTES6] = number.to_bytes(_BYTES6, "big")

    def __iter__(self) -> Iterator[int]:
        return (self[index] for index in range(len(self)))

    def __add__(self, other: Column6) -> Column6:
        both = Column6()
        both.packed = self.packed + other.packed
        return both


Column = Any
"""An ``array("I")`` or a `Column6`."""


def new_column(version: int, numbers: Iterable[int] = ()) -> Column:
    """Return a column of addresses of that IP version."""
    return array("I", numbers) if version == 4 else Column6(numbers)


def packed(column: Column) -> Any:
    """Return the column as a compiled table takes it."""
    return column.packed if isinstance(column, Column6) else column
