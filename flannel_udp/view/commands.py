"""What the page's buttons stand for: commands of the lab, each run as if somebody had typed it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from flannel_udp.errors import UsageError
from flannel_udp.lab.plan import DEFAULT_NAME
from flannel_udp.view import child
from flannel_udp.view.shapes import Way
from flannel_udp.view.steps import steps_of_ping, steps_of_trace

CHANGING = ("cut", "heal", "mtu", "kill", "start", "restart", "takeover", "etcd", "poison", "spoof")
"""Those that a page may ask for by name."""
OF_LESSON = ("check", "hint", "solve")
"""What it may ask of a lesson."""
PACKET_FLAGS = ("proto", "size", "ttl", "dport")
"""Of `lab trace`, beside ``df``."""
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9./:-]{0,63}")
"""Names, addresses and numbers: never a flag."""


class Done(TypedDict):
    """What came of a command: the lines that it said, and if it failed, its exit code and why."""

    command: str
    lines: list[str]
    error: str | None


async def change(lab: str, asked: Mapping[str, Any]) -> Done:
    """Run one of `CHANGING` with its words. Raises `UsageError` for what is none."""
    name, words = asked.get("command"), _words(asked.get("words", []))
    if name not in CHANGING:
        raise UsageError(f"there is no button for {name!r}: it would be one of {', '.join(CHANGING)}")
    argv = ["lab", name, *words, *_of(lab)]
    code, out, err = await child.run(argv)
    if code:
        return Done(command=_shown(argv), lines=out.splitlines(), error=_why(code, err))
    return Done(command=_shown(argv), lines=[*out.splitlines(), *_told(err)], error=None)


async def learn(lab: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Check the lesson's step, give a hint or do it: ``found`` is what the command says with ``--json``."""
    what = asked.get("what")
    if what not in OF_LESSON:
        raise UsageError(f"a lesson has no {what!r}: it would be one of {', '.join(OF_LESSON)}")
    argv = ["lab", "lesson", what, *_of(lab)]
    found, why = await _answer(argv)
    return {"command": _shown(argv), "found": found, "error": why}


async def follow(lab: str, asked: Mapping[str, Any]) -> Way:
    """Send a ping from pod to pod and return where it was seen."""
    argv = ["lab", "follow", *_words([asked.get("from"), asked.get("to")]), *_of(lab)]
    ping, why = await _answer(argv)
    if ping is None:
        return Way(command=_shown(argv), steps=[], end="", error=why)
    steps = steps_of_ping(ping)
    end = "it arrived" if steps[-1]["good"] else "it was lost: see where it was not seen any more"
    return Way(command=_shown(argv), steps=steps, end=end, error=None)


async def foretell(lab: str, asked: Mapping[str, Any], hosts: Mapping[str, str]) -> Way:
    """Return what would become of a packet; `hosts` are the lab's by their addresses on the underlay."""
    source, destination = _words([asked.get("from"), asked.get("to")])
    flags = [f"--{flag}={word}" for flag in PACKET_FLAGS if asked.get(flag) for word in _words([asked[flag]])]
    flags += ["--df"] if asked.get("df") else []
    argv = ["lab", "trace", source, destination, *flags, *_of(lab)]
    trace, why = await _answer(argv)
    if trace is None:
        return Way(command=_shown(argv), steps=[], end="", error=why)
    steps = steps_of_trace(trace, source, destination, hosts)
    return Way(command=_shown(argv), steps=steps, end=f"{trace['verdict']}: {trace['why']}", error=None)


async def _answer(argv: Sequence[str]) -> tuple[Any, str | None]:
    """Run a command with ``--json``; return what it says, whatever its exit code is, or why it says nothing."""
    code, out, err = await child.run([*argv, "--json"])
    return (json.loads(out), None) if out else (None, _why(code, err))


def _words(given: object) -> list[str]:
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) > 2:
        raise UsageError("the words of a command are a list of two at most")
    for word in given:
        if not isinstance(word, str) or not _WORD.fullmatch(word):
            raise UsageError(f"{str(word)[:64]!r} is no name, address or number")
    return list(given)


def _of(lab: str) -> list[str]:
    return [] if lab == DEFAULT_NAME else ["--name", lab]


def _shown(argv: Sequence[str]) -> str:
    return shlex.join(["flannel-udp", *argv])


def _why(code: int, err: str) -> str:
    return f"exit code {code}: {'; '.join(_told(err)) or 'it has not said why'}"


def _told(err: str) -> list[str]:
    return [line.removeprefix("flannel-udp: ") for line in err.splitlines()]
