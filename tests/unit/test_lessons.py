"""Lessons without a lab: what their files say, their translations, and what a check makes of what it sees."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from flannel_udp.backend.table import LAB_BACKENDS
from flannel_udp.cli.main import main
from flannel_udp.errors import FlannelError
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.lessons.book import find_lesson, list_lessons, our_files
from flannel_udp.lab.lessons.commands import inside_of, named
from flannel_udp.lab.lessons.language import LANGUAGES, laid_out, language_of, words
from flannel_udp.lab.lessons.lesson import Check, Lesson
from flannel_udp.lab.lessons.looking import Seen, holds, look, part_of
from flannel_udp.lab.lessons.reader import plan_of_lesson, translation_of
from flannel_udp.lab.lessons.record import Record
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.runner import Runner

OURS = our_files()
TRANSLATED = [language for language in LANGUAGES if language != "en"]


def test_there_are_nine_and_each_is_found_by_number_and_by_name() -> None:
    assert [outline.number for outline in list_lessons()] == list(range(1, 10))
    for outline in list_lessons():
        lesson = find_lesson(outline.name)
        assert lesson == find_lesson(str(outline.number)) == find_lesson(str(lesson.path))


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_a_lesson_has_a_lab_that_can_be_built_and_a_mistake_for_each_step(path: Path) -> None:
    lesson = find_lesson(str(path))
    assert plan_of_lesson(path, LAB_BACKENDS, "x").name == "x"
    assert [step.name for step in lesson.steps if not (step.mistakes or step.learnt)] == []


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_that_a_ping_has_no_answer_is_believed_only_where_one_had_time_to_come(path: Path) -> None:
    # On a busy machine an answer takes a second: a step would be done by that.
    steps = find_lesson(str(path)).steps
    checks = [each.check for step in steps for each in step.requirements]
    checks += [each.check for step in steps for each in step.mistakes]
    for check in checks:
        if check.condition == "exit" and check.wanted != 0:
            assert "ping -c 1 -W 5 " in check.what


def texts_of(steps: dict[str, Any]) -> dict[str, Any]:
    """Return what a translation of these steps has to have, as numbers of texts."""
    return {
        name: {
            **{key: 1 for key in ("task", "learnt") if key in step},
            "hints": len(step["hints"]),
            "otherwise": len(step["checks"]),
            "mistakes": [mistake["name"] for mistake in step.get("mistakes", [])],
        }
        for name, step in steps.items()
    }


@pytest.mark.parametrize("language", TRANSLATED)
@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_a_translation_has_the_same_steps_and_all_texts(path: Path, language: str) -> None:
    english = tomllib.loads(path.read_text())
    beside = translation_of(path, language)
    assert beside is not None
    other = tomllib.loads(beside.read_text())
    assert set(other) == {"title", "text", "steps"}
    assert {
        name: {
            **{key: 1 for key in ("task", "learnt") if key in step},
            "hints": len(step["hints"]),
            "otherwise": len(step["otherwise"]),
            "mistakes": list(step.get("mistakes", {})),
        }
        for name, step in other["steps"].items()
    } == texts_of({step["name"]: step for step in english["steps"]})


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_a_translation_names_the_same_commands_and_values(path: Path) -> None:
    def told(lesson: Lesson) -> list[list[str]]:
        texts = [text for step in lesson.steps for text in (step.task, *(each.otherwise for each in step.requirements))]
        texts += [mistake.hint for step in lesson.steps for mistake in step.mistakes]
        return [
            sorted(set(re.findall(r"\{value\}|lab (?:cut|mtu|kill|start|heal|spoof|restart)", text))) for text in texts
        ]

    assert told(find_lesson(str(path), "zh")) == told(find_lesson(str(path)))


def test_the_words_around_the_texts_are_the_same_in_each_language() -> None:
    english = {key: sorted(re.findall(r"\{\w+\}", text)) for key, text in words("en").items()}
    for language in TRANSLATED:
        assert {key: sorted(re.findall(r"\{\w+\}", text)) for key, text in words(language).items()} == english


def test_an_unknown_lesson_is_answered_with_the_one_that_may_be_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "lesson", "start", "vxlna"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("flannel-udp: there is no lesson 'vxlna': there are 1-way, ")
    assert error.endswith(": did you mean vxlan?\n")


def test_the_list_is_in_the_language_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert main(["lab", "lesson", "list"]) == 0
    assert "双栈" in capsys.readouterr().out
    assert main(["lab", "lesson", "list", "--lang", "en", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[8] == {
        "number": 9,
        "name": "dual-stack",
        "title": "Dual stack",
        "minutes": 10,
        "steps": 3,
    }


def test_a_terminal_that_has_no_chinese_shows_the_rest() -> None:
    argv = [sys.executable, "-m", "flannel_udp", "lab", "lesson", "list", "--lang", "zh"]
    done = subprocess.run(argv, env={**os.environ, "PYTHONIOENCODING": "latin-1"}, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"7  vxlan       VXLAN?MAC?FDB?ARP" in done.stdout


def test_a_lesson_that_another_version_has_begun_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flannel_udp.lab.plan.STATE_DIR", tmp_path)
    plan = Plan("x")
    assert Record.of_plan(plan) is None
    plan.state.mkdir()
    (plan.state / "lesson.json").write_text('{"path": "a.toml", "language": "en", "done": [], "stars": 3}')
    with pytest.raises(FlannelError, match=r"begun by another version .* `flannel-udp lab down --name x`$"):
        Record.of_plan(plan)


GOOD = """\
title = "Mine"
text = "A text."

[topology]
hosts = 2

[[steps]]
name = "one"
task = "Do it."
hints = ["So."]
solve = ["true"]

  [[steps.checks]]
  on = "h1"
  run = "true"
  otherwise = "Not yet."

  [[steps.mistakes]]
  name = "other"
  on = "h2"
  counter = "IcmpInEchos"
  grew = 1
  hint = "No."
  made_by = ["false"]
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A lesson of somebody's own."""
    path = tmp_path / "own.toml"
    path.write_text(GOOD)
    return path


def test_a_lesson_of_somebodys_own_is_read(own: Path) -> None:
    lesson = find_lesson(str(own), "zh")
    assert (lesson.number, lesson.name, lesson.language, lesson.shown) == (None, "own", "en", "own")
    assert lesson.steps[0].requirements[0].check == Check("h1", "run", "true", "", "exit", 0)
    assert lesson.steps[0].mistakes[0].check == Check("h2", "counter", "IcmpInEchos", "", "grew", 1)


@pytest.mark.parametrize(
    ("line", "other", "said"),
    [
        ('title = "Mine"', "", ":1: title: is missing, or empty: it has to be a text"),
        ('text = "A text."', "text = 7", ":2: text: 7 is not a text: put it between quotes"),
        ("hosts = 2", "hots = 2", ":5: topology.hots: unknown key, it is none of name, hosts, "),
        ("hosts = 2", "hosts = 1", ":20: steps[1].mistakes[1].on: the lab lab has no host h2: it has h1"),
        ("hosts = 2", 'name = "x"', ":5: topology.name: a lesson's lab is named by whoever starts it"),
        ('name = "one"', 'name = "One"', ':8: steps[1].name: "One" is no name: use lower-case letters'),
        ('hints = ["So."]', 'hint = ["So."]', ":10: steps[1].hint: unknown key, it is none of name, task, "),
        ('hints = ["So."]', "", ":7: steps[1].hints: is missing, or empty: it has to be a list of texts"),
        ('  on = "h1"', '  on = "host1"', ':14: steps[1].checks[1].on: "host1" is no node such as h1, h1/p1, '),
        ('  run = "true"', "", ":14: steps[1].checks[1].on: nothing beside it says what is asked: give one of run"),
        ('  run = "true"', '  agent = "state"', ':15: steps[1].checks[1].agent: "state" is not one of status, peers'),
        ('  otherwise = "Not yet."', "", ":13: steps[1].checks[1].otherwise: is missing, or empty"),
        ("  grew = 1", '  grew = "1"', ':22: steps[1].mistakes[1].grew: "1" is not a whole number'),
        ("  grew = 1", "  grew = 1\n  at_most = 2", ":23: steps[1].mistakes[1].at_most: grew is there already"),
        ("  grew = 1", "  grew = false", ":22: steps[1].mistakes[1].grew: false is not a whole number"),
        ("  grew = 1", '  matches = "("', ':22: steps[1].mistakes[1].matches: "(" is no regular expression: '),
        ("  grew = 1", "  exit = 1", ":22: steps[1].mistakes[1].exit: only a command has an exit code: `run`"),
        ("hosts = 2", "hosts = ", " is no TOML: Invalid value (at line 5, column 9)"),
        (GOOD, "", ":1: steps: is missing: a lesson has a step at least"),
    ],
)
def test_a_broken_lesson_is_one_line_with_line_and_key(own: Path, line: str, other: str, said: str) -> None:
    own.write_text(GOOD.replace(line, other))
    code, error = started(own)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith(f"flannel-udp: {own}{said}")


def started(path: Path) -> tuple[int, str]:
    """Start a lesson that cannot be; return the exit code and what is said."""
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("sys.stderr.write", said.append)
        return main(["lab", "lesson", "start", str(path)]), "".join(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[steps.ones]\ntask = "x"', ":1: steps.ones: the lesson has no such step, it has one: did you mean one?"),
        ('[steps.one]\nhints = ["a", "b"]', ":2: steps.one.hints: has 2 texts, and the lesson has 1"),
        ('[steps.one.mistakes]\nothers = "x"', ":2: steps.one.mistakes.others: the lesson has no such mistake, it has"),
        ("minutes = 3", ":1: minutes: unknown key, it is none of title, text, steps"),
    ],
)
def test_a_broken_translation_is_too(own: Path, text: str, said: str) -> None:
    own.with_suffix(".zh.toml").write_text(text)
    assert find_lesson(str(own)).title == "Mine"
    with pytest.raises(Exception, match=re.escape(f"{own.with_suffix('.zh.toml')}{said}")):
        find_lesson(str(own), "zh")


def test_what_a_translation_leaves_out_is_english(own: Path) -> None:
    own.with_suffix(".zh.toml").write_text('title = "我的"\n[steps.one]\nhints = ["这样。"]')
    lesson = find_lesson(str(own), "zh")
    assert (lesson.title, lesson.text, lesson.steps[0].hints, lesson.steps[0].task) == (
        "我的",
        "A text.",
        ("这样。",),
        "Do it.",
    )


@pytest.mark.parametrize(
    ("condition", "wanted", "value", "before", "fulfilled"),
    [
        ("is", "a", "a", None, True),
        ("is", 1400, "1400", None, True),
        ("is", True, True, None, True),
        ("is", "nothing", None, None, True),
        ("is", "nothing", "", None, True),
        ("is_not", "a", None, None, True),
        ("matches", "b$", "a b\nc", None, True),
        ("lacks", "lladdr", None, None, True),
        ("lacks", "a", "a", None, False),
        ("at_least", 3, "3", None, True),
        ("at_least", 3, None, None, False),
        ("at_most", 3, "4", None, False),
        ("grew", 3, 5, 2, True),
        ("grew", 3, 4, 2, False),
        ("grew", 3, 3, None, True),
        ("grew", 1, 1, 7, True),  # counted anew
        ("grew", 1, 0, 7, False),
        ("grew", 1, None, 7, False),
        ("changed", True, "a", "b", True),
        ("changed", False, 4, 4, True),
    ],
)
def test_a_condition(condition: str, wanted: Any, value: Any, before: Any, *, fulfilled: bool) -> None:
    check = Check("h1", "run", "x", "", condition, wanted)
    assert holds(check, Seen(value), Seen(before)) is fulfilled


@pytest.mark.parametrize(
    ("runs", "what", "part", "value"),
    [(7, "status", "pid", 7), (7, "status", "ready", None), (7, "peers", "#", None), (None, "status", "pid", None)],
)
def test_an_agent_that_does_not_answer_is_not_taken_for_one_that_does_not_run(
    monkeypatch: pytest.MonkeyPatch, runs: int | None, what: str, part: str, value: Any
) -> None:
    monkeypatch.setattr(Host, "agent_pid", lambda _: runs)
    assert look(Lab(Plan("x")), Check("h1", "agent", what, part, "is", "nothing")).value == value


@pytest.mark.parametrize(
    ("way", "found"),
    [
        ("", [{"a": 1, "b": {"c": "d"}}, {"a": 2}]),
        ("0/b/c", "d"),
        ("a=2/a", 2),
        ("#", 2),
        ("2/a", None),
        ("a=3/a", None),
        ("0/a/b", None),
        ("x", None),
    ],
)
def test_a_part_of_a_document(way: str, found: Any) -> None:
    assert part_of([{"a": 1, "b": {"c": "d"}}, {"a": 2}], way) == found


@pytest.mark.parametrize(
    ("environ", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "de_DE", "LC_ALL": ""}, "en"),
        ({"LC_ALL": "zh_TW"}, "zh"),
    ],
)
def test_the_language_is_that_of_the_environment(environ: dict[str, str], language: str) -> None:
    assert language_of(environ) == language


@pytest.mark.parametrize(
    ("command", "inside"),
    [
        ("flannel-udp lab exec h1 -- sh -c 'a $b | c'", ["h1", "sh", "-c", "a $b | c"]),
        ('flannel-udp lab exec h1/p1 -- echo "a b"', ["h1/p1", "echo", "a b"]),
        ("flannel-udp lab exec h1 -- echo $HOME", None),
        ("flannel-udp lab exec h1 -- echo a | cat", None),
        ("flannel-udp lab exec h1 -- true; true", None),
        ("flannel-udp lab exec h1 -- true\ntrue", None),
        ("flannel-udp lab exec h1 -- echo 'a", None),
        ("flannel-udp lab heal", None),
    ],
)
def test_what_a_shell_has_to_read_is_left_to_one(command: str, inside: list[str] | None) -> None:
    assert inside_of(command) == inside


def test_commands_in_texts_name_a_lab_that_has_another_name() -> None:
    text = "`flannel-udp lab exec h1 -- ip a`, flannel-udp lab lesson check, flannel-udp lab list, flannel-udp peers"
    assert named(text, "lab") == text
    assert named(text, "x") == (
        "`flannel-udp lab exec --name x h1 -- ip a`, flannel-udp lab lesson check --name x, flannel-udp lab list, "
        "flannel-udp peers"
    )


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_texts_fit_40_columns_and_commands_stay_whole(path: Path, language: str) -> None:
    text = find_lesson(str(path), language).text
    lines = laid_out(text, 40).splitlines()
    assert [line for line in lines if line.startswith("    ")] == [
        line.rstrip() for line in text.splitlines() if line.startswith("    ")
    ]
    # Punctuation that may begin no line has two columns more; what has no place to be broken at stays whole.
    too_long = [line for line in lines if cell_len(line) > 42 and not line.startswith("    ")]
    assert [line for line in too_long if len(line.split()) > 1] == []
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_items_of_lists_hang() -> None:
    assert laid_out("a b\n\n1. one two three\n2. two", 10, "  ") == "  a b\n\n  1. one\n     two\n     three\n  2. two"
    assert laid_out("甲乙《丙》", 6) == "甲乙\n《丙》"
    assert laid_out("甲乙丙、丁。", 6) == "甲乙丙、\n丁。"


def test_a_command_whose_words_are_no_text_is_shown_as_well_as_can_be() -> None:
    assert Runner().run(["printf", r"\377 it is\n"]).stdout == "\ufffd it is\n"
