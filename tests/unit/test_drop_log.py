"""What the log says of dropped packets: when, how loudly, and with which words."""

from __future__ import annotations

import asyncio
import logging
import re
from ipaddress import IPv4Address

import pytest

from flannel_udp._fastpath.drops import SENTENCES
from flannel_udp.dataplane import drop_log
from flannel_udp.dataplane.drop_log import DropLog, describe
from flannel_udp.dataplane.drops import ABOUT, DROP_REASONS
from flannel_udp.model import DroppedPacket

PACKET = DroppedPacket(
    "in", 0.0, IPv4Address("192.0.2.9"), 4, IPv4Address("10.1.16.2"), IPv4Address("10.1.15.3"), 1, 84
)
ROUTER_SOLICITATION = DroppedPacket("out", 0.0, None, 6, None, None, None, 48)


class World:
    """A network that drops what the test says."""

    def __init__(self) -> None:
        self.drops: dict[str, dict[str, int]] = {"out": {}, "in": {}}
        self.last: dict[str, list[DroppedPacket]] = {}
        self.log = DropLog(lambda: self.drops, lambda: self.last)
        self.log.close()  # the test says when

    def say(self, at_s: float, caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
        caplog.clear()
        with caplog.at_level(logging.DEBUG):
            self.log.say(at_s)
        return [(record.levelno, record.getMessage()) for record in caplog.records]


@pytest.fixture
async def world() -> World:
    return World()


async def test_a_line_names_count_reason_addresses_and_what_to_look_at(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.drops["in"]["unknown_peer"] = 4
    world.last["unknown_peer"] = [PACKET]
    ((level, line),) = world.say(0.0, caplog)
    assert level == logging.WARNING
    assert line == (
        "4 packets dropped (unknown_peer): the sender's address is no registered peer's public IP; "
        "the last one came from 192.0.2.9: 10.1.16.2 > 10.1.15.3, ICMP, 84 bytes; see: is the sender behind NAT, or "
        "its lease gone? its --public-ip, our --source-check: docs/architecture.md"
    )


async def test_a_reason_has_one_line_a_minute_which_counts_what_came_since(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    counts = []
    for second in range(150):
        world.drops["in"]["not_our_subnet"] = 10 * (second + 1)
        counts += [line.split(" ")[0] for _, line in world.say(second, caplog)]
    assert counts == ["10", "600", "600"]


async def test_what_came_shortly_after_a_line_is_said_at_last_though_no_more_comes(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    said = []
    for second in range(200):
        world.drops["in"]["spoofed_source"] = 1 if second == 0 else 8
        said += [(second, line.split(" ")[0]) for _, line in world.say(second, caplog)]
    assert said == [(0, "1"), (60, "7")]


async def test_reasons_do_not_wait_for_each_other(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.drops["in"]["unknown_peer"] = 1
    assert len(world.say(0.0, caplog)) == 1
    world.drops["out"]["looped"] = 1
    ((_, line),) = world.say(1.0, caplog)
    assert line.startswith("1 packet dropped (looped): ")


@pytest.mark.parametrize(
    ("direction", "reason", "level"),
    [
        ("out", "not_unicast", logging.DEBUG),  # mDNS from pods
        ("out", "not_ipv4", logging.DEBUG),  # router solicitations
        ("in", "not_ipv4", logging.WARNING),
        ("out", "ttl_expired", logging.INFO),  # traceroute
        ("in", "ttl_expired", logging.INFO),
        ("out", "no_route", logging.INFO),
        ("out", "queue_full", logging.INFO),
        ("out", "looped", logging.WARNING),
        ("out", "refused", logging.WARNING),
    ],
)
async def test_what_is_no_fault_by_itself_is_no_alarm(
    world: World, caplog: pytest.LogCaptureFixture, direction: str, reason: str, level: int
) -> None:
    world.drops[direction][reason] = 1
    assert [found for found, _ in world.say(0.0, caplog)] == [level]


async def test_of_both_directions_the_louder_one_gives_level_and_example(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.drops = {"out": {"not_ipv4": 3}, "in": {"not_ipv4": 1}}
    stranger = PACKET._replace(version=7, source=None, destination=None, protocol=None)
    world.last["not_ipv4"] = [stranger, ROUTER_SOLICITATION]
    ((level, line),) = world.say(0.0, caplog)
    assert level == logging.WARNING
    assert "came from 192.0.2.9: IP version 7, 84 bytes" in line


async def test_it_looks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drop_log, "LOOK_EVERY_S", 0.001)
    looked = asyncio.Event()

    def counts() -> dict[str, dict[str, int]]:
        looked.set()
        return {}

    log = DropLog(counts, dict)
    for _ in range(3):
        await looked.wait()
        looked.clear()
    log.close()


def test_every_reason_has_its_sentence_its_levels_and_its_hint() -> None:
    assert set(ABOUT) == set(SENTENCES)
    assert len(DROP_REASONS) == len(ABOUT)
    assert all(re.search(r"--\w|docs/", known.see) for known in ABOUT.values())  # a flag, or a document


@pytest.mark.parametrize(
    ("packet", "text"),
    [
        (PACKET._replace(direction="out"), "was for 192.0.2.9: 10.1.16.2 > 10.1.15.3, ICMP, 84 bytes"),
        (PACKET._replace(outer=None, protocol=47), "10.1.16.2 > 10.1.15.3, protocol 47, 84 bytes"),
        (ROUTER_SOLICITATION, "IP version 6, 48 bytes"),
        (PACKET._replace(version=None, source=None, n_bytes=0), "came from 192.0.2.9: no IP header, 0 bytes"),
    ],
)
def test_a_packet_in_a_clause(packet: DroppedPacket, text: str) -> None:
    assert describe(packet) == text
