"""Reading a JSON object as flannel does: keys without regard to case, strict types, every fault noted. Pure."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from flannel_udp.errors import ConfigError, did_you_mean

SECRET_KEYS = frozenset({"AccessKeySecret"})
"""Keys whose values nobody but who is meant gets to see: not in a message, a log, or what a command shows."""
HIDDEN = "(hidden)"
MAX_CONFIG_BYTES = 1 << 20
"""Nothing sensible is larger, and etcd itself refuses values above 1.5 MiB."""
_HINTS_MAX = 10
"""Of one object: a document may hold 100,000 unknown keys, and each takes half a millisecond to compare."""
MAX_NESTING = 16
"""Levels of objects and lists; the deepest known backend options need three."""


class JsonObject(dict[str, Any]):
    """A JSON object that remembers its keys as written, also those that came twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def decode_object(raw: bytes | str) -> JsonObject:
    """Return the document's top object. Every way to be no JSON object ends in `ConfigError`."""
    if len(raw) > MAX_CONFIG_BYTES:
        _refuse(f"is {len(raw)} bytes long: expected at most {MAX_CONFIG_BYTES}")
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
        document = json.loads(
            text,
            object_pairs_hook=JsonObject,
            parse_int=_integer,
            parse_float=_finite_number,
            parse_constant=_finite_number,
        )
    except UnicodeDecodeError as error:
        _refuse(f"is not UTF-8 text: byte {error.start + 1} is 0x{error.object[error.start]:02x}")
    except json.JSONDecodeError as error:
        # The standard library's text for a byte order mark speaks to programmers.
        what = "a byte order mark" if text.startswith("\ufeff") else error.msg
        _refuse(f"is not JSON: line {error.lineno}, column {error.colno}: {what}")
    except RecursionError:
        _refuse(f"is nested too deeply: expected at most {MAX_NESTING} levels")
    except ValueError as error:
        _refuse(f"holds an impossible number: {error}")
    if not isinstance(document, JsonObject):
        _refuse(f'is {shown(document)}: expected a JSON object such as {{"Network": "10.1.0.0/16"}}')
    if _nested_deeper(document, MAX_NESTING):
        _refuse(f"is nested too deeply: expected at most {MAX_NESTING} levels")
    return document


def _refuse(what: str) -> NoReturn:
    raise ConfigError([f"network configuration {what}"])


def _integer(literal: str) -> int:
    if len(literal) > 40:  # 2**128 has 39 digits; the time int() takes grows with the square of their number
        raise ValueError(f"{_cut(literal)} has {len(literal)} digits")
    return int(literal)


def _finite_number(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"{_cut(literal)} is not a finite number")
    return number


def _nested_deeper(value: Any, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if children is None:
        return False
    return levels == 0 or any(_nested_deeper(child, levels - 1) for child in children)


def shown(value: Any) -> str:
    """Return `value` as it stood in the document: one line, ASCII only, not too long for a message.

    Nothing of what has a secret key in it, as it does where `Backend` is a list or a text by mistake.
    """
    text = json.dumps(value)
    return HIDDEN if any(key.casefold() in text.casefold() for key in SECRET_KEYS) else _cut(text)


def _shown_of(key: str, value: Any) -> str:
    return HIDDEN if key in SECRET_KEYS else shown(value)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


class ObjectReader:
    """Looks known keys up in one JSON object, checks their JSON types and collects faults and warnings.

    A method that reads a value returns ``None`` when the key is absent or faulty. JSON types are strict, as in Go:
    true is not 1 and "24" is not 24.
    """

    def __init__(self, document: JsonObject, known: tuple[str, ...], where: str = "") -> None:
        self.warnings: list[str] = []
        self._where = where
        self._faults: list[tuple[int, str]] = []
        self._values: dict[str, Any] = {}
        self._positions: dict[str, int] = {}
        spelling = {key.casefold(): key for key in known}
        for position, (written, value) in enumerate(document.pairs):
            key = spelling.get(written.casefold())
            if key is None:
                hint = did_you_mean(written, known, where) if len(self.warnings) < _HINTS_MAX else ""
                self.warnings.append(f"unknown key {_cut(json.dumps(where + written))} is ignored{hint}")
                continue
            if key in self._positions:
                last = _shown_of(key, value)
                self.warnings.append(f"{where}{key} is given more than once: the last one, {last}, counts")
            self._positions[key] = position
            self._values[key] = value

    def fault(self, key: str, text: str) -> None:
        """Note a fault of `key`; `text` is the whole line."""
        self._faults.append((self._positions.get(key, len(self._positions)), text))

    def wrong(self, key: str, expected: str) -> None:
        """Note that the value of `key` is not as expected."""
        self.fault(key, f"{self._where}{key} is {_shown_of(key, self._values[key])}: expected {expected}")

    def raise_faults(self) -> None:
        """Raise `ConfigError` if there is any fault, in the order of the document, absent keys last."""
        if self._faults:
            raise ConfigError([text for _, text in sorted(self._faults, key=lambda fault: fault[0])])

    def value(self, key: str) -> Any:
        """Return the value of any JSON type; ``None`` when the key is absent or null."""
        return self._values.get(key)

    def boolean(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self.value(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.wrong(key, "true or false")
            return default
        return value

    def integer(self, key: str) -> int | None:
        """Return a whole number."""
        value = self.value(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if value is not None:
            self.wrong(key, "a whole number")
        return None

    def string(self, key: str) -> str | None:
        """Return a string."""
        value = self.value(key)
        if value is None or isinstance(value, str):
            return value
        self.wrong(key, "a string")
        return None

    def object(self, key: str) -> JsonObject | None:
        """Return an object."""
        value = self.value(key)
        if value is None or isinstance(value, JsonObject):
            return value
        self.wrong(key, "an object")
        return None

    def adopt(self, key: str, other: ObjectReader) -> None:
        """Take over the faults and warnings of the object that stands under `key`."""
        self.warnings.extend(other.warnings)
        for _, text in sorted(other._faults, key=lambda fault: fault[0]):
            self.fault(key, text)
