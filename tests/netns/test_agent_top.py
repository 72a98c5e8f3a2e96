"""`peers` and `top` of live agents: what is shown is what travels, whoever carries it; who is silent is seen."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host, Pod
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import Agent, command_json, command_line, subnet_of, up_with_peers, wait_for, wait_for_peers
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.terminal import Terminal

pytestmark = NEEDS_NETNS

PACKET_BYTES = 1_000
A_SECOND = 200
OVER_S = 5
"""The total and the peers' are asked for one after the other, on a busy machine a tenth of a second apart or more."""


@contextmanager
def flow(source: Pod, target: Pod) -> Iterator[list[int]]:
    """Send so many packets of that size a second; yields a list whose only number is how many were sent."""
    sent, ended = [0], Event()

    def send() -> None:
        with source.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            began_s = time.monotonic()
            while not ended.wait(0.01):
                for _ in range(int((time.monotonic() - began_s) * A_SECOND) - sent[0]):
                    sock.sendto(bytes(PACKET_BYTES - 28), (str(target.ip), 9))
                    sent[0] += 1

    thread = Thread(target=send)
    thread.start()
    try:
        yield sent
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def trio() -> Iterator[Lab]:
    """Three hosts that know each other, by our own packet path; every test leaves them so."""
    with Lab(Plan(fresh_name(), hosts=3)) as lab:
        yield up_with_peers(lab)


def fields_of(host: Host, peer: Host) -> list[str]:
    """Return the line for scripts that a host's `peers` has for another one."""
    (line,) = command_line(host, "peers", str(peer.underlay), "-o").stdout.splitlines()
    return line.split("\t")


def is_about(rate: float | None) -> bool:
    """Tell whether that is the rate of a flow; its sender has no better clock than a busy machine."""
    return rate is not None and abs(rate / A_SECOND - 1) < 0.3


def argv(host: Host, *words: str) -> list[str]:
    return [sys.executable, "-m", "flannel_udp", *words, "--control-socket", str(host.control_socket)]


def test_rates_are_those_of_what_travels(trio: Lab) -> None:
    h1, h2, h3 = trio.hosts
    pod = str(h2.pods[0].ip)  # which finds its peer
    with flow(h1.pods[0], h2.pods[0]):
        wait_for("out", lambda: is_about(command_json(h1, "peers", pod)[0]["packets_out_s"]))
        wait_for("in", lambda: is_about(command_json(h2, "peers", str(subnet_of(h1)))[0]["packets_in_s"]))
        (row,) = command_json(h1, "peers", pod)
        documents: list[Any] = []

        def agree() -> bool:
            """Tell whether its total is that of its busiest peer: it asks for them one after the other."""
            documents[:] = [command_json(h1, "top", "--once", "-d", str(OVER_S))]
            rates = documents[0]["out"]["packets_s"], documents[0]["peers"][0]["packets_out_s"]
            return None not in rates and rates[0] > 0 and rates[0] == pytest.approx(rates[1], rel=0.05)

        wait_for("both say the same", agree)
        (document,) = documents
        wait_for("all together", lambda: is_about(command_json(h1, "top", "--once")["out"]["packets_s"]))
        by_bytes = ("peers", "--sort=bytes", "-o")
        wait_for("h2 first", lambda: command_line(h1, *by_bytes).stdout.split("\t")[0] == str(subnet_of(h2)))
    busiest, idle = document["peers"]
    assert (busiest["subnet"], idle["subnet"]) == (str(subnet_of(h2)), str(subnet_of(h3)))
    assert busiest["bytes_out_s"] == pytest.approx(busiest["packets_out_s"] * PACKET_BYTES, rel=0.05)
    assert row["bytes_out_s"] == pytest.approx(row["packets_out_s"] * PACKET_BYTES, rel=0.05)
    assert document["over_s"] >= OVER_S
    assert idle["bytes_out_s"] == 0
    assert (row["carrier"], row["host"], row["refused_out"]) == ("userspace", None, 0)


def test_drops_are_told_by_reason_as_they_happen(trio: Lab) -> None:
    h1 = trio.hosts[0]
    ping = h1.pods[0].popen(["ping", "-i0.05", "-W1", "10.244.255.7"], stdout=subprocess.DEVNULL)
    try:
        wait_for("drops", lambda: command_json(h1, "top", "--once", "-d", "1")["out"]["drops_s"].get("no_route", 0) > 5)
        text = "drops out no_route: "
        wait_for("it is shown", lambda: text in command_line(h1, "top", "--once", "-d", "1").stdout)
    finally:
        ping.kill()
        ping.wait()


def test_what_the_kernel_will_not_send_is_a_drop_of_its_peer(trio: Lab) -> None:
    h1, h2, _ = trio.hosts
    h1.configure(f"route add prohibit {h2.underlay}/32")
    try:
        with flow(h1.pods[0], h2.pods[0]):
            wait_for("it is refused", lambda: int(fields_of(h1, h2)[15]) > 10)
    finally:
        h1.configure(f"route del prohibit {h2.underlay}/32")


def test_a_peer_that_is_silent_is_seen_with_the_last_error_and_comes_back(trio: Lab) -> None:
    h1, _, h3 = trio.hosts
    with flow(h1.pods[0], h3.pods[0]):
        h3.kill_agent()
        try:
            wait_for("it is ill", lambda: fields_of(h1, h3)[4] == "ill")
            with Terminal(argv(h1, "top", "-d", "1"), 160, popen=h1.popen) as terminal:
                line = next(each for each in terminal.wait_for("last error") if str(h3.underlay) in each[:80])
                assert f"port unreachable, says {h3.underlay}" in line
                terminal.wait_for(f"problem: peer {h3.underlay} ")
                terminal.press("q")
                assert terminal.exit_code() == 0
                assert terminal.is_as_before()
            fields = fields_of(h1, h3)
            assert fields[16] == f"port unreachable, says {h3.underlay}"
            assert fields[17].startswith("packets go there and nothing comes back")
        finally:
            h3.start_agent()
            h3.wait_ready()
            wait_for_peers(trio.hosts)
        with flow(h3.pods[0], h1.pods[0]):
            wait_for("it is heard", lambda: fields_of(h1, h3)[4] == "heard")


def test_top_goes_on_with_an_agent_that_takes_over_and_beside_another_viewer(trio: Lab) -> None:
    h1, h2, _ = trio.hosts
    h1.stop_agent()
    with Agent(h1) as first, flow(h1.pods[0], h2.pods[0]):
        first.wait_ready()
        wait_for_peers(trio.hosts)
        with (
            Terminal(argv(h1, "top", "-d", "0.2"), 100, popen=h1.popen) as terminal,
            Terminal(argv(h1, "peers", "--watch=0.2"), 200, popen=h1.popen) as other,
        ):
            terminal.wait_for(str(subnet_of(h2)))
            other.wait_for(str(subnet_of(h2)))
            with Agent(h1, "--takeover") as second:
                assert first.exit_code() == 0
                second.wait_ready()
                wait_for(
                    "it counts", lambda: terminal.frame[0].startswith("running") and "k B/s" in "".join(terminal.frame)
                )
                wait_for("it is shown", lambda: other.frame[0].split()[0] == "subnet")
                for each in (terminal, other):
                    each.press("q")
                    assert each.exit_code() == 0
                    assert each.is_as_before()
                assert second.stop() == 0
    h1.start_agent()
    h1.wait_ready()
    wait_for_peers(trio.hosts)


def test_what_the_kernel_carries_is_counted_by_device() -> None:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    with Lab(Plan(fresh_name(), hosts=2, config=config)) as lab:
        h1, h2 = up_with_peers(lab).hosts
        with flow(h1.pods[0], h2.pods[0]):
            wait_for("it flows", lambda: is_about(command_json(h1, "top", "--once")["out"]["packets_s"]))
            document = command_json(h1, "top", "--once", "-d", "2")
            (line,) = command_line(h1, "peers").stdout.splitlines()[1:]
        (row,) = document["peers"]
        assert (row["carrier"], row["packets_out_s"], row["bytes_out"]) == ("kernel", None, None)
        assert line.split()[:3] == [str(subnet_of(h2)), str(h2.underlay), "kernel"]
        assert line.split().count("-") >= 9
        assert list(document["status"]["devices"]) == ["flannel.1"]
        assert document["out"]["bytes_s"] > document["out"]["packets_s"] * PACKET_BYTES * 0.9
