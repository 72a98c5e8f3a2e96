"""How far somebody is in a lab's lesson: a file in the lab's folder, which goes with the lab."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from flannel_udp.errors import FlannelError
from flannel_udp.files.atomic import replace_file
from flannel_udp.lab.lab import Lab, no_lab
from flannel_udp.lab.plan import Plan

_FILE = "lesson.json"


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept."""

    path: str
    """Of the lesson's file."""
    language: str
    done: tuple[str, ...] = ()
    """The steps that were found done, by name."""
    hints: Mapping[str, int] = field(default_factory=dict)
    """Step → how many hints were given for it."""
    before: Mapping[str, Any] = field(default_factory=dict)
    """What was seen when the open step began, by the place of the check that will compare."""

    def save(self, lab: Lab) -> None:
        """Keep it."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"
        replace_file(lab.plan.state / _FILE, text.encode())

    @classmethod
    def load(cls, lab: Lab) -> Self | None:
        """Read it; ``None`` if the lab has no lesson."""
        return cls.of_plan(lab.plan)

    @classmethod
    def of_plan(cls, plan: Plan) -> Self | None:
        """Read it of a lab of which only the plan is known. Raises `FlannelError` for what another version has kept."""
        try:
            kept = json.loads((plan.state / _FILE).read_text(encoding="utf-8"))
            return cls(**{**kept, "done": tuple(kept["done"])})
        except FileNotFoundError:
            return None
        except (KeyError, TypeError):
            raise FlannelError(
                f"the lesson of the lab {plan.name} was begun by another version of flannel-udp: "
                f"end it with `flannel-udp lab down --name {plan.name}`"
            ) from None


@contextmanager
def while_up(lab: Lab) -> Iterator[None]:
    """Let whatever fails inside because somebody takes the lab down meanwhile be that one line."""
    try:
        yield
    except (FlannelError, OSError):
        if lab.plan.state.exists():
            raise
        raise no_lab(lab.name) from None
    if not lab.plan.state.exists():  # looks have found nothing any more
        raise no_lab(lab.name)
