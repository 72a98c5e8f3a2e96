"""Lessons 6, 7 and 8, right and wrong ways. They are in modules of three, which run side by side."""

from __future__ import annotations

import pytest

from tests.support.labs import NEEDS_NETNS
from tests.support.rehearsals import rehearsed

pytestmark = NEEDS_NETNS


@pytest.mark.parametrize("lesson", ["6", "7", "8"])
def test_a_lesson_knows_every_mistake_and_its_solution_does_it(lesson: str) -> None:
    rehearsed(lesson)
