"""`config put`: what a new network configuration changes, and who notices it when."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, TextIO

from flannel_udp.errors import ConfigError, ConfigMissing, RegistryDenied
from flannel_udp.netconf.config import NetworkConfig, ParsedConfig
from flannel_udp.netconf.reader import HIDDEN, SECRET_KEYS
from flannel_udp.registry import Registry

Parse = Callable[[bytes], ParsedConfig]

RESTART = "agents that run keep the former configuration until they are started again"
APART = "until then pods of hosts with the former and with the new one do not reach each other"
_SPLITTING = ("Network", "Backend.Type")
"""Hosts that differ in these are no peers of each other."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key of the normalised configuration, those of Backend as `Backend.Type`; ``None``: it is not there."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it; field for field what `--json` prints.

    ``former`` is what the registry held before; only with a ``valid`` one there are ``changes`` to tell of.
    """

    stored: bool
    former: Literal["none", "invalid", "valid"]
    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()


async def put_config(registry: Registry, raw: bytes, parse: Parse) -> Outcome:
    """Store a configuration unless it is there already. Raises `ConfigError` for a faulty one, `RegistryError`."""
    new = parse(raw).config
    try:
        former = await registry.read_config()
        old = parse(former).config
    except ConfigMissing:
        outcome = Outcome(stored=True, former="none")
    except (ConfigError, RegistryDenied) as fault:  # a user of etcd may have the right to write only
        reason = fault.faults[0] if isinstance(fault, ConfigError) else str(fault)
        cannot_compare = f"what the registry held before cannot be compared: {reason}"
        outcome = Outcome(stored=True, former="invalid", warnings=(cannot_compare, RESTART))
    else:
        if json.loads(former) == json.loads(raw):
            return Outcome(stored=False, former="valid")
        outcome = _compare(old, new)
    await registry.write_config(raw)
    return outcome


def _compare(old: NetworkConfig, new: NetworkConfig) -> Outcome:
    changes = tuple(_changes(old, new))
    warnings: tuple[str, ...] = ()
    if changes:
        apart = any(change.key in _SPLITTING for change in changes)
        warnings = (f"{RESTART}; {APART}" if apart else RESTART,)
    return Outcome(stored=True, former="valid", changes=changes, warnings=warnings)


def _changes(old: NetworkConfig, new: NetworkConfig) -> Iterator[Change]:
    before, after = _flat(old.to_document()), _flat(new.to_document())
    for key in before | after:
        change = Change(key, before.get(key), after.get(key))
        if change.old != change.new:
            yield _without_secrets(change)


def _without_secrets(change: Change) -> Change:
    if change.key.rpartition(".")[2] not in SECRET_KEYS:
        return change
    old, new = (None if value is None else HIDDEN for value in (change.old, change.new))
    return Change(change.key, old, "(another one, hidden)" if old and new else new)


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def show_outcome(outcome: Outcome, stream: TextIO) -> None:
    """Write one line a changed key, and whether anything was stored."""
    for change in outcome.changes:
        stream.write(f"{change.key}: {_text(change.old)} → {_text(change.new)}\n")
    if not outcome.stored:
        stream.write("nothing stored: the registry holds this configuration already\n")
    elif outcome.former == "none":
        stream.write("stored: the registry's first network configuration\n")
    elif outcome.former == "valid" and not outcome.changes:
        stream.write("stored: written in another way, it means the same as before\n")
    else:
        stream.write("stored\n")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def document_of(outcome: Outcome) -> dict[str, Any]:
    """Return what `--json` prints."""
    return asdict(outcome)
