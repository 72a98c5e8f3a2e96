"""What becomes of peers is logged line by line, and a flood as a summary: the log stays bounded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannel_udp.control import peer_log
from flannel_udp.control.peer_log import MAX_LINES, SPAN_LINES, PeerLog
from flannel_udp.model import Delta, Peer
from tests.support.patience import PATIENCE_S

SPAN_S = 0.05


@pytest.fixture(autouse=True)
def short_spans(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    monkeypatch.setattr(peer_log, "SPAN_S", SPAN_S)
    with caplog.at_level(logging.INFO, logger=peer_log.__name__):
        yield


def peers(n: int) -> tuple[Peer, ...]:
    return tuple(Peer(IPv4Network((0x0A010000 + (i << 8), 24)), IPv4Address("192.0.2.2")) for i in range(n))


async def lines(caplog: pytest.LogCaptureFixture, n: int) -> list[str]:
    """Wait until there are `n` lines, and return them."""
    async with asyncio.timeout(PATIENCE_S):
        while len(caplog.messages) < n:
            await asyncio.sleep(SPAN_S / 10)
    return caplog.messages


async def spans_are_over(log: PeerLog) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while log._span is not None:
            await asyncio.sleep(SPAN_S / 10)


async def test_few_peers_have_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = peers(3)
    PeerLog(lambda: 2).write(Delta((first,), (second,), (third,), ("entry 'x' is ignored",)))
    assert caplog.messages == [
        "entry 'x' is ignored",
        "peer added: 10.1.0.0/24 via 192.0.2.2",
        "peer changed: 10.1.1.0/24 via 192.0.2.2",
        "peer removed: 10.1.2.0/24 via 192.0.2.2",
    ]


async def test_nothing_is_no_line_and_begins_no_span(caplog: pytest.LogCaptureFixture) -> None:
    log = PeerLog(lambda: 0)
    log.write(Delta())
    assert (caplog.messages, log._span) == ([], None)


@pytest.mark.parametrize(("n", "n_lines"), [(MAX_LINES, MAX_LINES), (MAX_LINES + 1, 1)])
async def test_more_than_anybody_reads_is_one_line(caplog: pytest.LogCaptureFixture, n: int, n_lines: int) -> None:
    PeerLog(lambda: n).write(Delta(added=peers(n)))
    assert len(caplog.messages) == n_lines
    if n_lines == 1:
        assert caplog.messages == [f"peers: {n} added, now {n}"]


async def test_warnings_beyond_the_first_ones_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    PeerLog(lambda: 0).write(Delta(warnings=tuple(f"entry {n} is ignored" for n in range(MAX_LINES + 5))))
    assert len(caplog.messages) == MAX_LINES + 1
    assert caplog.messages[-1] == "... and 5 more warnings like these"


async def test_single_changes_without_end_are_summed_up_when_the_span_ends(caplog: pytest.LogCaptureFixture) -> None:
    log = PeerLog(lambda: 1)
    for _ in range(SPAN_LINES + 20):
        log.write(Delta(changed=peers(1)))
    assert len(caplog.messages) == SPAN_LINES
    assert (await lines(caplog, SPAN_LINES + 1))[-1] == "peers: 20 changed, now 1"
    await spans_are_over(log)
    assert len(caplog.messages) == SPAN_LINES + 1


async def test_a_flood_that_goes_on_gets_less_room(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = PeerLog(lambda: 1)
    for _ in range(SPAN_LINES + 1):
        log.write(Delta(changed=peers(1)))
    monkeypatch.setattr(peer_log, "SPAN_S", 600.0)  # of the next one, which must not end before it goes on
    await lines(caplog, SPAN_LINES + 1)
    for _ in range(MAX_LINES + 7):
        log.write(Delta(changed=peers(1)))
    assert len(caplog.messages) == SPAN_LINES + 1 + MAX_LINES
    assert log._span is not None
    log._span.cancel()
    log._end_span()
    assert caplog.messages[SPAN_LINES + 1 + MAX_LINES :] == ["peers: 7 changed, now 1"]


async def test_after_a_quiet_span_all_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    log = PeerLog(lambda: 1)
    for _ in range(SPAN_LINES):
        log.write(Delta(changed=peers(1)))
    await spans_are_over(log)
    for _ in range(SPAN_LINES):
        log.write(Delta(changed=peers(1)))
    assert len(caplog.messages) == 2 * SPAN_LINES
    await spans_are_over(log)
