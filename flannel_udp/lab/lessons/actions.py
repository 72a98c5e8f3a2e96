"""What the commands of `flannel-udp lab lesson` do: texts to stdout, in the language that is asked for."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from contextlib import closing
from dataclasses import asdict

from rich.cells import cell_len

from flannel_udp.lab.actions import Given, attached, print_json
from flannel_udp.lab.interruptible import interruptible
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.lessons import course
from flannel_udp.lab.lessons.book import list_lessons
from flannel_udp.lab.lessons.commands import named
from flannel_udp.lab.lessons.language import laid_out, language_of, words
from flannel_udp.lab.lessons.lesson import Progress, StepState
from flannel_udp.lab.lessons.rehearsal import rehearse
from flannel_udp.lab.plan import DEFAULT_NAME
from flannel_udp.lab.progress import progress as telling
from flannel_udp.lab.topology import Backends

_LOGGER = logging.getLogger("flannel_udp.lab")
_INDENT = "  "


def list_all(given: Given) -> int:
    """Show our lessons, a line each."""
    language = _language(given)
    outlines = list_lessons(language)
    if given.get("json"):
        print_json([asdict(outline) for outline in outlines])
        return 0
    widest = max(len(outline.name) for outline in outlines)
    said = words(language)
    for outline in outlines:
        minutes = said["minutes"].format(minutes=outline.minutes)
        _write(f"{outline.number}  {outline.name:<{widest}}  {outline.title} ({minutes})")
    return 0


def start(given: Given, backends: Backends) -> int:
    """Build a lesson's lab, print its text and the first step."""
    name = given.get("name", DEFAULT_NAME)
    with telling(_LOGGER, "lab"), interruptible():
        progress = course.start(given["LESSON"], name, _language(given), backends)
    if given.get("json"):
        print_json(asdict(progress))
        return 0
    said = words(progress.language)
    heading = said["own_lesson" if progress.number is None else "lesson"]
    _head(heading.format(number=progress.number, title=progress.title))
    _write(f"{_laid_out(progress.text)}\n")
    _show_task(progress)
    return 0


def check(given: Given) -> int:
    """Tell of each step whether it is done, and of the open one what it lacks; exit code 1 if that is something."""
    progress = course.check(attached(given), given.get("lang"))
    if given.get("json"):
        print_json(asdict(progress))
    else:
        _show(progress)
    return 0 if progress.done or progress.advanced else 1


def hint(given: Given) -> int:
    """Print the next hint."""
    lab = attached(given)
    found = course.hint(lab, given.get("lang"))
    if given.get("json"):
        print_json(asdict(found))
        return 0
    said = _words_of(lab, given)
    _write(said["hint"].format(name=found.step, number=found.number, of=found.of))
    _write(_laid_out(found.text, _INDENT))
    if found.number == found.of:
        _write(_laid_out(named(said["last_hint"], lab.name)))
    return 0


def solve(given: Given) -> int:
    """Do a step before somebody's eyes."""
    lab, document = attached(given), given.get("json")
    solution = course.solve(lab, given.get("lang"), (lambda _: None) if document else _tell)
    if document:
        print_json(asdict(solution))
    else:
        _write("")
        _show(solution.progress)
    return 0


def rehearse_all(given: Given, backends: Backends) -> int:
    """Go a lesson's wrong and right ways, and tell of each."""
    done = []
    ways = rehearse(given["LESSON"], given.get("name", "rehearsal"), backends)
    with telling(_LOGGER, "lab"), interruptible(), closing(ways):
        for line in ways:
            done.append(line)
            if not given.get("json"):
                _write(line)
                sys.stdout.flush()
    if given.get("json"):
        print_json({"done": done})
    return 0


def _language(given: Given) -> str:
    return given.get("lang") or language_of(os.environ)


def _words_of(lab: Lab, given: Given) -> dict[str, str]:
    progress = course.progress_of(lab, given.get("lang"))
    return dict(words(progress.language if progress else _language(given)))


def _show(progress: Progress) -> None:
    """Show all steps in short, what was found, and what is to do now."""
    said = words(progress.language)
    for state in progress.steps:
        _write(f"{_mark(state)} {state.name}: {said[state.state]}")
    _write("")
    found = next((step for step in progress.steps if step.name == progress.advanced), None)
    if found is not None:
        _write(said["step_done"].format(name=found.name))
        _write(_laid_out(found.learnt or "", _INDENT))
        _write("")
    if (opened := progress.open_step) is not None:
        _show_missing(opened, progress.language)
        _show_task(progress)
    else:
        _write(_laid_out(named(said["all_done"], progress.lab)))


def _show_missing(state: StepState, language: str) -> None:
    said = words(language)
    if state.missing:
        _write(said["not_yet"].format(name=state.name))
        _write(_laid_out("\n".join(f"- {line}" for line in state.missing), _INDENT))
    if state.mistake:
        _write(said["mistake"])
        _write(_laid_out(state.mistake, _INDENT))
    if state.missing:
        _write("")


def _show_task(progress: Progress) -> None:
    opened = progress.open_step
    if opened is None:
        return
    said = words(progress.language)
    number = progress.steps.index(opened) + 1
    _head(said["step"].format(number=number, of=len(progress.steps), name=opened.name))
    _write(f"{_laid_out(opened.task)}\n")
    _write(_laid_out(named(said["look"], progress.lab)))


def _mark(state: StepState) -> str:
    return {"done": "[x]", "open": "[>]", "later": "[ ]"}[state.state]


def _head(text: str) -> None:
    shown = _laid_out(text)
    _write(f"{shown}\n{'=' * max(map(cell_len, shown.splitlines()))}\n")


def _laid_out(text: str, indent: str = "") -> str:
    return laid_out(text, shutil.get_terminal_size((100, 24)).columns, indent)


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _tell(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
