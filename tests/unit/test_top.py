"""`top`: what it makes of two looks at an agent, and how a frame is drawn in the room that there is."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from flannel_udp.admin import top as top_module
from flannel_udp.admin.shapes import PeerRow, Status
from flannel_udp.admin.show_top import Line, frame, sparkline, styled
from flannel_udp.admin.top import Top, TopDocument
from tests.support.status import DUAL, PEER, RUNNING, WAITING

BUSY: PeerRow = {
    **PEER,
    "host": None,
    "carrier": "userspace",
    "packets_out": 1_000,
    "bytes_out": 1_000_000,
    "packets_out_s": 1.0,
    "bytes_out_s": 100.0,
    "packets_in_s": 1.0,
    "bytes_in_s": 100.0,
    "refused_out": 0,
}
LONG: PeerRow = {
    **BUSY,
    "subnet": "fd00:10:244:ffff::/64",
    "public_ip": "2001:db8:1234:5678:9abc:def0:1234:5678",
    "host": "node-with-a-long-name.example.org",
    "bytes_out_s": 1.0,
}


class Agent:
    """What an agent would answer, and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1_000.0
        self.status: Status = RUNNING
        self.peers: list[PeerRow] = [BUSY, LONG]
        monkeypatch.setattr(top_module, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(top_module, "fetch_status", lambda *_: self.status)
        monkeypatch.setattr(top_module, "fetch_busiest_peers", lambda *_: self.peers)

    def carry(self, packets: int, n_bytes: int, drops: int = 0) -> None:
        """Have carried so much more, all of it to the first peer."""
        assert self.status["counters"] is not None
        out = self.status["counters"]["out"]
        more = {
            "packets": out["packets"] + packets,
            "bytes": out["bytes"] + n_bytes,
            "drops": {**out["drops"], "no_route": out["drops"]["no_route"] + drops},
        }
        self.status = cast(Status, {**self.status, "counters": {**self.status["counters"], "out": more}})
        first = self.peers[0]
        assert first["packets_out"] is not None
        assert first["bytes_out"] is not None
        packets, n_bytes = first["packets_out"] + packets, first["bytes_out"] + n_bytes
        self.peers = [{**first, "packets_out": packets, "bytes_out": n_bytes}, *self.peers[1:]]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    return Agent(monkeypatch)


@pytest.fixture
def top() -> Top:
    return Top(Path("agent.sock"), "bytes")


def two_looks(agent: Agent, top: Top) -> TopDocument:
    top.look(10)
    agent.now_s += 2.0
    agent.carry(50, 5_000, drops=3)
    return top.look(10)


def texts(lines: list[Line]) -> list[str]:
    return [line.text for line in lines]


def test_the_first_look_has_the_agents_own_rates_of_peers_and_no_others(agent: Agent, top: Top) -> None:
    document = top.look(10)
    assert (document["over_s"], document["out"], document["in"]) == (None, None, None)
    assert [peer.get("bytes_out_s") for peer in document["peers"]] == [100.0, 1.0]


def test_rates_are_those_between_two_looks(agent: Agent, top: Top) -> None:
    document = two_looks(agent, top)
    assert document["over_s"] == 2.0
    assert document["out"] == {"packets_s": 25.0, "bytes_s": 2_500.0, "drops_s": {"no_route": 1.5}}
    assert document["in"] == {"packets_s": 0.0, "bytes_s": 0.0, "drops_s": {}}
    first = document["peers"][0]
    assert [first.get(name) for name in ("packets_out_s", "bytes_out_s", "packets_in_s", "bytes_in_s")] == [
        *(25.0, 2_500.0, 0.0, 0.0)
    ]
    assert document["status"] is agent.status


def test_another_agent_counts_from_its_own_start(agent: Agent, top: Top) -> None:
    two_looks(agent, top)
    agent.now_s += 1.0
    agent.status = {**RUNNING, "pid": RUNNING["pid"] + 1}
    document = top.look(10)
    assert (document["over_s"], document["out"]) == (None, None)
    agent.now_s += 1.0
    agent.carry(7, 700)
    found = top.look(10)["out"]
    assert found is not None
    assert found["packets_s"] == 7.0


def test_a_peer_that_was_not_there_before_has_the_agents_rates(agent: Agent, top: Top) -> None:
    agent.peers = [LONG]
    top.look(10)
    agent.now_s += 1.0
    agent.peers = [BUSY, LONG]
    assert top.look(10)["peers"][0].get("bytes_out_s") == 100.0


def test_an_older_agent_gives_all_peers_and_no_rates(agent: Agent, top: Top) -> None:
    agent.peers = [{**PEER, "subnet": f"10.1.{n}.0/24"} for n in range(20, 30)]
    agent.status = cast(Status, {name: fact for name, fact in RUNNING.items() if name not in ("last_errors",)})
    document = top.look(3)
    assert len(document["peers"]) == 3
    lines = texts(frame(document, top, 120, sparklines=False))
    assert lines[-1].split()[:3] == ["10.1.22.0/24", "192.0.2.2", "-"]
    agent.now_s += 1.0
    assert [peer.get("bytes_out_s") for peer in top.look(3)["peers"]] == [0.0] * 3


def test_a_much_older_agent_is_shown_as_far_as_it_tells(agent: Agent, top: Top) -> None:
    known = ("version", "pid", "uptime_s", "state", "ready", "registry", "subnet", "public_ip", "peers")
    agent.status = cast(Status, {name: fact for name, fact in RUNNING.items() if name in known})
    agent.peers = [cast(PeerRow, {"subnet": "10.1.16.0/24", "public_ip": "192.0.2.2"})]
    top.look(3)
    agent.now_s += 1.0
    lines = texts(frame(top.look(3), top, 80, sparklines=True))
    assert lines[:3] == [
        "running (ready), up 1 d 1 h",
        "subnet 10.1.15.0/24 at 192.0.2.1, no lease",
        "backend -, registry etcd",
    ]
    assert set(lines[-1].split()) == {"10.1.16.0/24", "-"}


def test_what_the_kernel_carries_is_counted_by_its_devices(agent: Agent, top: Top) -> None:
    device = {"packets_out": 10, "bytes_out": 1_000, "packets_in": 5, "bytes_in": 500}
    drops = {"tunnel_out": 1, "tunnel_in": 0, "interface_in": 7}
    agent.status = cast(Status, {**RUNNING, "counters": None, "devices": {"flannel.1": device}, "kernel_drops": drops})
    top.look(10)
    agent.now_s += 1.0
    grown = {name: count + 10 for name, count in device.items()}
    more = {**drops, "tunnel_out": 3, "interface_in": 9}
    agent.status = cast(Status, {**agent.status, "devices": {"flannel.1": grown}, "kernel_drops": more})
    document = top.look(10)
    assert document["out"] == {"packets_s": 10.0, "bytes_s": 10.0, "drops_s": {"tunnel_out": 2.0}}
    assert document["in"] == {"packets_s": 10.0, "bytes_s": 10.0, "drops_s": {}}
    agent.now_s += 1.0
    agent.status = cast(Status, {**agent.status, "devices": {"flannel.1": device}})  # made anew
    again = top.look(10)["out"]
    assert again is not None
    assert again["packets_s"] == 0.0


def test_where_nobody_counts_there_are_dashes(agent: Agent, top: Top) -> None:
    agent.status = {**WAITING}
    agent.peers = []
    lines = texts(frame(top.look(10), top, 80, sparklines=True))
    assert lines[0] == "waiting for configuration (not ready), up 5 s"
    assert "out      - B/s      - p/s" in lines
    assert lines[-1] == "no peers"


def test_a_frame_says_how_the_agent_is_and_who_is_busy(agent: Agent, top: Top) -> None:
    lines = texts(frame(two_looks(agent, top), top, 200, sparklines=False))
    assert lines[:8] == [
        "running (ready), up 1 d 1 h",
        "subnet 10.1.15.0/24 at 192.0.2.1, lease ends in 23 h 59 min",
        "backend udp, registry etcd, revision 42",
        "2 peers: 1 heard, 1 idle",
        "out  2.50k B/s     25 p/s 1.5 drops/s",
        "in       0 B/s      0 p/s",
        "drops out no_route: 1.5/s",
        "busiest first, by bytes",
    ]
    assert lines[8].split()[:2] == ["host", "subnet"]
    assert lines[9].split()[0] == "10.1.16.0/24"
    assert "2.50k" in lines[9]
    assert lines[10].split()[:2] == ["node-with-a-long-name.example.org", "fd00:10:244:ffff::/64"]


@pytest.mark.parametrize("width", [40, 41, 60, 80, 100, 132, 200])
@pytest.mark.parametrize("sparklines", [True, False])
def test_no_line_is_longer_than_the_terminal_is_wide_and_no_subnet_is_cut(
    agent: Agent, top: Top, width: int, *, sparklines: bool
) -> None:
    agent.status = {**DUAL, "problems": ["peer 192.0.2.3 (10.1.99.0/24): packets go there and nothing comes back"]}
    lines = texts(frame(two_looks(agent, top), top, width, sparklines=sparklines))
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for whole in ("10.1.16.0/24", "fd00:10:244:ffff::/64", "fd00:1:0:15::/64", "2001:db8::1", "10.1.99.0/24", "2.50k"):
        assert whole in text


def test_sparklines_show_how_it_was(agent: Agent, top: Top) -> None:
    for n_bytes in (0, 1_000, 4_000, 8_000):
        agent.carry(1, n_bytes)
        top.look(10)
        agent.now_s += 1.0
    lines = texts(frame(top.look(10), top, 80, sparklines=True))
    out = next(line for line in lines if line.startswith("out"))
    assert out.rstrip().endswith(" ▂▅█")


@pytest.mark.parametrize(
    ("rates", "line"),
    [
        ([], "    "),
        ([0.0, 0.0], "    "),
        ([1.0], "   █"),
        ([0.0, 0.1, 4.0, 8.0], " ▁▅█"),
        ([9.0, 1.0, 2.0, 3.0, 4.0], "▂▃▃▄"),
    ],
)
def test_a_sparkline_is_as_high_as_the_highest_of_all(rates: list[float], line: str) -> None:
    assert sparkline(rates, 4) == line


def test_a_terminal_without_unicode_gets_other_bars(agent: Agent, top: Top) -> None:
    lines = texts(frame(two_looks(agent, top), top, 120, sparklines=True, encoding="ascii"))
    assert all(line.isascii() for line in lines)
    assert any("#" in line for line in lines)


def test_colours_are_left_out_where_nobody_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    lines = [Line("ready [b]10.1.16.0/24[/b]", "green")]
    assert styled(lines, 80) == ["\x1b[32mready [b]10.1.16.0/24[/b]\x1b[0m"]
    monkeypatch.setenv("NO_COLOR", "1")
    assert styled(lines, 80) == ["ready [b]10.1.16.0/24[/b]"]
