"""Lessons gone through by script, each in a lab of its own: every mistake is known, every step is solved."""

from __future__ import annotations

from flannel_udp.backend.table import LAB_BACKENDS
from flannel_udp.lab.lessons.book import find_lesson
from flannel_udp.lab.lessons.rehearsal import rehearse
from tests.support.labs import fresh_name, namespaces_of


def rehearsed(said: str) -> None:
    """Go all ways of a lesson, and see that nothing was left out, and nothing is left behind."""
    name = fresh_name()
    told = list(rehearse(said, name, LAB_BACKENDS))
    expected = []
    for step in find_lesson(said).steps:
        expected += [f"{step.name}: the mistake {mistake.name} is known" for mistake in step.mistakes]
        expected.append(f"{step.name}: the solution does it")
    assert told == expected
    assert namespaces_of(name) == []
