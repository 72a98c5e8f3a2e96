"""The alarm on the clock that leases are counted by, with a timer of the kernel's and without one."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

import pytest

from flannel_udp.control import boottime
from flannel_udp.control.boottime import Alarm, now_s
from tests.support.patience import PATIENCE_S
from tests.support.refusals import Refusal, refused

NO_TIMER = Refusal("timerfd_create", errno.EMFILE)


def with_a_timer(body: Callable[[], object]) -> None:
    body()


def without_one(body: Callable[[], object]) -> None:
    refused([NO_TIMER], body)


@pytest.fixture(params=[with_a_timer, without_one])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Runs something, with a timer of the kernel's or where there is none."""
    monkeypatch.setattr(boottime, "LOOK_EVERY_S", 0.05)
    chosen: Callable[[Callable[[], object]], None] = request.param
    return chosen


def test_an_alarm_goes_off_once_and_not_before_its_time(run: Callable[[Callable[[], object]], None]) -> None:
    async def check() -> None:
        woken: list[float] = []
        went_off = asyncio.Event()

        def wake() -> None:
            woken.append(now_s())
            went_off.set()

        with Alarm(wake) as alarm:
            alarm.set(now_s())  # never heard of again
            at_s = now_s() + 0.2
            alarm.set(at_s)
            await asyncio.wait_for(went_off.wait(), PATIENCE_S)
            assert woken[0] >= at_s
            await asyncio.sleep(0.2)
            alarm.set(now_s() + 0.1)
            alarm.set(None)
            await asyncio.sleep(0.3)
            alarm.set(now_s() + 0.1)
        await asyncio.sleep(0.3)
        assert len(woken) == 1

    run(lambda: asyncio.run(check()))


def test_an_alarm_for_a_time_that_is_over_goes_off_at_once(run: Callable[[Callable[[], object]], None]) -> None:
    async def check() -> None:
        went_off = asyncio.Event()
        with Alarm(went_off.set) as alarm:
            alarm.set(now_s() - 5)
            await asyncio.wait_for(went_off.wait(), PATIENCE_S)

    run(lambda: asyncio.run(check()))
