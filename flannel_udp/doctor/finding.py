"""What came of one question."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, TypedDict


class Verdict(Enum):
    """How a question was answered; the value is the word that people see."""

    OK = "ok"
    NOTE = "note"
    """Nothing is wrong, but something may become so."""
    SKIPPED = "skip"
    """It was not asked: what is asked about is not here, or not known."""
    FAULT = "FAULT"


class Row(TypedDict):
    """A finding as JSON: ``ok`` is false for a fault only; ``mend`` is a command, or what to do, often empty."""

    question: str
    ok: bool
    what: str
    mend: str


class Finding(NamedTuple):
    """The question's name, and one line about what is so, why, and the command that mends it."""

    question: str
    verdict: Verdict
    what: str
    mend: str = ""

    def row(self) -> Row:
        """Return it for programs."""
        return {
            "question": self.question,
            "ok": self.verdict is not Verdict.FAULT,
            "what": self.what,
            "mend": self.mend,
        }


def ok(question: str, what: str) -> Finding:
    """All is well."""
    return Finding(question, Verdict.OK, what)


def note(question: str, what: str, mend: str = "") -> Finding:
    """Nothing is wrong yet."""
    return Finding(question, Verdict.NOTE, what, mend)


def skipped(question: str, why: str) -> Finding:
    """It was not asked."""
    return Finding(question, Verdict.SKIPPED, f"not asked: {why}")


def fault(question: str, what: str, mend: str = "") -> Finding:
    """Something is wrong."""
    return Finding(question, Verdict.FAULT, what, mend)


def fault_of(question: str, text: str) -> Finding:
    """Return the fault that a sentence of the agent's names, whose last clause says what to do."""
    what, _, mend = text.rpartition(": ")
    return fault(question, what or mend, mend if what else "")
