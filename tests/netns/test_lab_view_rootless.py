"""The page of an ordinary user's lab: its server is outside, where a browser reaches it, and what looks is inside."""

from __future__ import annotations

from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.ordinary_user import ordinary_user
from tests.support.patience import PATIENCE_S
from tests.support.view import viewed

pytestmark = NEEDS_NETNS


def test_an_ordinary_user_sees_and_breaks_the_lab_in_a_browser_outside_and_nothing_is_left() -> None:
    name = fresh_name()
    with ordinary_user() as user:
        up = user.run(user.lab("up", "--name", name, "--hosts", "2"))
        assert up.returncode == 0, up.stderr
        with viewed(name, user) as view, view.live() as events:
            looks = (now for kind, now in events if kind == "look")
            # A look gives each agent a second to answer.
            assert next(now for now in looks if all(host["agent"] and host["agent"]["ready"] for host in now["hosts"]))
            assert view.post("change", command="cut", words=["h1"])["lines"] == ["h1: the link is cut"]
            assert next(now for now in looks if now["faults"])["faults"] == {"h1": ["the link h1 is cut"]}
            assert view.post("change", command="heal")["error"] is None
            way = view.post("follow", **{"from": "h1/p1", "to": "h2/p1"})
            assert way["end"] == "it arrived", way
            down = user.run(user.lab("down", "--name", name))
            assert down.returncode == 0, down.stderr
            assert list(events)[-1] == ("end", f"the lab {name} is gone")
            assert view.process.wait(PATIENCE_S) == 0
