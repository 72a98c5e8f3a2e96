"""What the page is told of a command that a button ran: its exit code says whether it failed, not its words."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from flannel_udp.view import child, commands

PING = {"steps": [{"where": "h1/p1 eth0", "what": "the ping", "seen": None}]}


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """How the command ends: there is no lab, and none is run."""
    how: dict[str, object] = {"code": 0, "out": "", "err": ""}

    async def run(_words: list[str]) -> tuple[object, ...]:
        return tuple(how.values())

    monkeypatch.setattr(child, "run", run)
    return how


async def test_a_command_that_succeeds_may_say_something_beside_it(ends: dict[str, object]) -> None:
    ends.update(out="h2: the link is cut\n", err="flannel-udp: warning: it is late\n")
    done = await commands.change("lab", {"command": "cut", "words": ["h2"]})
    assert (done["lines"], done["error"]) == (["h2: the link is cut", "warning: it is late"], None)


@pytest.mark.parametrize(
    ("code", "err", "why"),
    [
        (1, "flannel-udp: h1: the agent runs already\n", "exit code 1: h1: the agent runs already"),
        (2, "flannel-udp: one\nflannel-udp: two\n", "exit code 2: one; two"),
        (137, "", "exit code 137: it has not said why"),
    ],
)
async def test_one_that_fails_has_its_exit_code_told(ends: dict[str, object], code: int, err: str, why: str) -> None:
    ends.update(code=code, err=err)
    assert (await commands.change("lab", {"command": "heal"}))["error"] == why
    assert await commands.learn("lab", {"what": "solve"}) == {
        "command": "flannel-udp lab lesson solve",
        "found": None,
        "error": why,
    }
    ends_of_packet = {"from": "h1/p1", "to": "h2/p1"}
    assert (await commands.follow("lab", ends_of_packet))["error"] == why
    assert (await commands.foretell("lab", ends_of_packet, {}))["error"] == why


async def test_what_was_done_before_it_failed_is_told_too(ends: dict[str, object]) -> None:
    ends.update(code=1, out="h2: the link is plugged in again\n", err="flannel-udp: h1: the agent has ended\n")
    done = await commands.change("lab", {"command": "heal"})
    assert done["lines"] == ["h2: the link is plugged in again"]
    assert done["error"] == "exit code 1: h1: the agent has ended"


async def test_an_answer_that_is_no_is_no_failure(ends: dict[str, object]) -> None:
    ends.update(code=1, out=json.dumps(PING))
    way = await commands.follow("lab", {"from": "h1/p1", "to": "h2/p1"})
    assert (way["end"][:11], way["error"]) == ("it was lost", None)
    assert (await commands.learn("lab", {"what": "check"}))["error"] is None


async def test_a_signal_is_an_exit_code_as_a_shell_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ends-itself"
    program.write_text("#!/bin/sh\nkill -KILL $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert await child.run(["lab", "heal"]) == (137, "", "")
