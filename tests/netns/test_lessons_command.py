"""`lab lesson` as a student meets it: start, check, hint, solve, and what is said where something is wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.cli.main import main
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.lessons.book import find_lesson
from flannel_udp.lab.lessons.course import progress_of
from flannel_udp.lab.lessons.lesson import Lesson
from flannel_udp.lab.netns import wait_until
from flannel_udp.lab.plan import Plan
from tests.support.labs import NEEDS_NETNS, cleaned_up, endless_start, fresh_name, namespaces_of, state_of
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

Output = pytest.CaptureFixture[str]

OWN = """\
title = "Ours"
text = "A link."

[topology]
hosts = 1
pods = 0

[topology.host.h1]
agent = false

[[steps]]
name = "down"
task = "Take lo of h1 down: `flannel-udp lab exec h1 -- ip link set lo down`"
hints = ["So.", "By ip link."]
solve = ["flannel-udp lab exec h1 -- ip link set lo down; true"]
learnt = "It is down."

  [[steps.checks]]
  on = "h1"
  run = "ip -json link show lo"
  json = "0/operstate"
  is = "DOWN"
  otherwise = "lo is {value}."

  [[steps.mistakes]]
  name = "eth0"
  on = "h1"
  run = "ip link show eth0"
  lacks = "UP"
  hint = "That was eth0."
  made_by = ["flannel-udp lab exec h1 -- ip link set eth0 down"]

[[steps]]
name = "still"
task = "Let it be."
hints = ["Nothing is to be done."]
solve = ["true"]

  [[steps.checks]]
  on = "h1"
  run = "cat /sys/class/net/lo/flags"
  changed = false
  otherwise = "It has changed."
"""


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A lab with a lesson of somebody's own, without an agent; tests go through it in their order."""
    name = fresh_name()
    path = tmp_path_factory.mktemp("lessons") / "own.toml"
    path.write_text(OWN)
    path.with_suffix(".zh.toml").write_text('title = "我们的"\n[steps.down]\notherwise = ["lo 是 {value}。"]\n')
    with cleaned_up(Lab(Plan(name))):
        assert main(["lab", "lesson", "start", str(path), "--name", name, "--lang", "en"]) == 0
        yield name


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lab's name in a command does not move it to the next line."""
    monkeypatch.setenv("COLUMNS", "100")


def lesson(capsys: Output, *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["lab", "lesson", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_lesson_is_started_once(name: str, capsys: Output) -> None:
    code, _, error = lesson(capsys, "start", "1", "--name", name)
    assert code == 1
    assert error == (
        f"flannel-udp: the lab {name} has the lesson own already, and is at the step down: go on with "
        f"`flannel-udp lab lesson check --name {name}`, or end it by `flannel-udp lab down --name {name}`\n"
    )


def test_a_check_says_what_is_lacking_in_the_language_of_the_start_or_another(name: str, capsys: Output) -> None:
    code, out, _ = lesson(capsys, "check", "--name", name)
    assert code == 1
    assert out.startswith("[>] down: to do\n[ ] still: later\n\nStep down: not yet.\n  - lo is UNKNOWN.\n\n")
    assert f"`flannel-udp lab exec --name {name} h1 -- ip link set lo down`" in out
    code, out, _ = lesson(capsys, "check", "--name", name, "--lang", "zh")
    assert (code, "lo 是 UNKNOWN。" in out) == (1, True)


def test_what_was_done_instead_is_told(name: str, capsys: Output) -> None:
    lab = Lab.attach(name)
    lab.host("h1").configure("link set eth0 down")
    assert "It looks as if:\n  That was eth0.\n" in lesson(capsys, "check", "--name", name)[1]
    document = json.loads(lesson(capsys, "check", "--name", name, "--json")[1])
    assert document["steps"][0] == {
        "name": "down",
        "task": f"Take lo of h1 down: `flannel-udp lab exec --name {name} h1 -- ip link set lo down`",
        "state": "open",
        "missing": ["lo is UNKNOWN."],
        "mistake": "That was eth0.",
        "learnt": None,
    }
    lab.host("h1").configure("link set eth0 up")


def test_hints_say_more_each_time(name: str, capsys: Output) -> None:
    hints = [json.loads(lesson(capsys, "hint", "--name", name, "--json")[1]) for _ in range(3)]
    assert [(hint["number"], hint["text"]) for hint in hints] == [(1, "So."), (2, "By ip link."), (2, "By ip link.")]
    assert "That was the last one" in lesson(capsys, "hint", "--name", name)[1]


def test_a_step_is_solved_before_ones_eyes_and_the_next_one_begins(name: str, capsys: Output) -> None:
    code, out, _ = lesson(capsys, "solve", "--name", name)
    assert code == 0
    assert out.startswith(f"$ flannel-udp lab exec --name {name} h1 -- ip link set lo down; true\n\n[x] down: done\n")
    assert "Step down: done.\n  It is down.\n" in out
    progress = progress_of(Lab.attach(name))
    assert progress is not None
    assert [step.state for step in progress.steps] == ["done", "open"]


def test_what_a_step_began_with_is_compared_and_the_end_is_said(name: str, capsys: Output) -> None:
    h1 = Lab.attach(name).host("h1")
    h1.configure("link set lo up")
    assert "It has changed." in lesson(capsys, "check", "--name", name)[1]
    h1.configure("link set lo down")
    code, out, _ = lesson(capsys, "check", "--name", name)
    assert (code, f"The lesson is done. Take its lab away:\n\n    flannel-udp lab down --name {name}\n" in out) == (
        0,
        True,
    )
    for word in ("hint", "solve"):
        code, _, error = lesson(capsys, word, "--name", name)
        assert (code, error) == (1, f"flannel-udp: the lesson own of the lab {name} is done\n")


def test_a_lab_without_a_lesson_and_none_at_all_are_one_line(capsys: Output) -> None:
    plain = fresh_name()
    assert lesson(capsys, "check", "--name", plain)[2].startswith(f"flannel-udp: no lab named {plain} is up: ")
    with Lab(Plan(plain, hosts=1, pods=0, agents=())):
        for word in ("check", "hint", "solve"):
            code, _, error = lesson(capsys, word, "--name", plain)
            assert code == 1
            assert error.startswith(f"flannel-udp: the lab {plain} has no lesson: `flannel-udp lab lesson start` ")


def test_a_lab_that_goes_meanwhile_is_one_line(name: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    # Last of those that share the lab: it is gone then.
    def find_while_it_goes(said: str, language: str) -> Lesson:
        Lab.attach(name).down()
        return find_lesson(said, language)

    monkeypatch.setattr("flannel_udp.lab.lessons.course.find_lesson", find_while_it_goes)
    code, _, error = lesson(capsys, "check", "--name", name)
    assert (code, error.splitlines()[-1].startswith(f"flannel-udp: no lab named {name} is up: ")) == (1, True)


def test_a_start_that_is_interrupted_leaves_nothing_behind(tmp_path: Path) -> None:
    name = fresh_name()
    with cleaned_up(Lab(Plan(name))):
        start = subprocess.Popen(
            [sys.executable, "-m", "flannel_udp", "lab", "lesson", "start", "1", "--name", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=endless_start(tmp_path),
        )
        try:
            assert wait_until(lambda: len(namespaces_of(name)) == 5, PATIENCE_S)
            start.send_signal(signal.SIGINT)
            said, _ = start.communicate(timeout=PATIENCE_S)
        finally:
            start.kill()
            start.communicate()
        assert (start.returncode, b"Traceback" in said) == (130, False)
        assert not namespaces_of(name)
        assert not state_of(name).exists()
