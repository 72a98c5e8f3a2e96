"""A take-over that meets a fault: until all that may fail is done the old agent has the packet path, and keeps it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from flannel_udp.handover.conversation import HandoverFailed, Offered, ask_handover, handover_path, reach_agent
from flannel_udp.handover.state import Terms
from flannel_udp.lab.etcd_server import EtcdServer
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import Agent, Log, links_of, pid_of, remains_of, subnet_of, up_with_peers, wait_for
from tests.support.by_hand import by_hand
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import promised
from tests.support.standstill import freeze

pytestmark = NEEDS_NETNS

END_S = 4.0
"""SIGTERM ends an agent within 2 s; the machine may be busy."""


@pytest.fixture
def duo() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=2)) as lab:
        yield up_with_peers(lab)


def refusal(agent: Agent) -> str:
    """Return the one line with which it ended."""
    assert agent.exit_code() == 1, agent.said()
    (line,) = [line for line in agent.said() if line.startswith("flannel-udp: ")]
    assert not [line for line in agent.said() if "Traceback" in line]
    return line


def ways_in(host: Host) -> tuple[Path, Path]:
    return host.control_socket, handover_path(host.control_socket)


LATE = 6


def settled(agent: Agent, former: list[int]) -> int:
    """Wait until it has no more descriptors open than the `former` ones had, but for what comes late.

    That is what asks it, a connection to the registry, the lock of subnet.env; a take-over that leaks leaves more.
    """

    def n_open() -> int:
        return len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))

    wait_for(f"as few descriptors as {former}", lambda: not former or n_open() <= min(former) + LATE)
    return n_open()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_control_socket_that_was_removed_is_no_obstacle(duo: Lab, what: str) -> None:
    h1, h2 = duo.hosts
    log = Log(h1)
    with Flow(h1.pods[0], h2.pods[0]) as flow:
        flow.wait_for_one_sent_from_now()
        h1.control_socket.unlink()
        if what == "folder":  # all that is in it, as far as it is the agent's
            handover_path(h1.control_socket).unlink()
        # What is put back while it is offered is refused, and it is to be tried again.
        wait_for("all is put back", lambda: all(each.is_socket() for each in ways_in(h1)))
        n_gone = 2 if what == "folder" else 1
        wait_for("they listen", lambda: len(log.lines("which somebody had removed")) == n_gone)
        old = pid_of(h1)
        with Agent(h1, "--takeover") as agent:
            agent.wait_for_take_over(old)
            assert pid_of(h1) == agent.process.pid
            flow.wait_for_one_sent_from_now()
            flow.end()
            assert flow.missing == []
            assert agent.stop() == 0
    assert remains_of(h1) == {"subnet.env"}


def has_ended(agent: Agent) -> bool:
    return agent.process.poll() is not None


def is_settled(log: Log, new: Agent, old: Agent) -> bool:
    """Tell whether the old agent was not asked by the new one, which has ended, or goes on all the same, or has ended.

    One that was told to stop once it had taken all says nothing of that.
    """
    asked = log.lines(f"process {new.process.pid} takes over")
    return not asked or bool(log.lines("this agent goes on")) or has_ended(old)


def test_sigterm_to_the_new_agent_at_any_moment_leaves_one_agent_or_an_orderly_end(duo: Lab) -> None:
    h1, h2 = duo.hosts
    dice = random.Random(11)
    with ExitStack() as agents:
        began_s = time.monotonic()
        running = agents.enter_context(Agent(h1, "--takeover"))
        running.wait_for_line("took over from process")
        takes_s = time.monotonic() - began_s
        for _ in range(8):
            running.wait_ready()  # else whoever asks is refused
            log = Log(h1)
            agent = agents.enter_context(Agent(h1, "--takeover"))
            agent.wait_for_line("using interface")  # from then on it asks, and takes
            time.sleep(dice.uniform(0, takes_s / 2))
            agent.process.terminate()
            assert agent.exit_code(promised(END_S)) == 0, agent.said()
            assert not [line for line in agent.said() if "Traceback" in line], agent.said()
            wait_for("it is settled who has it", partial(is_settled, log, agent, running))
            if has_ended(running):
                assert links_of(h1) == []
                running = agents.enter_context(Agent(h1))
                running.wait_ready()
            with Flow(h1.pods[0], h2.pods[0]) as flow:
                flow.wait_for_one_sent_from_now()


def ask(lab: Lab, host: Host) -> Offered:
    connection = reach_agent(host.control_socket)
    assert connection is not None
    registry = f"file:{lab.plan.registry_file}"
    return ask_handover(connection, Terms(registry, str(host.underlay), str(host.underlay), 1, "auto"))


def test_an_old_agent_that_is_told_to_stop_while_it_is_asked_gives_a_word_and_ends(duo: Lab) -> None:
    h1 = duo.hosts[0]
    offered = ask(duo, h1)
    pid = h1.agent_pid()
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    wait_for("its end", lambda: h1.agent_pid() is None, promised(END_S))  # its word waits for us
    with pytest.raises(HandoverFailed, match="told to stop"):
        offered.take(1, lambda _worker: None, lambda: None)
    for fd in offered.descriptors.values():
        os.close(fd)
    assert links_of(h1) == []


def test_an_old_agent_that_hangs_is_named_and_goes_on_when_it_wakes(duo: Lab) -> None:
    h1, h2 = duo.hosts
    pid = h1.agent_pid()
    assert pid is not None
    freeze(pid)
    try:
        with Agent(h1, "--takeover") as agent:
            line = refusal(agent)
            assert f"process {pid} said nothing for 15 s: if it hangs, kill it and start afresh" in line
    finally:
        os.kill(pid, signal.SIGCONT)
    with Flow(h1.pods[0], h2.pods[0]) as flow:
        flow.wait_for_one_sent_from_now()
    assert pid_of(h1) == pid


def test_another_etcd_with_the_same_prefix_is_refused(tmp_path: Path) -> None:
    with Lab(Plan(fresh_name(), hosts=1, registry="etcd")) as lab:
        host = lab.hosts[0]
        command = ("ip", "netns", "exec", host.namespace, "etcd")
        other = EtcdServer(tmp_path, client_port=2379, peer_port=2380, command=command)
        other.start()
        try:
            old = pid_of(host)
            with Agent(host, "--takeover", "--etcd-endpoints=http://127.0.0.1:2379") as agent:
                line = refusal(agent)
                assert "our registry is etcd http://127.0.0.1:2379" in line
                assert "its etcd http://192.0.2.254:2379" in line
            with Agent(host, "--takeover", "--etcd-endpoints=http://127.0.0.1:9") as agent:
                assert "whether that is the same is not to be known" in refusal(agent)
            assert (pid_of(host), host.is_ready()) == (old, True)
        finally:
            other.stop()
        with Agent(host, "--takeover", "--etcd-endpoints=http://127.0.0.1:9,http://192.0.2.254:2379") as agent:
            agent.wait_for_take_over(old)  # the same cluster by other words
            assert agent.stop() == 0


def test_a_configuration_that_has_changed_meanwhile_is_said_and_the_old_one_stays_in_force(duo: Lab) -> None:
    h1, h2 = duo.hosts
    by_hand(duo).configure({"Network": str(OVERLAY), "Backend": {"Type": "udp", "Port": 9999}})
    old = pid_of(h1)
    with Agent(h1, "--takeover") as agent:
        agent.wait_for_take_over(old)
        agent.wait_for_line("the network configuration in the registry is another one")
        with Flow(h1.pods[0], h2.pods[0]) as flow:
            flow.wait_for_one_sent_from_now()
        assert h1.control("/v1/status")["backend"] == {"type": "udp", "port": 8285}


@pytest.mark.parametrize("workers", [1, 2])
def test_three_in_a_row_leak_no_descriptor_and_only_workers_sockets_receive(workers: int) -> None:
    with Lab(Plan(fresh_name(), hosts=2, agents=("h2",))) as lab, ExitStack() as agents:
        h1, h2 = lab.hosts
        flag = f"--workers={workers}"
        agents.enter_context(Agent(h1, flag)).wait_ready()
        h1.attach_pods()
        subnet = subnet_of(h1)
        counts: list[int] = []
        with Flow(h1.pods[0], h2.pods[0]) as there, Flow(h2.pods[0], h1.pods[0]) as back:
            there.wait_for_one_sent_from_now()
            back.wait_for_one_sent_from_now()
            for _ in range(3):
                old = pid_of(h1)
                agent = agents.enter_context(Agent(h1, flag, "--takeover"))
                agent.wait_for_take_over(old)
                there.wait_for_one_sent_from_now()
                back.wait_for_one_sent_from_now()
                counts.append(settled(agent, counts))
            there.end()
            back.end()
        assert (there.missing, back.missing) == ([], [])
        assert not [line for line in agent.said() if "share one send buffer" in line]

        def queues() -> list[str]:
            return [line.split()[1] for line in h1.run(["ss", "-Hlun", "sport", "=", ":8285"]).stdout.splitlines()]

        wait_for("nothing waits in a socket that nobody reads", lambda: set(queues()) == {"0"})
        assert len(queues()) == 64
        assert subnet_of(h1) == subnet
