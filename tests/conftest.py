"""For all tests: `bench` can be imported, and no module leaves anything behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# At the end of the path, where the checkout cannot hide the installed flannel_udp.
sys.path.append(str(Path(__file__).parents[1]))

from tests.support import remains


def pytest_configure(config: pytest.Config) -> None:
    """Have every module checked."""
    config.pluginmanager.register(remains.Check())
