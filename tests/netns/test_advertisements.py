"""Nobody's router advertisements are taken on devices of ours: no route and no address of this host comes of them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, IPv6
from scapy.layers.l2 import Ether

from flannel_udp.lab import netns
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import unanswered, wait_for, wait_for_pings
from tests.support.by_hand_vxlan import mac_of
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

DEVICE = "flannel-v6.1"
PREFIX = "2001:db8:bad::"


def setting(host: Host, device: str) -> str:
    path = Path(f"/proc/sys/net/ipv6/conf/{device}/accept_ra")
    return netns.call_inside(host.namespace, path.read_text).strip()


def set_taking(host: Host, device: str) -> None:
    """Have a host take advertisements although it forwards, as somebody may who means all its interfaces."""
    netns.call_inside(host.namespace, partial(Path(f"/proc/sys/net/ipv6/conf/{device}/accept_ra").write_text, "2\n"))


def learned(host: Host) -> list[str]:
    """Return what came of advertisements."""
    routes = host.run(["ip", "-6", "route", "show", "proto", "ra"]).stdout.splitlines()
    return [*routes, *(line for line in host.run(["ip", "-6", "-o", "address"]).stdout.splitlines() if PREFIX in line)]


def advertise(sender: Host, receiver: Host) -> None:
    """Send an advertisement as a peer, or a pod on it, can: right into the tunnel."""
    first = str(receiver.subnet_of(6)).split("/", maxsplit=1)[0]
    frame = (
        Ether(src=mac_of(sender, DEVICE), dst=mac_of(receiver, DEVICE))
        / IPv6(src="fe80::bad", dst=first, hlim=255)
        / ICMPv6ND_RA(routerlifetime=1800)
        / ICMPv6NDOptPrefixInfo(prefix=PREFIX, prefixlen=64, L=0, A=1)
    )
    with sender.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((DEVICE, 0))
        raw.send(bytes(frame))


@pytest.fixture(scope="module")
def duo() -> Iterator[Lab]:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    plan = Plan(fresh_name(), hosts=2, families="46", config=config, agent_args=("--datapath=kernel",))
    with Lab(plan) as lab:
        wait_for_pings(lab, (4, 6))
        yield lab


def test_what_came_of_advertisements_goes_and_nothing_comes_of_the_next_ones(duo: Lab) -> None:
    h1, h2 = duo.hosts
    assert (setting(h1, DEVICE), setting(h1, "flannel.1")) == ("0", "0")
    before = h1.control("/v1/status")["host_repairs"]["ipv6"]

    def taken() -> bool:
        """Tell whether an advertisement was taken, by what was put right: that is there for a moment only."""
        if (count := h1.control("/v1/status")["host_repairs"]["ipv6"]) == before:
            set_taking(h1, DEVICE)
            advertise(h2, h1)
        return bool(count > before)

    wait_for("it is put right", taken)
    wait_for("no advertisement counts any more", lambda: setting(h1, DEVICE) == "0" and learned(h1) == [])
    advertise(h2, h1)
    assert unanswered(duo.pods(), 6) == []  # what was sent before these has arrived
    assert learned(h1) == []


def test_the_device_of_ipv4_takes_none_either_however_often_somebody_says_so(duo: Lab) -> None:
    h1, _ = duo.hosts
    set_taking(h1, "flannel.1")
    wait_for("it is put right", lambda: setting(h1, "flannel.1") == "0")


def test_flannel0_takes_none() -> None:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "udp"}}
    with Lab(Plan(fresh_name(), hosts=1, pods=0, families="46", config=config)) as lab:
        (h1,) = lab.hosts
        assert setting(h1, "flannel0") == "0"
        set_taking(h1, "flannel0")
        h1.configure("link set flannel0 mtu 1400")  # news of the device, which make the agent look
        wait_for("it is put right", lambda: setting(h1, "flannel0") == "0")
        wait_for("the MTU as well", lambda: "mtu 1452" in h1.run(["ip", "link", "show", "flannel0"]).stdout)
