"""For all tests: `bench` can be imported, and no module leaves anything behind."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import pytest

# At the end of the path, where the checkout cannot hide the installed flannel_udp.
sys.path.append(str(Path(__file__).parents[1]))

from tests.support import remains

_before: set[str] = set()
"""What was there before the present module, and what belongs to the whole session."""


def pytest_sessionstart() -> None:
    """Let libuv open what it opens once a process: a pipe for signals."""
    with suppress(ImportError):  # not every environment has it
        import uvloop

        uvloop.new_event_loop().close()
    _before.update(remains.present())


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
    """What a fixture of the session opens may outlive the module that asks for it first."""
    if fixturedef.scope != "session":
        return (yield)
    before = remains.present()
    made = yield
    _before.update(remains.present() - before)
    return made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """Fail a module that leaves anything behind, after its last test."""
    yield
    if nextitem is None or nextitem.path != item.path:
        assert isinstance(item, pytest.Function)
        item.funcargs.clear()  # pytest lets go of them only later
        left = remains.left_since(_before)
        _before.update(left)  # each once
        if left:
            pytest.fail("\n".join([f"{item.path.name} left behind:", *left]), pytrace=False)
