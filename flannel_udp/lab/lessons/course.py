"""Lessons as their commands, the page and the tests use them: list, start, check, hint, solve.

    progress = start("mtu", "lab", "en", LAB_BACKENDS)      # builds the lesson's lab
    progress = check(Lab.attach("lab"))                     # is the open step done? what does it lack?
    hint(lab).text; solve(lab).commands

Everything that comes back is frozen, and JSON by `dataclasses.asdict`. All raise `FlannelError`, one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from time import monotonic, sleep
from typing import Any

from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.lessons.book import find_lesson, list_lessons
from flannel_udp.lab.lessons.commands import named, run_command
from flannel_udp.lab.lessons.lesson import Check, Hint, Lesson, Mistake, Progress, Ran, Solution, Step, StepState
from flannel_udp.lab.lessons.looking import Seen, holds, look
from flannel_udp.lab.lessons.reader import plan_of_lesson
from flannel_udp.lab.lessons.record import Record, while_up
from flannel_udp.lab.plan import DEFAULT_NAME, Plan
from flannel_udp.lab.topology import Backends

__all__ = ["check", "hint", "list_lessons", "progress_of", "solve", "start"]

SETTLE_S = 60.0
"""How long a step may take to be done after its solution: a second, but for what agents find out by waiting."""
POLL_S = 0.3
"""How often that is looked at: a look may ping."""


def start(said: str, name: str, language: str, backends: Backends) -> Progress:
    """Build the lab of a lesson, which is named as `find_lesson` takes it, and begin its first step.

    Nothing is left of it where that fails, or is interrupted.
    """
    return begin(said, name, language, backends)[1]


def begin(said: str, name: str, language: str, backends: Backends) -> tuple[Lab, Progress]:
    """Do that, and return the lab, too, for who takes it down again: its agents are this process's children."""
    lesson = find_lesson(said, language)
    plan = plan_of_lesson(lesson.path, backends, name)
    netns.require()
    _refuse_second(name, language)
    lab = Lab(plan)
    lab.up()
    try:
        with while_up(lab):
            record = Record(str(lesson.path), language)
            replace(record, before=_look_before(lab, lesson.steps[0])).save(lab)
    except BaseException:
        lab.down()
        raise
    return lab, _progress(lab, lesson, record)


def progress_of(lab: Lab, language: str | None = None) -> Progress | None:
    """Return how far a lab's lesson is, as far as it was checked; ``None`` for a lab without one. Looks at nothing."""
    record = Record.load(lab)
    return None if record is None else _progress(lab, _lesson(record, language), record)


def check(lab: Lab, language: str | None = None) -> Progress:
    """Look whether the open step is done, and what it lacks; if it is done, the next one begins.

    The language is that of the start by default.
    """
    with while_up(lab):
        record = _record(lab)
        lesson = _lesson(record, language)
        step = _open_step(lesson, record)
        if step is None:
            return _progress(lab, lesson, record)
        missing = _missing(lab, step, record)
        if missing:
            mistake = _mistake(lab, step, record)
            if mistake is not None and mistake.check.compares:
                # What was done by mistake shall not count for the step.
                replace(record, before=_look_before(lab, step)).save(lab)
            return _progress(lab, lesson, record, missing, mistake)
        done = (*record.done, step.name)
        record = replace(record, done=done, before={})
        following = _open_step(lesson, record)
        if following is not None:
            record = replace(record, before=_look_before(lab, following))
        record.save(lab)
        return replace(_progress(lab, lesson, record), advanced=step.name)


def hint(lab: Lab, language: str | None = None) -> Hint:
    """Return the next hint for the open step, the last one again when there is no more."""
    with while_up(lab):
        record = _record(lab)
        step = _step_to_do(lab, _lesson(record, language), record)
        number = min(record.hints.get(step.name, 0) + 1, len(step.hints))
        replace(record, hints={**record.hints, step.name: number}).save(lab)
        return Hint(step.name, number, len(step.hints), named(step.hints[number - 1], lab.name))


def solve(lab: Lab, language: str | None = None, tell: Callable[[str], None] = lambda _: None) -> Solution:
    """Do the open step, as its file says how; each command, and what it prints, is told as it comes.

    Raises `FlannelError` where it is not done by that.
    """
    with while_up(lab):
        record = _record(lab)
        step = _step_to_do(lab, _lesson(record, language), record)
        ran = run_all(lab, step.solve, tell)
        progress = check_until(lab, step.name, language)
    if progress.advanced != step.name:
        state = progress.open_step
        why = "; ".join(state.missing) if state else ""
        raise FlannelError(f"the step {step.name} is not done by its solution: {why}")
    return Solution(step.name, ran, progress)


def run_all(lab: Lab, commands: tuple[str, ...], tell: Callable[[str], None]) -> tuple[Ran, ...]:
    """Run commands one after the other."""
    ran = []
    for command in commands:
        tell(f"$ {named(command, lab.name)}\n")
        ran.append(run_command(lab, command))
        tell(ran[-1].output)
    return tuple(ran)


def check_until(lab: Lab, step: str, language: str | None = None) -> Progress:
    """Check until this step, the open one, is done, or it has had the time that it may take."""
    deadline = monotonic() + SETTLE_S
    while (progress := check(lab, language)).advanced != step and monotonic() < deadline:
        sleep(POLL_S)
    return progress


def _refuse_second(name: str, language: str) -> None:
    plan = Plan.load(name)
    record = None if plan is None else Record.of_plan(plan)
    if record is None:
        return
    lesson = _lesson(record, language)
    step = _open_step(lesson, record)
    where = "and is done" if step is None else f"and is at the step {step.name}"
    option = "" if name == DEFAULT_NAME else f" --name {name}"
    raise FlannelError(
        f"the lab {name} has the lesson {lesson.shown} already, {where}: "
        f"go on with `flannel-udp lab lesson check{option}`, or end it by `flannel-udp lab down{option}`"
    )


def _record(lab: Lab) -> Record:
    record = Record.load(lab)
    if record is None:
        raise FlannelError(f"the lab {lab.name} has no lesson: `flannel-udp lab lesson start` makes a lab that has one")
    return record


def _lesson(record: Record, language: str | None) -> Lesson:
    return find_lesson(record.path, language or record.language)


def _open_step(lesson: Lesson, record: Record) -> Step | None:
    return next((step for step in lesson.steps if step.name not in record.done), None)


def _step_to_do(lab: Lab, lesson: Lesson, record: Record) -> Step:
    step = _open_step(lesson, record)
    if step is None:
        raise FlannelError(f"the lesson {lesson.shown} of the lab {lab.name} is done")
    return step


def _checks(step: Step) -> dict[str, Check]:
    """Return the checks of a step by the place where they stand."""
    return {f"checks/{index}": each.check for index, each in enumerate(step.requirements)} | {
        f"mistakes/{each.name}": each.check for each in step.mistakes
    }


def _look_before(lab: Lab, step: Step) -> Mapping[str, Any]:
    """Return what the checks of a step see which will have to compare."""
    return {place: look(lab, each).value for place, each in _checks(step).items() if each.compares}


def _fulfilled(lab: Lab, place: str, each: Check, record: Record) -> tuple[bool, Seen]:
    seen = look(lab, each)
    return holds(each, seen, Seen(record.before.get(place))), seen


def _missing(lab: Lab, step: Step, record: Record) -> tuple[str, ...]:
    found = []
    for index, each in enumerate(step.requirements):
        fulfilled, seen = _fulfilled(lab, f"checks/{index}", each.check, record)
        if not fulfilled:
            found.append(named(each.otherwise.replace("{value}", seen.shown), lab.name))
    return tuple(found)


def _mistake(lab: Lab, step: Step, record: Record) -> Mistake | None:
    """Return the first mistake that was made, with what was seen in its hint."""
    for each in step.mistakes:
        made, seen = _fulfilled(lab, f"mistakes/{each.name}", each.check, record)
        if made:
            return replace(each, hint=each.hint.replace("{value}", seen.shown))
    return None


def _progress(
    lab: Lab, lesson: Lesson, record: Record, missing: tuple[str, ...] = (), mistake: Mistake | None = None
) -> Progress:
    opened = _open_step(lesson, record)
    told = None if mistake is None else named(mistake.hint, lab.name)
    states = []
    for step in lesson.steps:
        state = StepState(step.name, named(step.task, lab.name), "later")
        if step is opened:
            state = replace(state, state="open", missing=missing, mistake=told)
        elif step.name in record.done:
            state = replace(state, state="done", learnt=named(step.learnt, lab.name) or None)
        states.append(state)
    return Progress(
        lab=lab.name,
        lesson=lesson.name,
        number=lesson.number,
        title=lesson.title,
        text=named(lesson.text, lab.name),
        language=lesson.language,
        steps=tuple(states),
        done=opened is None,
    )
