"""`lab lesson …`: what its commands take; what they do is in `lab.lessons.actions`."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load the lab)

from __future__ import annotations

from collections.abc import Mapping

from flannel_udp.backend.table import LAB_BACKENDS
from flannel_udp.cli.arguments import Values
from flannel_udp.cli.command import Argument, Command
from flannel_udp.cli.flags import JSON_FLAG, Flag, choice_flag
from flannel_udp.cli.lab_commands import LAB_NAME_FLAG

_LANGUAGE_FLAG = choice_flag(
    "lang", "in which language", ("en", "zh"), default="that of the start, or of LC_ALL, LANG", in_environment=False
)
_FLAGS = {"lab": (LAB_NAME_FLAG,), "output": (_LANGUAGE_FLAG, JSON_FLAG)}
_LESSON = Argument("LESSON", "its number or name, or the path of a file of your own")


def _list(given: Values) -> int:
    from flannel_udp.lab.lessons import actions

    return actions.list_all(given)


def _start(given: Values) -> int:
    from flannel_udp.lab.lessons import actions

    return actions.start(given, LAB_BACKENDS)


def _check(given: Values) -> int:
    from flannel_udp.lab.lessons import actions

    return actions.check(given)


def _hint(given: Values) -> int:
    from flannel_udp.lab.lessons import actions

    return actions.hint(given)


def _solve(given: Values) -> int:
    from flannel_udp.lab.lessons import actions

    return actions.solve(given)


def _rehearse(given: Values) -> int:
    from flannel_udp.lab.lessons import actions

    return actions.rehearse_all(given, LAB_BACKENDS)


LAB_LESSON_COMMANDS: Mapping[str, Command] = {
    "lab lesson list": Command(
        "show the lessons",
        "example: flannel-udp lab lesson list --lang zh",
        _list,
        {"output": (_LANGUAGE_FLAG, JSON_FLAG)},
    ),
    "lab lesson start": Command(
        "build a lesson's lab, print its text and the first step",
        "The lab is one like every other: all commands of `lab` work in it, and `lab down` ends the lesson.\n"
        "A file of your own runs its commands as you: look into it before (docs/teaching.md).\n\n"
        "example: flannel-udp lab lesson start 3\n"
        "         flannel-udp lab lesson start my-lesson.toml",
        _start,
        _FLAGS,
        (_LESSON,),
    ),
    "lab lesson check": Command(
        "look whether the step is done, tell why not yet, and go on with the next one",
        "exit codes: 0 the step, or the lesson, is done, 1 not yet.\n\nexample: flannel-udp lab lesson check",
        _check,
        _FLAGS,
    ),
    "lab lesson hint": Command(
        "give a hint, each time one that says more",
        "example: flannel-udp lab lesson hint",
        _hint,
        _FLAGS,
    ),
    "lab lesson solve": Command(
        "do the step, and show the commands",
        "example: flannel-udp lab lesson solve",
        _solve,
        _FLAGS,
    ),
    "lab lesson rehearse": Command(
        "go all ways of a lesson, the wrong ones too, in a lab of its own, which is removed then",
        "Before a class: does all of it work on this machine?\n\nexample: flannel-udp lab lesson rehearse 3",
        _rehearse,
        {
            "lab": (Flag("name", "which lab", "NAME", default="rehearsal", in_environment=False),),
            "output": (JSON_FLAG,),
        },
        (_LESSON,),
    ),
}
