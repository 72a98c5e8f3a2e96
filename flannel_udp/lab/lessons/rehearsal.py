"""A whole lesson by script, before a class or in the tests: each mistake is made and known, each step is solved."""

from __future__ import annotations

from collections.abc import Generator
from time import monotonic, sleep

from flannel_udp.errors import FlannelError
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.lessons.book import find_lesson
from flannel_udp.lab.lessons.commands import named
from flannel_udp.lab.lessons.course import POLL_S, SETTLE_S, begin, check, hint, run_all, solve
from flannel_udp.lab.lessons.language import ENGLISH
from flannel_udp.lab.lessons.lesson import Mistake, Step
from flannel_udp.lab.topology import Backends


def rehearse(said: str, name: str, backends: Backends) -> Generator[str, None, None]:
    """Build the lesson's lab, go all its wrong and right ways, and take it down; yield a line for each that is as told.

    Raises `FlannelError` at the first that is not.
    """
    lesson = find_lesson(said)
    lab, _ = begin(said, name, ENGLISH, backends)
    try:
        for step in lesson.steps:
            _require_open(lab, step)
            for mistake in step.mistakes:
                _make(lab, step, mistake)
                yield f"{step.name}: the mistake {mistake.name} is known"
            texts = [hint(lab).text for _ in step.hints]
            if texts != [named(text, name) for text in step.hints]:
                raise FlannelError(f"{step.name}: the hints do not come one after the other")
            solve(lab)
            yield f"{step.name}: the solution does it"
    finally:
        lab.down()


def _require_open(lab: Lab, step: Step) -> None:
    """Raise `FlannelError` unless it is to be done, and is not done by nothing."""
    state = check(lab).open_step
    if state is None or state.name != step.name:
        raise FlannelError(f"the step {step.name} is done before anything was done for it")


def _make(lab: Lab, step: Step, mistake: Mistake) -> None:
    """Make a mistake, and see that it is known. Raises `FlannelError`."""
    run_all(lab, mistake.made_by, lambda _: None)
    deadline = monotonic() + SETTLE_S
    while True:
        progress = check(lab)
        if progress.advanced is not None:
            raise FlannelError(f"{step.name}: the mistake {mistake.name} does the step")
        told = progress.open_step.mistake if progress.open_step else None
        if told is not None and told.startswith(_beginning(mistake, lab)):
            break
        if monotonic() >= deadline:
            why = f"what is told: {told or 'nothing'}"
            raise FlannelError(f"{step.name}: the mistake {mistake.name} is not known; {why}")
        sleep(POLL_S)
    run_all(lab, mistake.undone_by, lambda _: None)


def _beginning(mistake: Mistake, lab: Lab) -> str:
    """Return how its hint begins: what was seen may stand in it."""
    return named(mistake.hint, lab.name).partition("{value}")[0]
