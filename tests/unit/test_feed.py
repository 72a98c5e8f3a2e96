"""What is told to who watches an agent: by comparing two moments, and of peers as they come."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from ipaddress import IPv4Address, IPv4Network
from typing import Any, cast

import pytest

from flannel_udp.admin.shapes import Event, Status
from flannel_udp.admin.show_event import event_line
from flannel_udp.agent.feed import PEERS_MAX, VIEWERS_MAX, WAITING_MAX, Feed, changes, counts
from flannel_udp.errors import FlannelError
from flannel_udp.model import Delta, Peer
from tests.support.status import DUAL, EVENT, RUNNING, WAITING

LEASE = {"key": "10.1.15.0-24", "expires_in_s": 86_399.5, "reserved": False}
OTHER = {"key": "10.1.17.0-24", "expires_in_s": 86_399.5, "reserved": False}


def peers(count: int) -> tuple[Peer, ...]:
    return tuple(Peer(IPv4Network((n << 8, 24)), IPv4Address(n)) for n in range(1 << 16, (1 << 16) + count))


def told(events: list[Event]) -> list[dict[str, Any]]:
    """Return the events without their time."""
    return [{name: value for name, value in event.items() if name != "time"} for event in events]


@pytest.mark.parametrize(
    ("before", "now", "events"),
    [
        ({}, {}, []),
        (
            {"ready": False, "state": "starting"},
            {},
            [{"event": "state", "ready": True, "state": "running"}],
        ),
        (
            {"problems": ["a", "b"]},
            {"problems": ["b", "c"]},
            [{"event": "problem", "what": "came", "text": "c"}, {"event": "problem", "what": "went", "text": "a"}],
        ),
        (
            {"lease": None},
            {},
            [{"event": "lease", "what": "acquired", "key": "10.1.15.0-24", "expires_in_s": 86_399.5}],
        ),
        ({}, {"lease": None}, [{"event": "lease", "what": "lost", "key": "10.1.15.0-24"}]),
        (
            {},
            {"lease": OTHER},
            [
                {"event": "lease", "what": "lost", "key": "10.1.15.0-24"},
                {"event": "lease", "what": "acquired", "key": "10.1.17.0-24", "expires_in_s": 86_399.5},
            ],
        ),
        (
            {"lease": {**LEASE, "expires_in_s": 3_000.0}},
            {},
            [{"event": "lease", "what": "renewed", "key": "10.1.15.0-24", "expires_in_s": 86_399.5}],
        ),
        ({}, {"lease": {**LEASE, "expires_in_s": 86_400.5}}, []),  # a second more is a clock's whim
        (
            {},
            {"lease": {**LEASE, "expires_in_s": None, "reserved": True}},
            [{"event": "lease", "what": "reserved", "key": "10.1.15.0-24", "expires_in_s": None}],
        ),
        (
            {},
            {"last_errors": {"watch": {"text": "away", "ago_s": 0.1, "over": False}}},
            [{"event": "error", "part": "watch", "text": "away"}],
        ),
        (
            {"last_errors": {"watch": {"text": "away", "ago_s": 0.1, "over": False}}},
            {"last_errors": {"watch": {"text": "away", "ago_s": 9.1, "over": True}}},
            [{"event": "works", "part": "watch"}],
        ),
        (
            {"last_errors": {"watch": {"text": "away", "ago_s": 0.1, "over": True}}},
            {"last_errors": {"watch": {"text": "away", "ago_s": 0.1, "over": False}}},
            [{"event": "error", "part": "watch", "text": "away"}],
        ),
    ],
)
def test_what_is_otherwise_is_told(before: dict[str, Any], now: dict[str, Any], events: list[dict[str, Any]]) -> None:
    was, is_ = cast(Status, {**RUNNING, **before}), cast(Status, {**RUNNING, **now})
    assert told(list(changes(was, is_))) == events


def test_repairs_and_drops_are_summed_up() -> None:
    counters = {**cast(dict[str, Any], RUNNING["counters"])}
    counters["out"] = {**counters["out"], "drops": {"no_route": 2_003, "too_short": 0}}
    counters["in"] = {**counters["in"], "drops": {"malformed": 1}}
    repairs = {**cast(dict[str, int], RUNNING["host_repairs"]), "route": 3}
    now = {**RUNNING, "counters": counters, "host_repairs": repairs, "kernel_drops": {"socket": 7, "tunnel_out": 0}}
    assert list(counts(RUNNING, RUNNING)) == []
    assert told(list(counts(RUNNING, cast(Status, now)))) == [
        {"event": "repair", "what": "route", "count": 1},
        {
            "event": "drops",
            "direction": "out",
            "reason": "no_route",
            "count": 2_000,
            "text": "10.1.15.2 > 10.1.99.1, ICMP, 84 bytes",
        },
        {"event": "drops", "direction": "in", "reason": "malformed", "count": 1},
        {"event": "drops", "direction": "kernel", "reason": "socket", "count": 2},
    ]


def test_an_agent_that_has_just_got_a_network_has_dropped_from_there_on() -> None:
    assert [event["event"] for event in counts(WAITING, RUNNING)] == ["repair", "repair", "drops", "drops"]
    assert list(counts(RUNNING, WAITING)) == []


async def test_every_viewer_is_told_first_who_tells_and_then_of_every_peer() -> None:
    feed = Feed()
    feed.tell_peers(Delta(added=peers(1)))  # nobody watches
    async with aclosing(feed.watch(lambda: DUAL)) as one, aclosing(feed.watch(lambda: DUAL)) as two:
        (first,), (second,) = await anext(one), await anext(two)
        for told_first in (first, second):
            assert told([told_first]) == [
                {
                    "event": "agent",
                    "version": "0.1.0",
                    "pid": 4711,
                    "ready": True,
                    "state": "running",
                    "subnet": "10.1.15.0/24 and fd00:1:0:15::/64",
                }
            ]
        a, b, c = peers(3)
        feed.tell_peers(Delta((a,), (b,), (c,)))
        feed.tell_peers(Delta(added=peers(PEERS_MAX + 1)))
        for viewer in (one, two):
            events = told(await anext(viewer))
            assert [(event["what"], event.get("subnet")) for event in events] == [
                ("added", str(a.subnet)),
                ("changed", str(b.subnet)),
                ("removed", str(c.subnet)),
                ("added", None),
            ]
            assert events[-1] == {"event": "peers", "what": "added", "count": PEERS_MAX + 1}


async def test_who_does_not_read_loses_events_and_is_told_how_many_and_nobody_else_does() -> None:
    feed = Feed()
    async with aclosing(feed.watch(lambda: RUNNING)) as slow, aclosing(feed.watch(lambda: RUNNING)) as quick:
        await anext(slow)
        await anext(quick)
        n_told = 0
        for _ in range(30):
            feed.tell_peers(Delta(added=peers(PEERS_MAX)))
            n_told += len(await anext(quick)) if n_told < WAITING_MAX else 0
        events = await anext(slow)
        assert len(events) == WAITING_MAX + 1
        assert told(events[-1:]) == [{"event": "lost", "count": 30 * PEERS_MAX - WAITING_MAX}]
        assert n_told == WAITING_MAX
        feed.tell_peers(Delta(added=peers(1)))
        assert [event["event"] for event in await anext(slow)] == ["peer"]  # from here on all is told again


async def test_what_changes_is_told_as_soon_as_somebody_wakes_the_feed() -> None:
    feed, status = Feed(), [WAITING]
    async with aclosing(feed.watch(lambda: status[0])) as viewer:
        await anext(viewer)
        status[0] = RUNNING
        feed.wake()
        async with asyncio.timeout(30):
            events = await anext(viewer)
            assert [event["event"] for event in events] == ["lease", "state"]
            while "drops" not in [event["event"] for event in events]:
                events = await anext(viewer)


async def test_what_changes_for_a_moment_only_is_told_also_while_somebody_does_not_read() -> None:
    feed, status = Feed(), [RUNNING]
    async with aclosing(feed.watch(lambda: status[0])) as viewer:
        await anext(viewer)
        for moment in (WAITING, RUNNING):
            status[0] = moment
            feed.wake()
            await asyncio.sleep(0)
        events = await anext(viewer)
        told_of = [(event["event"], event.get("what"), event.get("ready")) for event in events]
        lost, back = ("lease", "lost", None), ("lease", "acquired", None)
        assert told_of == [lost, ("state", None, False), back, ("state", None, True)]


async def test_a_feed_that_nobody_watches_asks_nothing() -> None:
    feed, asked = Feed(), []

    def ask() -> Status:
        asked.append(1)
        return RUNNING

    async with aclosing(feed.watch(ask)) as viewer:
        await anext(viewer)
    n_asked = len(asked)
    feed.wake()
    await asyncio.sleep(0)
    assert feed._timer is None
    assert len(asked) == n_asked


async def test_too_many_viewers_are_refused_and_those_that_go_make_room() -> None:
    feed = Feed()
    viewers = [feed.watch(lambda: RUNNING) for _ in range(VIEWERS_MAX)]
    for viewer in viewers:
        await anext(viewer)
    with pytest.raises(FlannelError, match=r"^16 programs watch this agent already: end one of them$"):
        await anext(feed.watch(lambda: RUNNING))
    for viewer in viewers:
        await viewer.aclose()
    async with aclosing(feed.watch(lambda: RUNNING)) as viewer:
        assert await anext(viewer)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (EVENT, "peer added 10.1.16.0/24 via 192.0.2.2"),
        (
            {"event": "agent", "version": "1", "pid": 7, "ready": False, "state": "starting", "subnet": None},
            "agent flannel-udp 1, pid 7: starting (not ready)",
        ),
        ({"event": "state", "ready": True, "state": "running"}, "state running (ready)"),
        (
            {"event": "lease", "what": "renewed", "key": "10.1.15.0-24", "expires_in_s": 86_400.0},
            "lease renewed 10.1.15.0-24, expires in 1 d 0 h",
        ),
        ({"event": "lease", "what": "lost", "key": "10.1.15.0-24"}, "lease lost 10.1.15.0-24"),
        ({"event": "peers", "what": "added", "count": 1234}, "peers added: 1,234"),
        ({"event": "problem", "what": "came", "text": "no room"}, "problem came: no room"),
        ({"event": "error", "part": "watch", "text": "away"}, "error watch: away"),
        ({"event": "works", "part": "watch"}, "works watch"),
        ({"event": "repair", "what": "route", "count": 2}, "repair route, 2 times"),
        (
            {"event": "drops", "direction": "out", "reason": "no_route", "count": 2, "text": "a > b"},
            "drops 2 out no_route: a > b",
        ),
        ({"event": "drops", "direction": "kernel", "reason": "new", "count": 2}, "drops 2 kernel new"),
        ({"event": "lost", "count": 2}, "lost 2 events: they were read too slowly"),
        ({"event": "sunset", "hue": "red"}, "sunset hue red"),  # of an agent of a later version
    ],
)
def test_an_event_is_a_line_with_its_time(event: dict[str, Any], line: str) -> None:
    moment, shown = event_line(cast(Event, {"time": 1_800_000_000.5, **event})).split(" ", 1)
    assert moment[10] == "T"
    assert moment[19:23] == ".500"
    assert shown == line
