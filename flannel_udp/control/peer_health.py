"""What is known of the peers' health, from what they send, what the underlay says and whether they answer echoes.

Pure: events and the time come in, questions and verdicts go out. A peer is known by its public IP, a number in host
order, and only from the first packet on: what nobody sends to costs nothing. Times are seconds of one clock.

Nobody is ill for being silent. Silence while packets go there, or an ICMP error, raises the question; ill is who then
leaves the echoes unanswered. Who answers no echoes but is heard otherwise has them switched off: for that one only an
ICMP error counts. An ill peer is asked again until it is heard, or nothing goes there any more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from flannel_udp.model import PeerActivity

SILENT_S = 3.0
"""How long packets may go to a peer of which nothing is heard before it is asked."""
ASK_AGAIN_S = 10.0
"""After an answer: a flow in one direction raises the question again and again."""
ASK_ILL_S, ASK_ILL_MAX_S = 5.0, 60.0
"""After no answer: doubled each time."""
ERROR_FRESH_S = 3.0
"""The kernel of a peer sends an ICMP error a second, while packets go there that do not arrive."""
MET_S, NEW_S = 10.0, 30.0
"""From so long after its first packet on, and so long after its last one, a peer is asked of which it is not known yet
whether it answers echoes: who exchanges a few packets only is left alone."""
IGNORED_MAX = 2
"""Questions that a peer leaves unanswered, and is heard all the while, until it is believed to answer none."""
PODS_AGAIN_S = 60.0
"""How long it is believed that the network between lets pods' addresses pass: nothing but asking tells."""
PODS_LOST = "it answers, and to nothing that has pods' addresses"
NO_ECHO = "it answers no echo"
WANTED_S = 300.0
"""A peer that nothing was sent to for so long is not ill any more, whatever it was: nobody misses it."""

Health = Literal["idle", "heard", "silent", "ill"]
"""Nothing went there lately; it was heard since; packets go there and nothing comes back, so far; it is ill."""


@dataclass(slots=True)
class PeerState:
    """What is known of one peer."""

    met_s: float
    """When the first packet went to it or came from it."""
    heard_s: float | None = None
    sent_s: float | None = None
    unheard_since_s: float | None = None
    """When the first packet went there of which nothing that was heard since can be an answer."""
    error: str | None = None
    """The last ICMP error about a datagram to it."""
    error_s: float | None = None
    error_stands: bool = False
    """Nothing that was heard since can be an answer to what goes there."""
    answers_echoes: bool | None = None
    """``False``: it was heard after it had left some unanswered, so it has them switched off."""
    unanswered_s: float | None = None
    """When it had left the last echoes unanswered, though other packets came."""
    ill: str | None = None
    """Why packets for it do not travel."""
    pods_lost: bool = False
    """It answers, and to nothing that has pods' addresses: what else is heard of it says nothing of that."""
    pods_again_s: float | None = None
    """When to ask that again; ``None``: whatever is heard tells of pods' packets, too."""
    ignored: int = 0
    """Questions in a row that it left unanswered and was heard afterwards."""
    asking: bool = False
    asked_in_doubt: bool = False
    asked_s: float = -math.inf
    answered_s: float = 0.0
    ask_again_s: float = 0.0
    wait_s: float = 0.0
    echoes: int = 0
    """That were sent, and are not among the packets that were counted yet."""


class PeersHealth:
    """The peers that packets went to or came from; `now` is the clock."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._peers: dict[int, PeerState] = {}
        self._counted_s = self._counted_before_s = now()

    @property
    def known(self) -> set[int]:
        """All of them."""
        return set(self._peers)

    def state(self, peer: int) -> PeerState | None:
        """Return what is known of a peer, ``None`` if nothing is."""
        return self._peers.get(peer)

    def forget(self, peers: Iterable[int]) -> None:
        """Forget these, which are no peers any more."""
        for peer in peers:
            self._peers.pop(peer, None)

    def _state_of(self, peer: int) -> PeerState:
        state = self._peers.get(peer)
        if state is None:
            state = self._peers[peer] = PeerState(self._now())
        return state

    # What happens

    def begin_counting(self) -> None:
        """Take note that what `note_activity` tells from now on is counted from the last such time on."""
        self._counted_before_s, self._counted_s = self._counted_s, self._now()

    def note_activity(self, activity: PeerActivity) -> None:
        """Take note of packets that went to a peer and came from it."""
        state, now = self._state_of(activity.public_ip), self._counted_s
        echoes = min(state.echoes, activity.packets_out)
        state.echoes -= echoes
        sent = activity.packets_out - echoes
        if sent:
            state.sent_s = now
        if activity.packets_in:
            since_s = self._counted_before_s
            if state.unanswered_s is not None and state.unanswered_s <= since_s:
                state.ignored, state.unanswered_s = state.ignored + 1, None
                if state.ignored >= IGNORED_MAX:
                    state.answers_echoes = False
            state.heard_s = now
            # What comes in while errors tell that ours do not arrive proves one direction only.
            if state.error_s is None or now - state.error_s >= ERROR_FRESH_S:
                _note_well(state, now)
        elif sent and state.unheard_since_s is None:
            state.unheard_since_s = now

    def note_error(self, peer: int, error: str) -> None:
        """Take note of an ICMP error about a datagram to a peer that there is."""
        state, now = self._state_of(peer), self._now()
        if not state.error_stands:  # news: ask soon
            state.ask_again_s = min(state.ask_again_s, max(now, state.answered_s + SILENT_S))
        state.error, state.error_s, state.error_stands = error, now, True

    # What is asked

    def questions(self) -> list[int]:
        """Return the peers that have to be asked now, by `begin_asking`; those in doubt first.

        Of either kind who was asked least recently first: not all of them have their turn at once.
        """
        now = self._now()
        doubts: list[tuple[float, int]] = []
        others: list[tuple[float, int]] = []
        for peer, state in self._peers.items():
            if state.asking or now < state.ask_again_s:
                continue
            if _in_doubt(state, now):
                doubts.append((state.asked_s, peer))
            elif _is_unknown(state, now) or _is_due(state, now):
                others.append((state.asked_s, peer))  # to know later what it means that one does not answer
        return [peer for _, peer in (*sorted(doubts), *sorted(others))]

    def begin_asking(self, peer: int) -> None:
        """Take note that a peer is asked from now on, until `note_answer`."""
        if (state := self._peers.get(peer)) is not None:
            now = self._now()
            state.asking, state.asked_in_doubt, state.asked_s = True, _in_doubt(state, now), now

    def note_echo(self, peer: int) -> None:
        """Take note that an echo was sent to a peer: it is none of the packets that somebody wants to arrive."""
        self._state_of(peer).echoes += 1

    def note_answer(self, peer: int, *, answered: bool | None, pods_lost: bool | None = None) -> None:
        """Take note of what came of asking: answered, not, or ``None``: the question did not leave this host.

        `pods_lost`: whether it answered to nothing that has pods' addresses, ``None`` where that is no other question.
        """
        state, now = self._peers.get(peer), self._now()
        if state is None:
            return
        state.asking = False
        if answered:
            state.heard_s = state.answered_s = now
            state.answers_echoes, state.unanswered_s, state.ignored = True, None, 0
            _note_well(state, now)
            if pods_lost is not None:
                state.pods_lost, state.pods_again_s = pods_lost, now + PODS_AGAIN_S
        elif answered is not None:
            # While nothing else came either, that says nothing of its echoes.
            calm = state.unheard_since_s is None and not state.asked_in_doubt
            state.unanswered_s = now if calm else None
            _judge_silence(state, now)
        state.wait_s = _wait_s(state, now)
        state.ask_again_s = now + state.wait_s

    # What is said

    def health(self, peer: int) -> Health:
        """Tell how a peer is."""
        state = self._peers.get(peer)
        return "idle" if state is None else _health(state, self._now())

    def count(self) -> Counter[Health]:
        """Return how many peers of those known are of each health."""
        now = self._now()
        return Counter(_health(state, now) for state in self._peers.values())

    def ill(self) -> list[tuple[int, str]]:
        """Return the ill peers, and why; those that are ill longest first."""
        now = self._now()
        found = []
        for peer, state in self._peers.items():
            if (why := why_ill(state)) is not None:
                if now - max(state.sent_s or 0.0, state.error_s or 0.0) > WANTED_S:
                    state.ill, state.pods_lost = None, False
                else:
                    found.append((state.unheard_since_s or state.error_s or 0.0, peer, why))
        return [(peer, why) for _, peer, why in sorted(found)]


def why_ill(state: PeerState) -> str | None:
    """Return why packets for pods there do not travel, ``None`` as far as is known that they do."""
    return state.ill or (PODS_LOST if state.pods_lost else None)


def _is_due(state: PeerState, now: float) -> bool:
    """Whether it is to be asked anew about pods' addresses, as packets go there."""
    recent = state.sent_s is not None and now - state.sent_s < NEW_S
    return state.pods_again_s is not None and now >= state.pods_again_s and recent


def _is_silent(state: PeerState, now: float) -> bool:
    return state.unheard_since_s is not None and now - state.unheard_since_s >= SILENT_S


def _in_doubt(state: PeerState, now: float) -> bool:
    return why_ill(state) is not None or state.error_stands or _is_silent(state, now)


def _is_unknown(state: PeerState, now: float) -> bool:
    """Whether it is not known yet if a peer answers echoes that packets come from, and not only just now."""
    heard_s, met_s = state.heard_s, state.met_s
    return state.answers_echoes is None and heard_s is not None and now - heard_s < NEW_S and now - met_s >= MET_S


def _judge_silence(state: PeerState, now: float) -> None:
    """Decide on a peer that has left echoes unanswered."""
    if state.error_stands:
        state.ill = state.error
    elif _is_silent(state, now) and state.answers_echoes is not False:
        state.ill = state.ill or NO_ECHO


def _wait_s(state: PeerState, now: float) -> float:
    """Return how long to wait until a peer may be asked again that was asked just now."""
    if why_ill(state) is not None or state.error_stands:
        return min(max(state.wait_s * 2, ASK_ILL_S), ASK_ILL_MAX_S)
    if state.unheard_since_s is not None and state.answers_echoes is not False:
        return max(0.0, state.unheard_since_s + SILENT_S - now)  # the silence is too young to be judged
    return ASK_AGAIN_S


def _health(state: PeerState, now: float) -> Health:
    if why_ill(state) is not None:
        return "ill"
    if _is_silent(state, now):
        return "silent"
    return "idle" if state.heard_s is None or now - state.heard_s >= WANTED_S else "heard"


def _note_well(state: PeerState, now: float) -> None:
    if state.ill is not None:
        state.ask_again_s = now + SILENT_S  # no longer as for those who are ill for long
    state.unheard_since_s, state.ill, state.error_stands = None, None, False
