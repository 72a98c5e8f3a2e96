"""For all tests: `bench` can be imported, no module leaves anything behind, and no example has to be quick."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

# At the end of the path, where the checkout cannot hide the installed flannel_udp.
sys.path.append(str(Path(__file__).parents[1]))

from tests.support import remains
from tests.support.effort import share_of


def pytest_configure(config: pytest.Config) -> None:
    """Have every module checked."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So it is in what a shell runs in the background, and what tests start and interrupt would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(remains.Check())
    with suppress(ImportError):  # not every test environment has it
        from hypothesis import HealthCheck, settings

        # Hypothesis fails examples that take long to run or to make: on a busy machine any do.
        settings.register_profile(
            "flannel-udp",
            max_examples=share_of(100),
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        )
        settings.load_profile("flannel-udp")
