"""Something happens to the host or to the lease between the moment an agent is asked for all it has and the moment in
which the other one takes it. The test is one of the two agents, so that this moment lasts as long as it needs."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import pytest

from flannel_udp.handover import conversation
from flannel_udp.handover.conversation import HandoverFailed, Offered, ask_handover, reach_agent, serve_handover
from flannel_udp.handover.state import HandoverState, Terms
from flannel_udp.handover.takeover import HANDOVER
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.model import Peer
from tests.support.agents import Agent, Log, pid_of, subnet_of, up_with_peers, wait_for
from tests.support.by_hand import by_hand
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S, promised

pytestmark = NEEDS_NETNS

REPAIR_S, CONVERGE_S = 1.0, 5.0
UNANSWERED_S = 0.5
"""How long the old agent answers nobody."""
TAKEN_BACK_S = conversation._START_TIMEOUT_S
"""So long after it has stepped aside it takes all back."""
STRANGER = '{"PublicIP":"192.0.2.99"}'


PATIENT = """
import sys
from flannel_udp.cli.main import main
from flannel_udp.handover import conversation
conversation._OFFER_TIMEOUT_S = conversation._STATE_TIMEOUT_S = 60.0
sys.exit(main())
"""
"""The agent that takes over from the test, which a busy machine may hold up for long."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test, on whichever side, wait for an agent for long."""
    for name in ("_OFFER_TIMEOUT_S", "_STATE_TIMEOUT_S", "_READY_TIMEOUT_S", "_START_TIMEOUT_S"):
        monkeypatch.setattr(conversation, name, PATIENCE_S)


@pytest.fixture
def duo() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=2)) as lab:
        yield up_with_peers(lab)


def terms_of(lab: Lab, host: Host) -> Terms:
    registry = f"file:{lab.plan.registry_file}"
    return Terms(registry, str(host.underlay), str(host.underlay), workers=1, offload="auto")


def ask(lab: Lab, host: Host) -> Offered:
    connection = reach_agent(host.control_socket)
    assert connection is not None
    return ask_handover(connection, terms_of(lab, host))


def take(offered: Offered) -> None:
    """Say that all is ready; the packet path must not be given."""
    offered.take(1, lambda _worker: pytest.fail("was given the packet path"), lambda: None)


def close_all(descriptors: Mapping[str, int]) -> None:
    for fd in descriptors.values():
        os.close(fd)


# To the old agent


def test_a_tunnel_deleted_while_it_is_offered_is_made_anew_at_once_and_given_to_nobody(duo: Lab) -> None:
    h1, h2 = duo.hosts
    old, log = h1.agent_pid(), Log(h1)
    with Flow(h1.pods[0], h2.pods[0]) as flow:
        flow.wait_for_one_sent_from_now()
        offered = ask(duo, h1)
        h1.configure("link del flannel0")
        assert flow.wait_for_one_sent_from_now() < promised(REPAIR_S)
        with pytest.raises(HandoverFailed, match="its tunnel device since it was asked"):
            take(offered)
        flow.wait_for_one_sent_from_now()
    close_all(offered.descriptors)
    wait_for("it says that it goes on", lambda: bool(log.lines("this agent goes on")))
    h1.wait_ready()
    assert h1.agent_pid() == old
    with Agent(h1, "--takeover") as agent:  # what is there now is given
        agent.wait_for_line(f"took over from process {old}")


def test_a_subnet_lost_while_it_is_offered_is_given_to_nobody(duo: Lab) -> None:
    h1 = duo.hosts[0]
    subnet, log = subnet_of(h1), Log(h1)
    offered = ask(duo, h1)
    by_hand(duo).put(str(subnet).replace("/", "-"), STRANGER)
    wait_for("the loss is noticed", lambda: bool(log.lines("lost our subnet")))
    with pytest.raises(HandoverFailed, match="this agent has lost its subnet"):
        take(offered)
    close_all(offered.descriptors)
    wait_for("another subnet is held", lambda: subnet_of(h1) != subnet and h1.is_ready())


def test_who_asks_while_it_steps_aside_waits_for_whoever_is_the_agent_afterwards(duo: Lab) -> None:
    h1 = duo.hosts[0]
    old, offered = pid_of(h1), ask(duo, h1)
    with ThreadPoolExecutor() as pool:
        asked: list[Future[int]] = []
        began_s = time.monotonic()  # before the old one steps aside

        def start(_worker: int) -> None:
            asked.append(pool.submit(pid_of, h1))
            try:
                answer = asked[0].result(UNANSWERED_S)
            except TimeoutError:
                pass
            else:  # too late to tell: it has taken all back meanwhile
                assert time.monotonic() - began_s > TAKEN_BACK_S, answer
            raise HandoverFailed("the new one fails")

        with pytest.raises(HandoverFailed, match="the new one fails"):
            offered.take(1, start, lambda: None)
        assert [each.result() for each in asked] == [old]
    close_all(offered.descriptors)


# To the new agent, once the old one has stepped aside


class Heir:
    """The old agent, played by the test with all that a real one gave it: `admin.handover.Holder`."""

    workers = 1

    def __init__(self, offered: Offered, event: Callable[[], object]) -> None:
        self._offered = offered
        self._event = event

    def offer(self, _terms: Terms) -> tuple[HandoverState, Mapping[str, int]]:
        return self._offered.state, self._offered.descriptors

    def peers(self) -> list[Peer]:
        return self._offered.peers

    async def commit(self) -> None:
        self._event()

    def pause(self, _worker: int) -> None:
        """Nobody reads: what was given comes from an agent that is dead."""

    async def resume(self) -> None:
        pytest.fail("the take-over failed")


def hand_over_through(lab: Lab, host: Host, event: Callable[[], object]) -> Agent:
    """Let a new agent take over from the one of the host, and `event` happen when it is too late to refuse."""
    offered = ask(lab, host)
    host.kill_agent()
    with closing(socket.socket(fileno=os.dup(offered.descriptors[HANDOVER]))) as listener:
        listener.listen()  # once more, so that we are who answers there
        listener.setblocking(False)

        async def accept() -> socket.socket:
            return (await asyncio.get_running_loop().sock_accept(listener))[0]

        serving = threading.Thread(target=lambda: asyncio.run(serve_handover(accept, Heir(offered, event))))
        serving.start()
        agent = Agent(host, "--takeover", program=("-c", PATIENT))
        serving.join()
    close_all(offered.descriptors)
    return agent


def test_a_tunnel_deleted_in_the_last_moment_is_made_anew_by_the_new_agent(duo: Lab) -> None:
    h1, h2 = duo.hosts
    with Flow(h1.pods[0], h2.pods[0]) as flow:
        flow.wait_for_one_sent_from_now()
        with hand_over_through(duo, h1, lambda: h1.configure("link del flannel0")) as agent:
            agent.wait_for_line("flannel0 was deleted or broke: made it anew")
            agent.wait_ready()
            flow.wait_for_one_sent_from_now()
            assert agent.stop() == 0


def test_a_subnet_taken_in_the_last_moment_is_given_up_by_the_new_agent(duo: Lab) -> None:
    h1 = duo.hosts[0]
    subnet = subnet_of(h1)
    key = str(subnet).replace("/", "-")
    with hand_over_through(duo, h1, lambda: by_hand(duo).put(key, STRANGER)) as agent:
        started_s = time.monotonic()
        agent.wait_for_line(f"lost our subnet {subnet}: {key} was taken by 192.0.2.99")
        assert time.monotonic() - started_s < promised(CONVERGE_S)
        wait_for("another subnet is held", lambda: subnet_of(h1) != subnet and h1.is_ready())
        assert agent.stop() == 0
