"""A TOML file that people write, read key by key: every fault is one line with the file and the key as it is spelt."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from flannel_udp.errors import UsageError, did_you_mean

Keys = tuple[str | int, ...]
"""Where a value is: the keys that lead to it, and indices of what stands in lists."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the file; `keys` lead to it, none for the file itself."""

    file: str
    values: Mapping[str, Any]
    keys: Keys = ()
    source: str | None = None
    """The text of the whole file, if faults shall name the line, too."""

    def wrong(self, key: str, why: str) -> NoReturn:
        """Raise `UsageError` about the value of a key."""
        raise UsageError(f"{self.place(key)}: {self.name_of(key)}: {why}")

    def place(self, key: str | None = None) -> str:
        """Return the file, with the line of a key, or of this table, if faults name it."""
        if self.source is None:
            return self.file
        keys = self.keys if key is None or key not in self.values else (*self.keys, key)
        return f"{self.file}:{line_of(self.source, keys)}"

    def name_of(self, key: str) -> str:
        """Return a key with its tables in front; those of a list are counted from 1."""
        shown = ""
        for each in (*self.keys, key):
            shown += f"[{each + 1}]" if isinstance(each, int) else f".{each}"
        return shown[1:]

    def require(self, known: Sequence[str]) -> None:
        """Raise `UsageError` if there is a key that is none of these."""
        for key in self.values:
            if key not in known:
                self.wrong(key, f"unknown key, it is none of {', '.join(known)}{did_you_mean(key, known)}")

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """Return a whole number."""
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.wrong(key, f"{shown(value)} is not a whole number from {low} to {high}")
        return value

    def word(self, key: str, default: str, words: Sequence[str]) -> str:
        """Return one of these words."""
        value = self.text(key, default)
        if value not in words:
            self.wrong(key, f"{shown(value)} is not one of {', '.join(words)}{did_you_mean(value, words)}")
        return value

    def text(self, key: str, default: str) -> str:
        """Return a text."""
        value = self.values.get(key, default)
        if not isinstance(value, str):
            self.wrong(key, f"{shown(value)} is not a text: put it between quotes")
        return value

    def needed(self, key: str) -> str:
        """Return a text that must be there."""
        value = self.text(key, "").strip()
        if not value:
            self.wrong(key, "is missing, or empty: it has to be a text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts, empty where there is none."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            self.wrong(key, f'{shown(value)} is not a list of texts such as ["a", "b"]')
        return tuple(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.wrong(key, f"{shown(value)} is neither true nor false")
        return value

    def table(self, key: str) -> Self:
        """Return a table below this one, empty where there is none."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            self.wrong(key, f"{shown(value)} is not a table")
        return type(self)(self.file, value, (*self.keys, key), self.source)

    def tables(self, key: str) -> tuple[Self, ...]:
        """Return a list of tables, empty where there is none."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            self.wrong(key, f"{shown(value)} is not a list of tables: each begins with [[{self.name_of(key)}]]")
        return tuple(
            type(self)(self.file, each, (*self.keys, key, index), self.source) for index, each in enumerate(value)
        )


def read_text(path: Path, what: str) -> str:
    """Return the text of a file that somebody has named; `what` it is. Raises `UsageError`."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}") from None


def parse(path: Path, text: str) -> dict[str, Any]:
    """Return what a file says. Raises `UsageError`."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers without end, lists in lists in lists
        raise UsageError(f"{path} is no TOML: {error}") from None


def line_of(text: str, keys: Keys) -> int:
    """Return the line, from 1, where the value begins that keys lead to; the text is TOML.

    tomllib tells no lines: the value's is the one behind the longest beginning of the text that is TOML without it.
    """
    lines, before = text.splitlines(), 0
    for n in range(1, len(lines) + 1):
        try:
            begun = tomllib.loads("\n".join(lines[:n]))
        except tomllib.TOMLDecodeError:
            continue
        if _has(begun, keys):
            return before + 1
        before = n
    return 1


def _has(value: Any, keys: Keys) -> bool:
    for key in keys:
        try:
            value = value[key]
        except (LookupError, TypeError):
            return False
    return True


def shown(value: object) -> str:
    """Return a value as TOML has it, more or less; never long."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
