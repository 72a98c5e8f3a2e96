"""Who is ill, and who is not: idle peers, flows in one direction, peers that answer no echoes."""

from __future__ import annotations

import pytest

from flannel_udp.control.peer_health import (
    ASK_AGAIN_S,
    ASK_ILL_MAX_S,
    ASK_ILL_S,
    MET_S,
    SILENT_S,
    WANTED_S,
    PeersHealth,
)
from flannel_udp.model import PeerActivity

PEER, OTHER = 0xC0000202, 0xC0000203
ERROR = "port unreachable, says 192.0.2.2"
STEP_S = 1.0


class World:
    """A clock, and the peers' health by it."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.health = PeersHealth(lambda: self.now_s)

    def pass_on(self, seconds: float, *, out: int = 0, in_: int = 0, peer: int = PEER) -> None:
        """Let time pass, with so many packets to and from the peer in every second."""
        for _ in range(round(seconds / STEP_S)):
            self.now_s += STEP_S
            self.health.begin_counting()
            if out or in_:
                self.health.note_activity(PeerActivity(peer, out, in_, 100))

    def ask(self, *, answered: bool | None, peer: int = PEER) -> None:
        """Ask the peer, which is due, and say what came of it."""
        assert peer in self.health.questions()
        self.health.begin_asking(peer)
        assert peer not in self.health.questions()
        self.health.note_answer(peer, answered=answered)

    @property
    def ill(self) -> dict[int, str]:
        return dict(self.health.ill())


@pytest.fixture
def world() -> World:
    return World()


def test_a_peer_that_nobody_sends_to_is_not_asked(world: World) -> None:
    world.pass_on(100)
    assert world.health.questions() == []
    assert world.health.health(PEER) == "idle"
    assert world.health.known == set()


def test_packets_both_ways_need_one_question_only(world: World) -> None:
    world.pass_on(MET_S, out=5, in_=5)
    assert world.health.questions() == []
    world.pass_on(1, out=5, in_=5)
    world.ask(answered=True)
    world.pass_on(100, out=5, in_=5)
    assert world.health.questions() == []
    assert world.health.health(PEER) == "heard"


def test_silence_while_packets_go_there_raises_the_question_and_no_answer_makes_it_ill(world: World) -> None:
    world.pass_on(SILENT_S, out=5)
    assert world.health.questions() == []
    world.pass_on(1, out=5)
    assert (world.health.health(PEER), world.ill) == ("silent", {})
    world.ask(answered=False)
    assert world.health.health(PEER) == "ill"
    assert "answers no echo" in world.ill[PEER]


def test_a_flow_in_one_direction_makes_nobody_ill_who_answers(world: World) -> None:
    for _ in range(10):
        world.pass_on(ASK_AGAIN_S + SILENT_S, out=5)
        world.ask(answered=True)
    assert world.ill == {}


def test_an_icmp_error_raises_the_question_at_once_and_is_the_reason(world: World) -> None:
    world.pass_on(1, out=1)
    world.health.note_error(PEER, ERROR)
    world.ask(answered=False)
    assert world.ill == {PEER: ERROR}


def test_an_icmp_error_about_a_peer_that_answers_is_no_illness(world: World) -> None:
    world.pass_on(1, out=1, in_=1)
    for _ in range(10):
        world.health.note_error(PEER, ERROR)
        if PEER in world.health.questions():
            world.ask(answered=True)
        world.pass_on(1, out=1, in_=1)
        assert world.ill == {}
    state = world.health.state(PEER)
    assert state is not None
    assert state.error == ERROR


def test_what_was_heard_before_an_error_does_not_refute_it(world: World) -> None:
    world.pass_on(1, out=1, in_=1)
    world.health.note_error(PEER, ERROR)
    world.pass_on(1, out=1, in_=1)  # counted only now, and perhaps older than the error
    world.ask(answered=False)
    assert world.ill == {PEER: ERROR}


def test_what_comes_in_while_errors_come_is_no_answer(world: World) -> None:
    world.pass_on(1, out=1, in_=1)
    for _ in range(5):
        world.health.note_error(PEER, ERROR)
        if PEER in world.health.questions():
            world.ask(answered=False)
        world.pass_on(1, out=1, in_=1)
        assert world.ill == {PEER: ERROR}
    world.pass_on(5, out=1, in_=1)
    assert world.ill == {}


def test_an_ill_peer_is_well_as_soon_as_it_is_heard(world: World) -> None:
    world.pass_on(SILENT_S + 1, out=5)
    world.ask(answered=False)
    world.pass_on(1, out=5, in_=1)
    assert world.ill == {}
    assert world.health.health(PEER) == "heard"


def test_an_ill_peer_is_asked_again_and_again_and_less_and_less(world: World) -> None:
    world.pass_on(SILENT_S + 1, out=5)
    waited = []
    for _ in range(6):
        world.ask(answered=False)
        begun_s = world.now_s
        while PEER not in world.health.questions():
            world.pass_on(1, out=5)
        waited.append(world.now_s - begun_s)
    assert waited == [ASK_ILL_S, 10, 20, 40, ASK_ILL_MAX_S, ASK_ILL_MAX_S]
    world.ask(answered=True)
    assert world.ill == {}


def test_our_own_echoes_are_no_traffic(world: World) -> None:
    """Else asking an idle peer that is down would make it ill."""
    world.health.note_echo(PEER)
    world.pass_on(1, out=1)
    world.pass_on(100)
    assert world.health.questions() == []
    assert world.health.health(PEER) == "idle"


def test_who_is_heard_after_leaving_echoes_unanswered_has_them_switched_off(world: World) -> None:
    world.pass_on(MET_S + 1, out=5, in_=5)
    for _ in range(2):
        world.ask(answered=False)
        assert world.ill == {}
        world.pass_on(ASK_AGAIN_S, out=5, in_=5)
    world.pass_on(60, out=5)  # from now on in one direction only
    world.ask(answered=False)
    assert world.ill == {}
    assert world.health.health(PEER) == "silent"
    world.health.note_error(PEER, ERROR)
    world.ask(answered=False)
    assert world.ill == {PEER: ERROR}


def test_who_was_ill_and_came_back_may_be_ill_again(world: World) -> None:
    for _ in range(3):
        world.pass_on(ASK_AGAIN_S, out=5, in_=5)
        world.pass_on(SILENT_S + 1, out=5)
        world.ask(answered=False)
        assert PEER in world.ill
        world.pass_on(ASK_AGAIN_S, out=5, in_=5)
        assert world.ill == {}


def test_who_dies_right_after_the_first_packets_is_ill_all_the_same(world: World) -> None:
    world.pass_on(MET_S + 1, out=5, in_=5)
    world.ask(answered=False)  # it had died by then
    world.pass_on(ASK_AGAIN_S + SILENT_S, out=5)
    world.ask(answered=False)
    assert PEER in world.ill


def test_a_question_that_did_not_leave_this_host_says_nothing(world: World) -> None:
    world.pass_on(SILENT_S + 1, out=5)
    world.ask(answered=None)
    assert world.ill == {}
    world.pass_on(ASK_AGAIN_S, out=5)
    assert world.health.questions() == [PEER]


def test_nobody_misses_a_peer_that_nothing_goes_to_any_more(world: World) -> None:
    world.pass_on(SILENT_S + 1, out=5)
    world.ask(answered=False)
    world.pass_on(WANTED_S + 1)
    assert world.ill == {}


def test_a_peer_that_is_none_any_more_is_forgotten(world: World) -> None:
    world.pass_on(SILENT_S + 1, out=5)
    world.ask(answered=False)
    world.health.begin_asking(PEER)
    world.health.forget([PEER])
    world.health.note_answer(PEER, answered=False)
    assert world.ill == {}
    assert world.health.known == set()


def test_those_ill_longest_come_first_and_all_are_counted(world: World) -> None:
    world.pass_on(SILENT_S + 1, out=5, peer=OTHER)
    world.pass_on(SILENT_S + 1, out=5)
    for peer in (PEER, OTHER):
        world.ask(answered=False, peer=peer)
    world.pass_on(1, out=1, in_=1, peer=7)
    assert [peer for peer, _ in world.health.ill()] == [OTHER, PEER]
    assert world.health.count() == {"ill": 2, "heard": 1}


def test_who_is_mended_while_it_is_asked_is_not_taken_for_one_that_answers_no_echoes(world: World) -> None:
    for _ in range(3):
        world.pass_on(ASK_ILL_MAX_S, out=5)
        world.health.begin_asking(PEER)
        world.pass_on(1, out=5, in_=5)
        world.health.note_answer(PEER, answered=False)
        world.pass_on(2, out=5, in_=5)
    world.pass_on(ASK_ILL_MAX_S, out=5)
    world.ask(answered=False)
    assert PEER in world.ill


def test_packets_now_and_then_make_nobody_ill_whose_echoes_are_off(world: World) -> None:
    for _ in range(30):
        world.pass_on(1, out=1)
        if PEER in world.health.questions():
            world.ask(answered=False)
        world.pass_on(1, in_=1)
        assert world.ill == {}


@pytest.mark.parametrize("in_", [0, 5], ids=["in doubt", "unknown"])
def test_every_peer_has_its_turn_where_more_are_to_be_asked_than_can_be(world: World, in_: int) -> None:
    peers, at_once = range(60), 2
    asked: set[int] = set()

    def pass_on(seconds: float) -> None:
        world.now_s += seconds
        world.health.begin_counting()
        for peer in peers:
            world.health.note_activity(PeerActivity(peer, 5, in_, 100))

    pass_on(STEP_S)
    for _ in range(60 // at_once):
        pass_on(ASK_ILL_MAX_S)
        for peer in world.health.questions()[:at_once]:
            world.health.begin_asking(peer)
            world.health.note_answer(peer, answered=None if in_ else False)
            asked.add(peer)
    assert asked == set(peers)
