"""What a command is: data that help, completion, man pages and the reading of words are made from.

A family of commands is one module with a mapping of them by name, "route get"; `commands` joins them.
"""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must load nothing)

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, TextIO, TypeVar

from flannel_udp.cli.arguments import Values, to_options
from flannel_udp.cli.flags import Flag

if TYPE_CHECKING:
    from flannel_udp.registry import Registry

Result = TypeVar("Result")

QUIET_S = 2.0
"""How long a command may take before it says how far it is."""

REST = "..."
"""The `count` of an argument that takes everything after those before it as it is: another program's words."""

GROUPS: Mapping[str, str] = {
    "lab": "build hosts and pods in network namespaces, to try and to test",
    "lab lesson": "learn in a lab: lessons that look at what was done in it",
    "bench": "measure what is forwarded, show it, compare it",
}
"""First words that stand, with this summary, for all their commands where all commands are listed."""


@dataclass(frozen=True, slots=True)
class Argument:
    """A word of a command that is no flag's value.

    Its value goes by its name. `count` is argparse's nargs: "" for one, "?" for one or none (`None` then), "+" and "*"
    for a list, `REST`. `words` are what a shell may complete it to.
    """

    name: str
    help: str
    count: str = ""
    words: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """The argument as a usage line shows it."""
        shown = {"": "{}", "?": "[{}]", "+": "{}...", "*": "[{}...]", REST: "-- {}..."}
        return shown[self.count].format(self.name)


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what its help says (one line, and more), its code, its flags by the title of their group, its words.

    `details` ends with an example.
    """

    summary: str
    details: str
    run: Callable[[Values], int]
    flags: Mapping[str, tuple[Flag, ...]]
    arguments: tuple[Argument, ...] = ()

    @property
    def all_flags(self) -> tuple[Flag, ...]:
        """The flags of all groups."""
        return tuple(flag for flags in self.flags.values() for flag in flags)

    @property
    def takes_rest(self) -> bool:
        """Whether the words behind its own arguments are another program's."""
        return bool(self.arguments) and self.arguments[-1].count == REST


def show(given: Values, document: Result, for_people: Callable[[Result, TextIO], None]) -> None:
    """Write a document to standard output: as it is with ``--json``, else as `for_people` writes it."""
    from flannel_udp.admin.show import show_json

    if given.get("json"):
        show_json(document, sys.stdout)
    else:
        for_people(document, sys.stdout)


def with_registry(given: Values, call: Callable[[Registry], Awaitable[Result]]) -> Result:
    """Return what `call` makes of the registry that the flags name, which is closed then."""
    import asyncio

    from flannel_udp.registry.open import open_registry

    async def run() -> Result:
        registry = open_registry(to_options(given), onlooker=True)
        try:
            return await call(registry)
        finally:
            await registry.close()

    return asyncio.run(run())


def progress(what: str) -> Callable[[int], None]:
    """Return what says on standard error how far a command is, every second once it has taken two."""
    due_s = monotonic() + QUIET_S

    def say(n: int) -> None:
        nonlocal due_s
        if monotonic() >= due_s:
            due_s = monotonic() + 1.0
            sys.stderr.write(f"flannel-udp: {n:,} {what}\n")

    return say


def warn(text: str) -> None:
    """Say something on standard error that keeps nothing from being done."""
    sys.stderr.write(f"flannel-udp: warning: {text}\n")
