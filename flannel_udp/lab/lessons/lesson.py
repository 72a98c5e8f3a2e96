"""What a lesson is, and how far somebody is in it: frozen values, which `dataclasses.asdict` makes JSON of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Wanted = str | int | bool
"""What a check wants to see."""


@dataclass(frozen=True, slots=True)
class Check:
    """One look at a node: what is asked there, which part of the answer counts, what that has to be."""

    on: str
    """The node: ``h1``, ``h1/p1``, ``r1``, ``net``."""
    kind: str
    """How it is asked: ``run`` a command of the shell, a ``counter`` of the kernel's (nstat(8)), or the ``agent``."""
    what: str
    """The command, the counter's name, or what of the agent: ``status``, ``peers``."""
    json: str
    """The way to a part of an answer in JSON, see `looking.part_of`; empty: all of it."""
    condition: str
    """A key of `looking.CONDITIONS`."""
    wanted: Wanted

    @property
    def compares(self) -> bool:
        """Whether it has to know what there was when the step began."""
        return self.condition in ("grew", "changed")


@dataclass(frozen=True, slots=True)
class Requirement:
    """A check that a step is done by, and what is said while it is not fulfilled; {value} in it is what was seen."""

    check: Check
    otherwise: str


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something that students typically do instead, the check that knows it, and what they are told then."""

    name: str
    check: Check
    hint: str
    made_by: tuple[str, ...]
    """Commands that make it, for a rehearsal."""
    undone_by: tuple[str, ...]
    """Commands after which the step can be done."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do."""

    name: str
    task: str
    requirements: tuple[Requirement, ...]
    hints: tuple[str, ...]
    """Each says more than the one before."""
    solve: tuple[str, ...]
    """Commands that do it, as somebody would type them."""
    learnt: str
    """What is to be said once it is done."""
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True, slots=True)
class Lesson:
    """A lesson as its file has it, in one language."""

    path: Path
    number: int | None
    """Of a lesson of ours: 1 to 9."""
    name: str
    title: str
    minutes: int
    text: str
    steps: tuple[Step, ...]
    language: str
    """The one that it is in, which need not be the one that was asked for."""

    @property
    def shown(self) -> str:
        """How people call it: ``3 mtu``."""
        return self.name if self.number is None else f"{self.number} {self.name}"


@dataclass(frozen=True, slots=True)
class Outline:
    """A lesson in a list."""

    number: int
    name: str
    title: str
    minutes: int
    steps: int


State = Literal["done", "open", "later"]


@dataclass(frozen=True, slots=True)
class StepState:
    """How far a step is."""

    name: str
    task: str
    state: State
    missing: tuple[str, ...] = ()
    """Of an open step that was looked at: what it lacks, a sentence each."""
    mistake: str | None = None
    """Of an open step: what seems to have been done instead, and what to do about it."""
    learnt: str | None = None
    """Of a step that is done."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a lab's lesson is."""

    lab: str
    lesson: str
    number: int | None
    title: str
    text: str
    language: str
    steps: tuple[StepState, ...]
    done: bool
    """Whether all steps are."""
    advanced: str | None = None
    """The step that this check found done."""

    @property
    def open_step(self) -> StepState | None:
        """The step that is to be done now; ``None`` if all are done."""
        return next((step for step in self.steps if step.state == "open"), None)


@dataclass(frozen=True, slots=True)
class Hint:
    """A hint for the open step, the `number`-th of `of`."""

    step: str
    number: int
    of: int
    text: str


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that was run, with all that it printed and its exit code."""

    command: str
    output: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class Solution:
    """A step that was done for somebody."""

    step: str
    commands: tuple[Ran, ...]
    progress: Progress
