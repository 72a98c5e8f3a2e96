"""`capture` of a live agent: as lines, as a file for others, and whatever goes wrong with it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host, Pod
from flannel_udp.lab.plan import Plan
from flannel_udp.model import PLACES
from tests.support.agents import Agent, acquaint, command_line, up_with_peers, wait_for, wait_for_peers
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.pcapng import File, read_pcapng
from tests.support.transfer import Transfer

pytestmark = NEEDS_NETNS

NOBODY = "10.244.255.7"
NO_ROUTE = "dropped: no_route: no lease covers the destination"
ONE_AT_A_TIME = "captures packets of this agent already, and one can at a time: end that first"


class Viewer:
    """`capture` on a host, which writes its lines to one file and what it says to another; it has begun inside.

    It is begun again as long as the agent has not noticed that the capture before has ended.
    """

    def __init__(self, host: Host, folder: Path, *flags: str) -> None:
        self.host, self.flags = host, flags
        self.shown, self.said = folder / "shown", folder / "said"

    def __enter__(self) -> Self:
        self._begin()
        wait_for("it has begun", self._has_begun)
        return self

    def _has_begun(self) -> bool:
        if self.process.poll() is not None and ONE_AT_A_TIME in self.said.read_text():
            self._begin()
        return "capturing" in self.said.read_text()

    def _begin(self) -> None:
        argv = [sys.executable, "-m", "flannel_udp", "capture", *self.flags]
        with self.shown.open("w") as out, self.said.open("w") as err:
            self.process = self.host.popen(
                [*argv, "--control-socket", str(self.host.control_socket)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def lines(self) -> list[str]:
        """Return the lines so far, without their times."""
        text = self.shown.read_text()
        return [line.split(" ", 1)[1] for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait_for(self, *parts: str) -> None:
        """Wait for a line that has all these parts."""
        wait_for(
            f"{parts} in {self.lines()}", lambda: any(all(part in line for part in parts) for line in self.lines())
        )

    def end(self, number: int = signal.SIGINT) -> str:
        """End it, and return what it has said at the end."""
        self.process.send_signal(number)
        assert self.process.wait(60) == 0, self.said.read_text()
        return self.said.read_text().splitlines()[-1]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two hosts that know each other; every test leaves them so."""
    with Lab(Plan(fresh_name(), hosts=2)) as lab:
        acquaint(up_with_peers(lab).hosts)
        yield lab


@pytest.fixture
def pods(lab: Lab) -> tuple[Pod, Pod]:
    return lab.hosts[0].pods[0], lab.hosts[1].pods[0]


def ping(pod: Pod, address: object) -> None:
    pod.run(["ping", "-c1", "-W1", str(address)], check=False)


def ping_until_it_ends(process: subprocess.Popen[str], pod: Pod, address: object) -> None:
    """Let packets pass until a capture, which begins some time, has ended by them."""

    def has_ended() -> bool:
        ping(pod, address)
        return process.poll() is not None

    wait_for("the capture ends", has_ended)


def capture(host: Host, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run it, and again as long as the agent has not noticed that the capture before has ended."""
    done: list[subprocess.CompletedProcess[str]] = []

    def is_let_in() -> bool:
        done[:] = [command_line(host, "capture", *flags)]
        return ONE_AT_A_TIME not in done[0].stderr

    wait_for("the agent notices that nobody captures", is_let_in)
    return done[0]


def capture_by_shell(host: Host, command: str, pod: Pod, address: object) -> tuple[str, str]:
    """Do the same by a shell while packets pass, which end it; return what it prints and what it says."""
    told: list[str] = []

    def is_let_in() -> bool:
        with host.popen(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as shell:
            try:
                ping_until_it_ends(shell, pod, address)
            finally:
                shell.kill()
            told[:] = shell.communicate()
        return ONE_AT_A_TIME not in told[1]

    wait_for("the agent notices that nobody captures", is_let_in)
    return told[0], told[1]


def test_a_ping_and_a_drop_are_told_line_by_line_and_nobody_else_can_look(
    lab: Lab, pods: Sequence[Pod], tmp_path: Path
) -> None:
    h1 = lab.hosts[0]
    p1, p2 = pods
    with Viewer(h1, tmp_path) as viewer:
        ping(p1, p2.ip)
        ping(p1, NOBODY)
        there, back, peer = f"{p1.ip} > {p2.ip}", f"{p2.ip} > {p1.ip}", "peer 192.0.2.2"
        for line in (
            f"out inner {there}, ICMP echo request, 84 bytes; forwarded; {peer}",
            f"out outer 192.0.2.1:8285 > 192.0.2.2:8285 UDP: {there}, ICMP echo request, 84 bytes; sent; {peer}",
            f"in outer 192.0.2.2:8285 > 192.0.2.1:8285 UDP: {back}, ICMP echo reply, 84 bytes; accepted; {peer}",
            f"in inner {back}, ICMP echo reply, 84 bytes; delivered; {peer}",
            f"out inner {p1.ip} > {NOBODY}, ICMP echo request, 84 bytes; {NO_ROUTE}",
        ):
            viewer.wait_for(line)

        other = command_line(h1, "capture", "--for=1")
        said = f"flannel-udp: process {viewer.process.pid} {ONE_AT_A_TIME}\n"
        assert (other.returncode, other.stdout, other.stderr) == (1, "", said)
        assert viewer.end().endswith(" packets, none lost")


def so_far(path: Path) -> File:
    """Return what is in a file that is written just now."""
    return read_pcapng(path, growing=True)


def captured(host: Host, pods: Sequence[Pod], folder: Path, *flags: str) -> tuple[Path, File]:
    """Return a file with a ping, TCP, and a packet for nobody, as far as the flags want them."""
    path = folder / "some.pcapng"
    p1, p2 = pods
    with Viewer(host, folder, "-w", str(path), *flags) as viewer:
        ping(p1, p2.ip)
        with Transfer(p1, p2, 300_000):
            pass
        ping(p1, NOBODY)
        wait_for("the last one", lambda: any("no_route" in packet.comment for packet in so_far(path).packets))
        assert " none lost" in viewer.end(signal.SIGTERM)
    return path, read_pcapng(path)


def test_a_file_has_all_places_with_super_packets_drops_and_what_was_lost(
    lab: Lab, pods: Sequence[Pod], tmp_path: Path
) -> None:
    path, found = captured(lab.hosts[0], pods, tmp_path)
    assert found.interfaces == [*PLACES]
    by_place = {place: [packet for packet in found.packets if packet.interface == place] for place in PLACES}
    assert all(by_place.values())
    for place, packets in by_place.items():
        assert found.delivered[place] == len(packets)
        assert found.received[place] == len(packets) + found.lost[place]
    assert any("segments of" in packet.comment and packet.n_bytes > 1472 for packet in by_place["out inner"])
    assert all(packet.n_bytes <= 1500 for packet in by_place["out outer"])
    if shutil.which("tshark") is None:
        pytest.skip("tshark (package tshark) is not here to read it, too")
    fields = ["frame.interface_name", "ip.src", "frame.comment"]
    done = subprocess.run(
        ["tshark", "-n", "-r", str(path), "-d", "udp.port==8285,ip", "-T", "fields", "-E", "occurrence=l"]
        + [word for field in fields for word in ("-e", field)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    rows = [tuple(line.split("\t")) for line in done.stdout.splitlines()]
    assert [(interface, comment) for interface, _, comment in rows] == [
        (packet.interface, packet.comment) for packet in found.packets
    ]
    assert ("out outer", str(pods[0].ip), "sent; peer 192.0.2.2") in rows  # the inner packet, read by tshark
    assert ("out inner", str(pods[0].ip), NO_ROUTE) in rows


def test_only_what_is_wanted_is_shown(lab: Lab, pods: Sequence[Pod], tmp_path: Path) -> None:
    h1 = lab.hosts[0]
    _, found = captured(h1, pods, tmp_path, "--dropped", "--proto=icmp", f"--subnet={NOBODY}/32", "--reason=no_route")
    assert {(packet.interface, packet.n_bytes) for packet in found.packets} == {("out inner", 84)}
    assert found.comment == f"flannel-udp capture --subnet={NOBODY}/32 --proto=1 --dropped --reason=no_route"
    # After the transfer the agent asks by echoes of its own how long packets on that path may be.
    of_the_pod = ("--peer=192.0.2.2", "--at=outer", "--proto=icmp", f"--subnet={pods[1].ip}/32")
    with Viewer(h1, tmp_path, *of_the_pod, "--count=2") as viewer:
        ping(pods[0], NOBODY)
        ping(pods[0], pods[1].ip)
        assert viewer.process.wait(60) == 0
        assert [line[:9] for line in viewer.lines()] == ["out outer", "in outer "]
    assert capture(h1, "--for=1", "--peer=192.0.2.77", "--sample=1/2", "--snaplen=64").returncode == 0
    with Viewer(h1, tmp_path, "--json", "--count=1", "--dropped") as viewer:
        ping(pods[0], NOBODY)
        assert viewer.process.wait(60) == 0
        told = json.loads(viewer.shown.read_text())
        assert (told["place"], told["reason"], told["destination"]) == ("out inner", "no_route", NOBODY)


def test_a_reader_that_goes_away_ends_it_quietly(lab: Lab, pods: Sequence[Pod], tmp_path: Path) -> None:
    h1 = lab.hosts[0]
    with Viewer(h1, tmp_path) as viewer:
        viewer.process.kill()  # with nobody who could say goodbye
        viewer.process.wait()
    command = f"{sys.executable} -m flannel_udp capture -w - --control-socket {h1.control_socket} | head -c 1"
    out, err = capture_by_shell(h1, f"{command}; echo ${{PIPESTATUS[0]}}", pods[0], pods[1].ip)
    assert out.splitlines()[-1].endswith("141")
    assert err == "flannel-udp: capturing, until Ctrl-C\n"
    assert capture(h1, "--for=1").returncode == 0  # nothing is left on


def test_a_file_that_cannot_be_written_is_one_line(lab: Lab, tmp_path: Path) -> None:
    h1 = lab.hosts[0]
    for path, why in (
        ("/dev/full", "No space left on device"),
        (str(tmp_path / "no" / "x"), "No such file or directory"),
    ):
        done = capture(h1, "-w", path)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"flannel-udp: cannot write {path}: {why}")
    command = f"exec {sys.executable} -m flannel_udp capture --json --control-socket {h1.control_socket} > /dev/full"
    _, err = capture_by_shell(h1, command, h1.pods[0], NOBODY)
    assert err.splitlines()[1:] == ["flannel-udp: cannot write the output: No space left on device"]
    kept = tmp_path / "kept"
    kept.write_text("what was here")
    argv = [sys.executable, "-m", "flannel_udp", "capture", "-w", str(kept), f"--control-socket={tmp_path / 'nobody'}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("flannel-udp: flannel-udp is not running: nothing answers on ")
    assert kept.read_text() == "what was here"


def test_it_ends_with_the_agent_and_what_was_captured_stays(lab: Lab, pods: Sequence[Pod], tmp_path: Path) -> None:
    h1 = lab.hosts[0]
    h1.stop_agent()
    path = tmp_path / "some.pcapng"
    with Agent(h1) as agent:
        agent.wait_ready()
        wait_for_peers(lab.hosts)
        with Viewer(h1, tmp_path, "-w", str(path)) as viewer:
            ping(pods[0], pods[1].ip)
            wait_for("packets", lambda: bool(so_far(path).packets))
            assert agent.stop() == 0
            assert viewer.process.wait(60) == 1
            assert viewer.said.read_text().splitlines()[-1] == (
                f"flannel-udp: the agent on {h1.control_socket} has ended, and so has the capture"
            )
            assert read_pcapng(path).delivered["out inner"] >= 1
    h1.start_agent()
    h1.wait_ready()
    wait_for_peers(lab.hosts)
