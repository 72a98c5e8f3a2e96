"""What is said of an outage of the registry: its present reason, each reason once, and since when it lasts."""

from __future__ import annotations

import logging
import time

import pytest

from flannel_udp.agent.registry_away import RegistryAway
from flannel_udp.errors import RegistryError
from flannel_udp.registry import outage
from flannel_udp.registry.outage import Outage

logger = logging.getLogger(__name__)


class Following:
    """A watch without a store."""

    def __init__(self) -> None:
        self.told: list[str | None] = []
        self.outage = Outage(logger, self.tell)

    def tell(self, trouble: RegistryError | None) -> None:
        self.told.append(None if trouble is None else str(trouble))

    async def fails(self, *reasons: str) -> None:
        for reason in reasons:
            await self.outage.wait(RegistryError(reason))


@pytest.fixture
def following(monkeypatch: pytest.MonkeyPatch) -> Following:
    monkeypatch.setattr(outage, "FIRST_DELAY_S", 0.0)
    monkeypatch.setattr(outage, "LAST_DELAY_S", 0.0)
    return Following()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line.removeprefix("watching the subnets: ").partition(";")[0] for line in caplog.messages]


async def test_what_an_outage_goes_on_with_is_told_and_said(
    following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await following.fails("Socket closed", "Socket closed", "database space exceeded", "database space exceeded")
    assert following.told == ["Socket closed", "database space exceeded"]
    assert lines(caplog) == following.told
    following.outage.over()
    assert following.told[2:] == [None]
    await following.fails("Socket closed")
    assert following.told[3:] == ["Socket closed"]
    assert lines(caplog)[3:] == ["Socket closed"]


async def test_reasons_in_turns_are_told_each_time_and_said_once(
    following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    await following.fails(*("away", "full") * 50)
    assert following.told == ["away", "full"] * 50
    assert lines(caplog) == ["away", "full"]


async def test_reasons_that_are_never_the_same_are_some_lines(
    following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    await following.fails(*(f"went back to {n}" for n in range(1000)))
    assert len(following.told) == 1000
    assert lines(caplog) == following.told[: outage.REASONS_MAX]


def test_status_says_the_present_reason_and_since_when_none_could_be_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    away = RegistryAway()
    now_s = time.time()

    def text(reason: str | None, at_s: float) -> str:
        monkeypatch.setattr(time, "time", lambda: now_s + at_s)
        found = away.degradations(None if reason is None else RegistryError(reason), None)
        return "".join(each.text for each in found)

    first = text("Socket closed", 0)
    assert text("full", 3600) == first.replace("Socket closed", "full")
    assert text(None, 3700) == ""
    assert first.partition(" since ")[2][:19] != text("Socket closed", 3800).partition(" since ")[2][:19]
