"""The requests for the kernel's flannel.ipip, byte by byte: by the kernel's own header, and as pyroute2 reads them."""

from __future__ import annotations

import errno
import re
import socket
import struct
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from flannel_udp.backend.ipip import device
from flannel_udp.backend.ipip.device import IpipKind, takes_packets_to
from flannel_udp.host.links import Device, change_device, make_device
from flannel_udp.host.rtnetlink import Message
from flannel_udp.model import Ends, Interface

EXTERNAL = Interface("eth0", 2, 1_500, Ends(IPv4Address("192.0.2.1"), IPv4Address("198.51.100.1")))
HEADER = Path("/usr/include/linux/if_tunnel.h")
KIND = IpipKind()
DETAILS = {number: value for number, value in KIND.details(EXTERNAL).items() if value is not None}
NEW = make_device("flannel.ipip", "ipip", DETAILS, mtu=1_480)


def attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        length, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def decoded(message: Message) -> Any:
    """Return what pyroute2 makes of a request."""
    whole = struct.pack("=IHHII", 16 + len(message.body), message.type, message.flags, 1, 0) + message.body
    read = ifinfmsg(whole)
    read.decode()
    return read


def test_a_new_device_attribute_by_attribute() -> None:
    assert (NEW.type, NEW.flags) == (16, 0x600)  # RTM_NEWLINK; NLM_F_CREATE, NLM_F_EXCL
    assert NEW.body[:16] == bytes(16)  # struct ifinfomsg: no family, index, flags: it is down
    found = attributes(NEW.body[16:])
    assert found.keys() == {3, 4, 18}  # IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO
    assert (found[3], found[4]) == (b"flannel.ipip\0", struct.pack("=I", 1_480))
    info = attributes(found[18])
    assert info[1].rstrip(b"\0") == b"ipip"  # IFLA_INFO_KIND
    assert attributes(info[2]) == {
        1: bytes(4),  # LINK: whatever way the routes to the peer say
        2: bytes([192, 0, 2, 1]),  # LOCAL: the interface's address, not the public IP
        3: bytes(4),  # REMOTE: none
        4: b"\0",  # TTL: the inner packet's
        5: b"\0",  # TOS
        9: b"\4",  # PROTO: IPv4 in it
        10: b"\0",  # PMTUDISC: may be fragmented where the inner packet may
        15: b"\0\0",  # ENCAP_TYPE: none
    }


def test_another_decoder_reads_the_same() -> None:
    read = decoded(NEW)
    assert (read.get_attr("IFLA_IFNAME"), read.get_attr("IFLA_MTU")) == ("flannel.ipip", 1_480)
    info = read.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA")
    assert info.get_attr("IFLA_INFO_KIND") == "ipip"
    assert data.get_attr("IFLA_IPIP_LOCAL") == "192.0.2.1"
    assert data.get_attr("IFLA_IPIP_REMOTE") == "0.0.0.0"
    assert (data.get_attr("IFLA_IPIP_TTL"), data.get_attr("IFLA_IPIP_PMTUDISC")) == (0, 0)


def test_a_change_names_the_device_by_its_index_and_says_all() -> None:
    moved = change_device(7, "ipip", {**DETAILS, device.LOCAL: bytes([192, 0, 2, 77])})
    assert (moved.type, moved.flags) == (16, 0)
    read = decoded(moved)
    assert (read["index"], read["flags"], read["change"]) == (7, 0, 0)
    data = read.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    assert data.get_attr("IFLA_IPIP_LOCAL") == "192.0.2.77"
    assert len(data["attrs"]) == len(DETAILS)


@pytest.mark.skipif(not HEADER.exists(), reason="needs the kernel's headers (package linux-libc-dev)")
def test_the_numbers_are_those_of_the_kernels_header() -> None:
    (body,) = re.findall(r"enum \{\s*(IFLA_IPTUN_UNSPEC,.*?)\}", HEADER.read_text(), re.DOTALL)
    numbers = {name.removeprefix("IFLA_IPTUN_"): i for i, name in enumerate(re.findall(r"IFLA_IPTUN_\w+", body))}
    for name in ("LINK", "LOCAL", "REMOTE", "TTL", "TOS", "PROTO", "PMTUDISC", "ENCAP_TYPE", "COLLECT_METADATA"):
        assert getattr(device, name) == numbers[name]


def found_device(name: str = "tunl0", *, up: bool = True, **details: bytes) -> Device:
    numbers = {getattr(device, key.upper()): value for key, value in details.items()}
    return Device(
        index=9,
        name=name,
        mtu=1_480,
        up=up,
        carrier=True,
        loopback=False,
        resolves=False,
        master=0,
        kind="ipip",
        makes_ipv6_addresses=False,
        mac=0,
        alias="",
        details=numbers,
    )


def test_who_else_receives_what_comes_to_our_address() -> None:
    ours, other = EXTERNAL.address, socket.inet_aton("192.0.2.9")
    assert takes_packets_to(found_device(), ours)
    assert takes_packets_to(found_device(local=ours.packed), ours)
    assert not takes_packets_to(found_device(up=False), ours)
    assert not takes_packets_to(found_device(local=other), ours)
    assert not takes_packets_to(found_device(remote=other), ours)


def test_a_device_with_our_address_is_named_with_what_to_do() -> None:
    line = KIND.explain(errno.EEXIST, [found_device("tun7", local=EXTERNAL.address.packed)])
    assert line == "another ipip device has our address: tun7: remove it with 'ip link del tun7', if nobody needs it"
    assert KIND.explain(errno.EEXIST, []) is None
    assert KIND.explain(errno.EINVAL, [found_device()]) is None
