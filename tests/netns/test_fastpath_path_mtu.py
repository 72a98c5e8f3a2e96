"""What a narrow path does, in a namespace whose way to 127.0.0.2 carries 1,000 bytes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP

from flannel_udp.lab.netns import call_inside
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.engine_rig import EngineRig, compile_table, small_table
from tests.support.labs import NEEDS_NETNS, fresh_name

PATH_MTU = 1_000

Inside = Callable[[Callable[[], None]], None]

pytestmark = [
    *NEEDS_NETNS,
    pytest.mark.parametrize("offload", [NO_OFFLOAD, Offload()], ids=["one by one", "in runs"]),
]


def packet(size: int, number: int = 0, dst: str = "10.1.2.7", **fields: Any) -> bytes:
    return bytes(IP(src="10.1.1.5", dst=dst, id=number, **fields) / UDP() / bytes(size - 28))


def set_path_mtu(mtu: int, table: str = "local") -> None:
    """Let the way to 127.0.0.2 carry `mtu` bytes, in the namespace that we are in."""
    route = ["route", "replace", "local", "127.0.0.2", "dev", "lo", "mtu", "lock", str(mtu), "table", table]
    subprocess.run(["ip", *route], check=True)


@pytest.fixture
def inside() -> Iterator[Inside]:
    """Run a function in the namespace."""
    name = f"fu-{fresh_name()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        call_inside(name, lambda: set_path_mtu(PATH_MTU))
        yield lambda body: call_inside(name, body)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_what_may_not_be_fragmented_is_dropped_and_the_rest_of_its_run_is_sent(
    offload: Offload, inside: Inside
) -> None:
    @inside
    def check() -> None:
        with EngineRig(small_table(), offload=offload) as rig:
            for number in range(3):
                rig.from_tun(packet(1_400, flags="DF"))
                rig.from_tun(packet(100, number, flags="DF"))
            rig.poll()
            assert [IP(datagram).id for datagram in rig.to_peer("127.0.0.2")] == [0, 1, 2]
            assert rig.drops("out") == {"too_big": 3}


def test_what_may_be_fragmented_arrives_whole(offload: Offload, inside: Inside) -> None:
    @inside
    def check() -> None:
        with EngineRig(small_table(), offload=offload) as rig:
            for number in range(5):
                rig.from_tun(packet(1_400, number))
            rig.from_tun(packet(1_400, 9, flags="DF"))
            rig.poll()
            assert [(IP(got).id, len(got)) for got in rig.to_peer("127.0.0.2")] == [(n, 1_400) for n in range(5)]
            assert rig.drops("out") == {"too_big": 1}


def test_once_the_limit_is_known_the_kernel_is_not_asked_again(offload: Offload, inside: Inside) -> None:
    @inside
    def check() -> None:
        with EngineRig(small_table(), offload=offload) as rig:
            rig.from_tun(packet(1_400, flags="DF"))
            rig.poll()
            before = rig.engine.counters()["system_calls"]["udp_sends"]
            for _ in range(10):
                rig.from_tun(packet(1_400, flags="DF"))
                rig.from_tun(packet(PATH_MTU - 28 + 1, flags="DF"))
            rig.poll()
            assert rig.engine.counters()["system_calls"]["udp_sends"] == before
            assert rig.drops("out") == {"too_big": 21}
            rig.from_tun(packet(PATH_MTU - 28, flags="DF"))
            rig.poll()
            assert len(rig.to_peer("127.0.0.2")) == 1


def test_what_may_be_fragmented_costs_one_call_for_many_once_the_limit_is_known(
    offload: Offload, inside: Inside
) -> None:
    n = 60

    @inside
    def check() -> None:
        with EngineRig(small_table(), offload=offload) as rig:
            rig.from_tun(packet(1_400))
            rig.poll()
            before = rig.engine.counters()["system_calls"]["udp_sends"]
            for number in range(n):
                rig.from_tun(packet(1_400, number))
            rig.from_tun(packet(100, n, flags="DF"))
            rig.poll()
            assert [IP(got).id for got in rig.to_peer("127.0.0.2")] == [0, *range(n), n]
            assert rig.engine.counters()["system_calls"]["udp_sends"] == before + 2
            assert rig.drops("out") == {}


def test_a_wider_path_is_used_at_once_when_the_engine_is_told_and_a_narrower_one_learnt_anew(
    offload: Offload, inside: Inside
) -> None:
    @inside
    def check() -> None:
        with EngineRig(small_table(), offload=offload) as rig:
            rig.from_tun(packet(1_400, flags="DF"))
            rig.poll()
            set_path_mtu(1_450)
            rig.engine.forget_path_mtus()
            for size in (1_400, 1_450 - 28, 1_450 - 28 + 1):
                rig.from_tun(packet(size, flags="DF"))
            rig.poll()
            assert list(map(len, rig.to_peer("127.0.0.2"))) == [1_400, 1_450 - 28]
            assert rig.drops("out") == {"too_big": 2}


def test_other_descriptors_mean_other_paths(offload: Offload, inside: Inside) -> None:
    @inside
    def check() -> None:
        with EngineRig(small_table(), offload=offload) as rig:
            rig.from_tun(packet(1_400, flags="DF"))
            rig.poll()
            set_path_mtu(1_450)
            rig.engine.attach(rig.tun_fd, rig.udp_fd)
            rig.from_tun(packet(1_400, flags="DF"))
            rig.poll()
            assert len(rig.to_peer("127.0.0.2")) == 1


def test_the_limit_is_that_of_the_way_that_packets_take(offload: Offload, inside: Inside) -> None:
    """A rule by source address leads what the engine sends over another way than what has no address yet."""

    @inside
    def check() -> None:
        for words in (
            ("rule", "add", "pref", "10", "lookup", "local"),
            ("rule", "del", "pref", "0"),
            ("rule", "add", "pref", "5", "from", "127.0.0.1", "lookup", "100"),
        ):
            subprocess.run(["ip", *words], check=True)
        set_path_mtu(1_200, table="100")
        with EngineRig(small_table(), offload=offload) as rig:
            rig.from_tun(packet(1_400, flags="DF"))
            rig.poll()
            rig.from_tun(packet(1_200 - 28, flags="DF"))
            rig.poll()
            assert list(map(len, rig.to_peer("127.0.0.2"))) == [1_200 - 28]
            assert rig.drops("out") == {"too_big": 1}


@pytest.mark.parametrize("rule", [("tos", "0x10"), ("ipproto", "udp", "sport", "PORT", "dport", "PORT")], ids=str)
def test_the_limit_is_that_of_the_way_that_a_rule_leads_such_packets(
    rule: tuple[str, ...], offload: Offload, inside: Inside
) -> None:
    """A question without their TOS and port is answered for another way, which carries what was just refused."""

    @inside
    def check() -> None:
        for words in (("rule", "add", "pref", "10", "lookup", "local"), ("rule", "del", "pref", "0")):
            subprocess.run(["ip", *words], check=True)
        set_path_mtu(1_450)
        set_path_mtu(1_200, table="100")
        with EngineRig(small_table(), offload=offload, dscp=4, lanes=True) as rig:
            (port,) = {peer.getsockname()[1] for peer in rig.peers.values()}
            selector = [str(port) if word == "PORT" else word for word in rule]
            subprocess.run(["ip", "rule", "add", "pref", "5", *selector, "lookup", "100"], check=True)
            too_large = packet(1_400, flags="DF")
            rig.from_tun(too_large)
            rig.poll()
            assert rig.engine.try_packet(too_large)[5][2] == 1_200 - 28  # what its sender is told
            rig.from_tun(packet(1_200 - 28 + 1, flags="DF"))
            rig.from_tun(packet(1_200 - 28, flags="DF"))
            rig.from_tun(packet(1_400))
            rig.poll()
            assert sorted(map(len, rig.to_peer("127.0.0.2"))) == [1_200 - 28, 1_400]
            assert rig.drops("out") == {"too_big": 2}


def test_one_peers_limit_is_not_anothers(offload: Offload, inside: Inside) -> None:
    @inside
    def check() -> None:
        with EngineRig(small_table(), offload=offload) as rig:
            for number in range(2):
                rig.from_tun(packet(1_400, number, flags="DF"))
                rig.from_tun(packet(1_400, number, dst="10.1.3.7", flags="DF"))
                rig.poll()
            assert [IP(datagram).id for datagram in rig.to_peer("127.0.0.3")] == [0, 1]
            assert rig.to_peer("127.0.0.2") == []
            assert rig.drops("out") == {"too_big": 2}


def test_a_peer_that_gets_a_former_peers_index_does_not_get_its_limit(offload: Offload, inside: Inside) -> None:
    @inside
    def check() -> None:
        with EngineRig(small_table(), offload=offload) as rig:
            rig.from_tun(packet(1_400, flags="DF"))
            rig.poll()
            moved = small_table()
            for prefix, hop in moved.routes.items():
                if hop == IPv4Address("127.0.0.2"):
                    moved.routes[prefix] = IPv4Address("127.0.0.3")
            rig.engine.publish(compile_table(moved))
            rig.from_tun(packet(1_400, flags="DF"))
            rig.poll()
            assert len(rig.to_peer("127.0.0.3")) == 1
