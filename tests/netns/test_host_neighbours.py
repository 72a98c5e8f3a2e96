"""Neighbours and forwarding entries against a real kernel: what is read of them, and who is in use."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from flannel_udp.host.neighbours import (
    FORWARDING,
    NEIGHBOURS,
    Table,
    TableReader,
    delete_entry,
    hosts_in_use,
    set_entry,
)
from flannel_udp.host.rtnetlink import Message, open_rtnetlink
from tests.support.agents import wait_for
from tests.support.labs import NEEDS_NETNS
from tests.support.one_host import OneHost, one_host

pytestmark = NEEDS_NETNS

MAC, OTHER_MAC = bytes.fromhex("0a0000000009"), bytes.fromhex("0a000000000a")
FIRST, HOST = IPv4Address("10.1.16.0").packed, IPv4Address("192.0.2.9").packed


@pytest.fixture
def host() -> Iterator[OneHost]:
    with one_host() as made:
        made.ip(
            "link add eth0 type veth peer name far0",
            "link set far0 up",
            "link set eth0 up",
            "address add 192.0.2.1/24 dev eth0",
            "link add flannel.1 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning",
            "link set flannel.1 up",
            "address add 10.1.15.0/32 dev flannel.1",
            "route add 10.1.16.0/24 via 10.1.16.0 dev flannel.1 onlink",
        )
        yield made


def index_of(host: OneHost) -> int:
    return host.call(socket.if_nametoindex, "flannel.1")


def do(host: OneHost, *messages: Message) -> None:
    def send() -> None:
        with open_rtnetlink("a test") as netlink:
            assert not any(netlink.apply(messages))

    host.call(send)


def read(host: OneHost, table: Table, reader: TableReader | None = None) -> dict[bytes, bytes]:
    def ask() -> dict[bytes, bytes]:
        with open_rtnetlink("a test") as netlink:
            return (reader or TableReader(table)).read(netlink, index)

    index = index_of(host)
    return host.call(ask)


def test_entries_are_read_as_they_were_set_again_and_again(host: OneHost) -> None:
    index, reader = index_of(host), TableReader(FORWARDING[4])
    do(host, set_entry(NEIGHBOURS[4], index, FIRST, MAC), set_entry(FORWARDING[4], index, MAC, HOST))
    assert read(host, NEIGHBOURS[4]) == {FIRST: MAC}
    assert read(host, FORWARDING[4], reader) == read(host, FORWARDING[4], reader) == {MAC: HOST}
    do(host, set_entry(NEIGHBOURS[4], index, FIRST, OTHER_MAC), set_entry(FORWARDING[4], index, OTHER_MAC, HOST))
    do(host, delete_entry(FORWARDING[4], index, MAC))
    assert read(host, NEIGHBOURS[4]) == {FIRST: OTHER_MAC}
    assert read(host, FORWARDING[4], reader) == {OTHER_MAC: HOST}


def test_an_entry_that_leads_elsewhere_has_another_value_and_those_for_broadcasts_are_no_hosts(host: OneHost) -> None:
    def fdb(what: str) -> None:
        done = host.call(_run, ["bridge", "fdb", "append", *what.split()])
        assert done == 0

    fdb("0a:00:00:00:00:09 dev flannel.1 dst 192.0.2.9 port 99 self permanent")
    fdb("00:00:00:00:00:00 dev flannel.1 dst 192.0.2.8 self permanent")
    fdb("0a:00:00:00:00:0a dev flannel.1 dst 192.0.2.9 self dynamic")
    assert read(host, FORWARDING[4]) == {MAC: b""}


def _run(command: list[str]) -> int:
    return subprocess.run(command, check=False).returncode


def test_who_was_sent_to_is_in_use_and_an_entry_that_was_just_set_is_not(host: OneHost) -> None:
    index = index_of(host)
    do(host, set_entry(NEIGHBOURS[4], index, FIRST, MAC), set_entry(FORWARDING[4], index, MAC, HOST))

    def in_use() -> set[int]:
        with open_rtnetlink("a test") as netlink:
            return hosts_in_use(netlink, index, 60.0)

    assert host.call(in_use) == set()
    with host.udp() as udp:

        def send_and_ask() -> bool:
            udp.sendto(b"hello", ("10.1.16.5", 9))
            return host.call(in_use) == {int.from_bytes(HOST, "big")}

        wait_for("it is in use", send_and_ask)
