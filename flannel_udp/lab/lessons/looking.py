"""Look at a lab as a check wants it, and tell whether it is as wanted. Nothing here changes the lab."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flannel_udp.errors import FlannelError
from flannel_udp.lab.inside import environment
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.lessons.lesson import Check
from flannel_udp.lab.node import Host, Node

TIMEOUT_S = 20.0
"""For a check's command, which takes milliseconds."""
NOTHING = "nothing"
"""How a value is shown that is not there."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look has brought: the value, a JSON one, and how the command ended."""

    value: Any
    exit_code: int = 0

    @property
    def shown(self) -> str:
        """The value in words, as TOML has it; a text stays as it is."""
        if self.value is None or self.value == "":
            return NOTHING
        return self.value if isinstance(self.value, str) else json.dumps(self.value)

    @property
    def number(self) -> float | None:
        """The value as a number, ``None`` if it is none."""
        try:
            return float(self.value)
        except (TypeError, ValueError):
            return None


def _grown(seen: Seen, before: Seen) -> float | None:
    if seen.number is None:
        return None
    # What counts anew since then, as an agent that was started again, has grown by all that it counts.
    began = before.number or 0.0
    return seen.number - began if seen.number >= began else seen.number


def _at_least(value: float | None, wanted: Any) -> bool:
    return value is not None and value >= wanted


CONDITIONS: Mapping[str, tuple[type, Callable[[Seen, Seen, Any], bool]]] = {
    "is": (object, lambda seen, _, wanted: seen.shown == Seen(wanted).shown),
    "is_not": (object, lambda seen, _, wanted: seen.shown != Seen(wanted).shown),
    "matches": (str, lambda seen, _, wanted: re.search(wanted, seen.shown, re.MULTILINE) is not None),
    "lacks": (str, lambda seen, _, wanted: re.search(wanted, seen.shown, re.MULTILINE) is None),
    "at_least": (int, lambda seen, _, wanted: _at_least(seen.number, wanted)),
    "at_most": (int, lambda seen, _, wanted: seen.number is not None and seen.number <= wanted),
    "grew": (int, lambda seen, before, wanted: _at_least(_grown(seen, before), wanted)),
    "changed": (bool, lambda seen, before, wanted: (seen.shown != before.shown) is wanted),
    "exit": (int, lambda seen, _, wanted: seen.exit_code == wanted),
}
"""What a check may want: the type of the value in the file, and what tells whether it is so, now and at the begin."""


def holds(check: Check, seen: Seen, before: Seen) -> bool:
    """Tell whether what was seen is as the check wants it; `before` was seen when the step began."""
    return CONDITIONS[check.condition][1](seen, before, check.wanted)


def look(lab: Lab, check: Check) -> Seen:
    """Ask the node. What is not there, or does not answer, is a value that is not there, but for a process's number."""
    node = lab.node(check.on)
    if check.kind == "agent":
        return Seen(part_of(_agent(node, check.what), check.json))
    if check.kind == "counter":
        seen = _run(node, f"nstat -asz -j {check.what}")
        return Seen(part_of(_parsed(seen.value), f"kernel/{check.what}"), seen.exit_code)
    seen = _run(node, check.what)
    return Seen(part_of(_parsed(seen.value), check.json), seen.exit_code) if check.json else seen


def _run(node: Node, command: str) -> Seen:
    try:
        done = node.run(["sh", "-c", command], check=False, timeout_s=TIMEOUT_S, env=environment(node))
    except FlannelError:  # it took too long
        return Seen(None, 124)  # as timeout(1) says it
    return Seen(done.stdout.strip(), done.returncode)


def _agent(node: Node, what: str) -> Any:
    if not isinstance(node, Host):
        return None
    try:
        return node.control(f"/v1/{what}")
    except FlannelError:
        # One that begins just now, or hangs, is there all the same.
        return {"pid": node.agent_pid()} if what == "status" else None


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return None


def part_of(document: Any, way: str) -> Any:
    """Return a part of a JSON document: keys, indices and ``key=value`` with slashes between them.

    ``0/dev`` is the member dev of the first item; ``public_ip=192.0.2.2/health`` of the first item that has this
    address; ``#`` how many items there are. ``None`` where there is no such part.
    """
    for word in filter(None, way.split("/")):
        key, equals, value = word.partition("=")
        if word == "#" and isinstance(document, list):
            document = len(document)
        elif isinstance(document, list) and equals:
            document = next((item for item in document if _is(item, key, value)), None)
        elif isinstance(document, list) and word.isdecimal() and int(word) < len(document):
            document = document[int(word)]
        else:
            document = document.get(word) if isinstance(document, dict) else None
    return document


def _is(item: Any, key: str, value: str) -> bool:
    return isinstance(item, dict) and Seen(item.get(key)).shown == value
