"""The page of an ordinary user's lab: its server is outside, where a browser reaches it, and what looks is inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.ordinary_user import ordinary_user
from tests.support.patience import PATIENCE_S
from tests.support.view import viewed

pytestmark = NEEDS_NETNS


EVENTS_MAX = 100
"""A look comes about each second. An agent that has not answered within one is missing there on a busy machine."""


def first_look(events: Iterator[tuple[str, Any]], shows: Callable[[Any], bool]) -> Any:
    """Wait for a look that shows it."""
    for kind, now in islice(events, EVENTS_MAX):
        if kind == "look" and shows(now):
            return now
    raise AssertionError("no such look")


def all_are_ready(now: Any) -> bool:
    return all(host["agent"] is not None and host["agent"]["ready"] for host in now["hosts"])


def test_an_ordinary_user_sees_and_breaks_the_lab_in_a_browser_outside_and_nothing_is_left() -> None:
    name = fresh_name()
    with ordinary_user() as user:
        up = user.run(user.lab("up", "--name", name, "--hosts", "2"))
        assert up.returncode == 0, up.stderr
        with viewed(name, user) as view, view.live() as events:
            assert len(first_look(events, all_are_ready)["hosts"]) == 2
            assert view.post("change", command="cut", words=["h1"])["lines"] == ["h1: the link is cut"]
            assert first_look(events, lambda now: bool(now["faults"]))["faults"] == {"h1": ["the link h1 is cut"]}
            assert view.post("change", command="heal")["error"] is None
            way = view.post("follow", **{"from": "h1/p1", "to": "h2/p1"})
            assert way["end"] == "it arrived", way
            down = user.run(user.lab("down", "--name", name))
            assert down.returncode == 0, down.stderr
            assert list(events)[-1] == ("end", f"the lab {name} is gone")
            assert view.process.wait(PATIENCE_S) == 0
