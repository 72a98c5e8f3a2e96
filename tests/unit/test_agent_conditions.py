"""What is degraded is said when it comes and when it goes, whoever else speaks meanwhile."""

from __future__ import annotations

import logging

import pytest

from flannel_udp.agent.conditions import Conditions
from flannel_udp.model import Degradation

FORWARDING = Degradation("host", "flannel0 does not forward")
UNHEARD = Degradation("peers", "nobody answers at 192.0.2.2")


def test_what_comes_and_goes_is_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    conditions = Conditions()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            conditions.note("host", [FORWARDING])
        conditions.note("peers", [UNHEARD, UNHEARD])
        for _ in range(3):
            conditions.note("host", [])
    assert conditions.degradations == (UNHEARD,)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "degraded: flannel0 does not forward"),
        ("WARNING", "degraded: nobody answers at 192.0.2.2"),
        ("INFO", "no longer degraded: flannel0 does not forward"),
    ]
