"""Many hosts seek a lease at once: who was slower spreads out further."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Network

from flannel_udp.control.allocation import Decision, Seeker
from flannel_udp.control.lease_actions import Action, Ask, Create, Survey
from flannel_udp.control.lease_machine import LeaseMachine
from flannel_udp.control.lease_seeking import RACES
from flannel_udp.control.retry import DEFAULT_DELAYS
from flannel_udp.errors import RegistryError, SubnetTaken
from flannel_udp.model import LeaseAttrs, Subnet
from tests.support.keepers import MARGIN_S, OUR_IP, OUR_MARK

CHOSEN = Decision(Subnet(IPv4Network("10.1.7.0/24")))


def machine_of(seed: int = 1) -> LeaseMachine:
    return LeaseMachine(LeaseAttrs(IPv4Address(OUR_IP)), MARGIN_S, DEFAULT_DELAYS, OUR_MARK, random.Random(seed))


def asked(actions: list[Action]) -> Ask | None:
    """Return the request that is to be sent, if any is."""
    return next((action for action in actions if isinstance(action, Ask)), None)


def lose_races(machine: LeaseMachine, ask: Ask | None) -> list[Seeker]:
    """Let another host be faster until it rests; return who sought each time."""
    now_s, seekers = 0.0, []
    while ask is not None:
        assert isinstance(ask.request, Survey)
        seekers.append(ask.request.seeker)
        ask = asked(machine.answer(now_s, ask.number, CHOSEN))
        assert ask is not None and isinstance(ask.request, Create)
        ask = asked(machine.fail(now_s, ask.number, SubnetTaken("it exists")))
    return seekers


def test_who_was_slower_says_how_often_and_begins_anew_after_a_rest() -> None:
    machine = machine_of()
    assert [seeker.races for seeker in lose_races(machine, asked(machine.seek(0.0)))] == list(range(RACES))
    assert machine.wake_s is not None
    assert [seeker.races for seeker in lose_races(machine, asked(machine.tick(machine.wake_s)))] == list(range(RACES))


def test_hosts_that_failed_together_try_again_at_times_of_their_own() -> None:
    first_s, last_s = DEFAULT_DELAYS.first_retry_s, DEFAULT_DELAYS.last_retry_s
    rests: list[list[float]] = []
    for seed in range(50):
        machine, now_s, rests_s = machine_of(seed), 0.0, []
        ask = asked(machine.seek(now_s))
        for _ in range(5):
            assert ask is not None
            machine.fail(now_s, ask.number, RegistryError("no etcd endpoint answers"))
            assert machine.wake_s is not None
            rests_s.append(machine.wake_s - now_s)
            now_s = machine.wake_s
            ask = asked(machine.tick(now_s))
        rests.append(rests_s)
    for of_hosts_s, exact_s in zip(zip(*rests, strict=True), (first_s, 2, 4, last_s, last_s), strict=True):
        assert exact_s <= min(of_hosts_s) < exact_s * 1.05
        assert exact_s * 1.2 < max(of_hosts_s) <= exact_s * 1.25
