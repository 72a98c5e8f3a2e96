"""`config check`, `config get` and `config put`: the network configuration."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load the registry clients)

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flannel_udp.backend.table import BACKENDS
from flannel_udp.cli.arguments import Values
from flannel_udp.cli.command import Argument, Command, warn, with_registry
from flannel_udp.cli.flags import JSON_FLAG, REGISTRY_FLAGS
from flannel_udp.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from flannel_udp.netconf.config import ParsedConfig


def _config_check(given: Values) -> int:
    from flannel_udp.netconf.reader import SECRET_KEYS

    parsed = _checked(_read(given["FILE"]), given)
    secret = SECRET_KEYS.intersection(parsed.config.backend.options)
    if secret:
        warn(f"what is printed lacks {', '.join(sorted(secret))}: store the file itself")
    sys.stdout.write(f"{parsed.config.to_json(secrets=False)}\n")
    return 0


def _config_get(given: Values) -> int:
    raw = with_registry(given, lambda registry: registry.read_config())
    if given.get("json"):
        try:
            document = json.loads(raw)
        except ValueError as error:
            raise ConfigError([f"what the registry holds is no JSON: {error}"]) from None
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return 0
    sys.stdout.buffer.write(raw if raw.endswith(b"\n") else raw + b"\n")
    return 0


def _config_put(given: Values) -> int:
    from flannel_udp.cli import config_put

    raw = _read(given["FILE"])
    _checked(raw, given)  # before the registry is asked
    outcome = with_registry(given, lambda registry: config_put.put_config(registry, raw, _parse))
    if given.get("json"):
        sys.stdout.write(json.dumps(config_put.document_of(outcome), indent=2) + "\n")
    else:
        config_put.show_outcome(outcome, sys.stdout)
    for warning in outcome.warnings:
        warn(warning)
    return 0


def _read(name: str) -> bytes:
    from flannel_udp.netconf.reader import MAX_CONFIG_BYTES

    try:
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
            return file.read(MAX_CONFIG_BYTES + 1)  # one more than is allowed: the parser says that it is too long
    except OSError as error:
        raise UsageError(f"cannot read {name!r}: {error.strerror}") from None


def _checked(raw: bytes, given: Values) -> ParsedConfig:
    """Return the configuration, its warnings said; its faults are printed as a document, too, if that is wanted."""
    try:
        parsed = _parse(raw)
    except ConfigError as error:
        if given.get("json"):
            sys.stdout.write(json.dumps({"ok": False, "faults": error.faults}, indent=2) + "\n")
        raise
    for warning in parsed.warnings:
        warn(warning)
    return parsed


def _parse(raw: bytes) -> ParsedConfig:
    from flannel_udp.netconf.config import parse_network_config

    return parse_network_config(raw, BACKENDS)


_DOCUMENT = Argument("FILE", "the JSON document; - reads standard input")

CONFIG_COMMANDS: Mapping[str, Command] = {
    "config check": Command(
        "check a network configuration and print it with all defaults filled in",
        f"Backend.Type is one of {', '.join(BACKENDS)}; each checks its own options.\n"
        "Every fault is one line on standard error, and the exit code is 2. What is printed can be stored as it is.\n"
        'With --json the faults are printed too: {"ok": false, "faults": ["..."]}.\n\n'
        'example: echo \'{"Network": "10.1.0.0/16"}\' | flannel-udp config check -',
        _config_check,
        {"output": (JSON_FLAG,)},
        (_DOCUMENT,),
    ),
    "config get": Command(
        "print the network configuration that the registry holds",
        "It is printed as it is stored, unchecked; with --json what is no JSON is an error.\n\n"
        "example: flannel-udp config get --registry=file:/etc/flannel/registry.json",
        _config_get,
        {"registry": REGISTRY_FLAGS, "output": (JSON_FLAG,)},
    ),
    "config put": Command(
        "check a network configuration and store it in the registry",
        "It is stored as it is, without the defaults; a faulty one is not stored. What it changes is printed, a line\n"
        'a key, defaults filled in; with --json as {"stored": true, "former": "valid", "changes": [...], ...}.\n'
        "An agent reads it when it starts: those that run keep what they have.\n\n"
        "example: flannel-udp config put net-conf.json --etcd-endpoints=http://192.0.2.10:2379",
        _config_put,
        {"registry": REGISTRY_FLAGS, "output": (JSON_FLAG,)},
        (_DOCUMENT,),
    ),
}
