"""ICMPv6 echoes of our own against a real kernel: answered, too large, unreachable, refused, and whose answer it is."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address

import pytest

from flannel_udp.errors import FlannelError
from flannel_udp.host.echo import EchoAnswer, Echoes
from flannel_udp.host.echo_wire import EchoWireV6
from flannel_udp.host.icmp_errors import IcmpError, IcmpErrors
from flannel_udp.lab.netns import call_inside
from flannel_udp.model import Address
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

HERE = """
link set lo up
link add eth0 type veth peer name eth0 netns {other}
link set eth0 up
address add 2001:db8::1/64 dev eth0 nodad
address add 2001:db8::11/64 dev eth0 nodad
route add 2001:db8:1::/64 via 2001:db8::2
route add unreachable 2001:db8:9::/64
"""
THERE = """
link set lo up
link set eth0 up
address add 2001:db8::2/64 dev eth0 nodad
route add prohibit 2001:db8:1::/64
"""
PEER = IPv6Address("2001:db8::2")


@pytest.fixture
def host() -> Iterator[str]:
    here, there = fresh_name(), fresh_name()
    for name in (here, there):
        subprocess.run(["ip", "netns", "add", name], check=True, timeout=PATIENCE_S)
    try:
        for name, script in ((here, HERE.format(other=there)), (there, THERE)):
            batch = ["ip", "-6", "-n", name, "-batch", "-"]
            subprocess.run(batch, input=script, text=True, check=True, timeout=PATIENCE_S)
        forward = ["ip", "netns", "exec", there, "sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1"]
        subprocess.run(forward, check=True, timeout=PATIENCE_S)
        yield here
    finally:
        for name in (here, there):
            subprocess.run(["ip", "netns", "delete", name], check=True, timeout=PATIENCE_S)


def ask(host: str, target: Address, source: Address | None = None, n_bytes: int = 64) -> EchoAnswer:
    async def once() -> EchoAnswer:
        with closing(Echoes(0x4242)) as echoes, closing(Echoes(0x4243)):  # the other one hears nothing of it
            return await echoes.ask(target, source, n_bytes, 5.0)

    return call_inside(host, lambda: asyncio.run(once()))


@pytest.mark.parametrize("n_bytes", [0, 64, 1500])
@pytest.mark.parametrize("source", [None, IPv6Address("2001:db8::11")])
def test_a_kernel_answers(host: str, n_bytes: int, source: Address | None) -> None:
    assert ask(host, PEER, source, n_bytes).answered


def test_larger_than_the_link_is_no_matter_of_fragments(host: str) -> None:
    assert ask(host, PEER, n_bytes=1501) == EchoAnswer(mtu=0)


def test_who_says_that_it_cannot_arrive_is_named(host: str) -> None:
    answer = ask(host, IPv6Address("2001:db8:1::7"))
    assert answer.unreachable == "unreachable, says 2001:db8::2"


@pytest.mark.parametrize("target", ["2001:db8:9::1", "2001:db8:77::1"])
def test_what_our_own_kernel_refuses_is_said(host: str, target: str) -> None:
    refused = ask(host, IPv6Address(target)).refused
    assert refused is not None and refused.startswith("our kernel: ")


def test_both_families_are_asked_by_one(host: str) -> None:
    async def both() -> list[bool]:
        with closing(Echoes(0x4242)) as echoes:
            targets: list[Address] = [IPv4Address("127.0.0.1"), PEER]
            return [(await echoes.ask(target, None, 64, 5.0)).answered for target in targets]

    assert call_inside(host, lambda: asyncio.run(both())) == [True, True]


def test_a_family_that_could_not_be_asked_at_the_start_is_asked_when_it_can_be(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> socket.socket:
        raise FlannelError("cannot open a raw socket for ICMPv6: Too many open files")

    async def ask_before_and_after() -> tuple[EchoAnswer, EchoAnswer]:
        with monkeypatch.context() as starting:
            starting.setattr(EchoWireV6, "open", refuse)
            echoes = Echoes(0x4242)
            before = await echoes.ask(PEER, None, 64, 5.0)
        with closing(echoes):
            return before, await echoes.ask(PEER, None, 64, 5.0)

    before, after = call_inside(host, lambda: asyncio.run(ask_before_and_after()))
    assert before == EchoAnswer(refused="cannot open a raw socket for ICMPv6: Too many open files")
    assert after.answered


def test_icmpv6_errors_about_our_datagrams_are_heard_and_no_others(host: str) -> None:
    async def hear() -> list[IcmpError]:
        heard: list[IcmpError] = []
        came = asyncio.Event()
        own = IPv6Address("2001:db8::1")

        def take(error: IcmpError) -> None:
            heard.append(error)
            came.set()

        with closing(IcmpErrors(own, lambda: {40_000}, 8285, take)):
            for sport, dport in ((40_000, 53), (40_001, 8285), (40_000, 8285)):
                with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
                    udp.bind((str(own), sport))
                    udp.sendto(b"x", (str(PEER), dport))
            await asyncio.wait_for(came.wait(), 10)
        return heard

    assert call_inside(host, lambda: asyncio.run(hear())) == [IcmpError(PEER, PEER, "port unreachable")]


FORGED: dict[int, tuple[int, int, int, Address]] = {
    4: (socket.AF_INET, socket.IPPROTO_ICMP, 0, IPv4Address("127.0.0.1")),
    6: (socket.AF_INET6, socket.IPPROTO_ICMPV6, 129, IPv6Address("::1")),
}


def forge(version: int, identifier: int, n: int = 1) -> None:
    """Send echo replies that anybody could have made."""
    family, protocol, kind, target = FORGED[version]
    head = struct.pack("!BBHHH", kind, 0, 0xFFFF - (kind << 8) - identifier, identifier, 0)  # ICMPv6's sum: the kernel
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        for _ in range(n):
            raw.sendto(head + bytes(16), (str(target), 0))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Echoes]:
    """Who was woken by something, once for each time."""
    woken: list[Echoes] = []
    take = Echoes._take

    def spy(echoes: Echoes, version: int, datagram: bytes, said_by: str) -> None:
        woken.append(echoes)
        take(echoes, version, datagram, said_by)

    monkeypatch.setattr(Echoes, "_take", spy)
    return woken


@pytest.mark.parametrize("version", [4, 6])
def test_answers_that_strangers_forge_wake_nobody(host: str, version: int, taken: list[Echoes]) -> None:
    async def ask_amid_forged_ones() -> bool:
        with closing(Echoes(0x4242)) as echoes:
            forge(version, 0x4242, 20)
            return (await echoes.ask(FORGED[version][3], None, 64, 5.0)).answered

    assert call_inside(host, lambda: asyncio.run(ask_amid_forged_ones()))
    assert len(taken) == 1  # ours, which came behind them


@pytest.mark.parametrize("version", [4, 6])
def test_two_agents_amid_a_take_over_hear_what_concerns_their_own_echoes(
    host: str, version: int, taken: list[Echoes]
) -> None:
    async def ask_in_turns() -> bool:
        with closing(Echoes(0x4242)) as old, closing(Echoes(0x4242)) as new:
            for echoes in (old, new, new):
                assert (await echoes.ask(FORGED[version][3], None, 64, 5.0)).answered
            return taken == [old, new, new]

    assert call_inside(host, lambda: asyncio.run(ask_in_turns()))


def test_who_asks_and_is_cancelled_as_the_answer_comes_ends(host: str) -> None:
    async def ends() -> bool:
        echoes = Echoes(0x4242)

        def answer_and_cancel() -> None:
            echoes.close()
            asking.cancel()

        def sent() -> None:
            asyncio.get_running_loop().call_soon(answer_and_cancel)

        asking = asyncio.create_task(echoes.ask(PEER, None, 64, 5.0, sent))
        await asyncio.wait([asking])
        return asking.cancelled()

    assert call_inside(host, lambda: asyncio.run(ends()))
