"""The reasons to drop a packet, for those who may not import the packet path itself, and what to know of each.

How loud the log is about a reason depends on whether it is a fault by itself. A warning: something is set up wrongly,
or somebody does what must not be. Information: it happens in a network that is in order, and may still be what somebody
is looking for. Debug: it is a host's daily life, and would say the same every minute for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from flannel_udp._fastpath.drops import SENTENCES, DropReason

DROP_REASONS = tuple(reason.name.lower() for reason in SENTENCES)
"""As `Dataplane.counters` names them."""


class About(NamedTuple):
    """How loud the log is about a reason, by direction, and what to look at: a flag, a key or a document."""

    out: int
    in_: int
    see: str

    def level(self, direction: str) -> int:
        """Return the log's level for packets that were dropped in this direction, "out" or "in"."""
        return self.out if direction == "out" else self.in_


_D, _I, _W = logging.DEBUG, logging.INFO, logging.WARNING
_DAMAGED = "something else sends to our UDP port, or the path damages datagrams: docs/metrics.md"

ABOUT: Mapping[DropReason, About] = {
    DropReason.BAD_VXLAN_HEADER: About(_W, _W, "something else sends to our UDP port: docs/metrics.md"),
    DropReason.OTHER_VNI: About(
        _W, _W, "another network, or a host that missed a change of Backend.VNI: docs/metrics.md"
    ),
    # A kernel peer asks for neighbours where somebody gave it more routes than flannel's.
    DropReason.NOT_IPV4_FRAME: About(_I, _I, "this device carries IPv4 alone: docs/metrics.md"),
    DropReason.NOT_IPV6_FRAME: About(_I, _I, "this device carries IPv6 alone: docs/metrics.md"),
    DropReason.OTHERS_MAC: About(
        _W, _W, "the sender knows a former VtepMAC of ours, does its agent run? docs/metrics.md"
    ),
    DropReason.BAD_OUTER_HEADER: About(_W, _W, "something else sends IP-in-IP to this host: docs/metrics.md"),
    DropReason.TOO_SHORT: About(_W, _W, _DAMAGED),
    # Outward: the kernel asks for IPv6 routers, or joins IPv6 groups, on every device that is up.
    DropReason.NOT_IPV4: About(_D, _W, _DAMAGED),
    DropReason.NOT_IPV6: About(_D, _W, _DAMAGED),
    DropReason.BAD_HEADER_LEN: About(_W, _W, _DAMAGED),
    DropReason.BAD_TOTAL_LEN: About(_W, _W, _DAMAGED),
    DropReason.BAD_HEADER_CHECKSUM: About(_W, _W, _DAMAGED),
    DropReason.BAD_OFFLOAD: About(_W, _W, "try --offload=off"),
    # The underlay says that it is busy, and TCP slows down.
    DropReason.CONGESTION_LOST: About(_I, _I, "a router of the underlay is congested: docs/metrics.md"),
    # Outward: mDNS and the like from pods, to 224.0.0.0/4: flannel's udp carries no multicast. Of IPv6 what the kernel
    # itself says to the routers and groups of a link.
    DropReason.NOT_UNICAST: About(_D, _D, "the overlay carries no multicast and no broadcast: docs/backends.md"),
    # Somebody looks for what is gone: a pod that has ended, a scan.
    DropReason.NO_ROUTE: About(_I, _I, "ask flannel-udp route get: docs/metrics.md"),
    DropReason.OWN_SUBNET: About(_I, _I, "no pod has this address, or the pods' bridge is missing: docs/cni.md"),
    DropReason.LOOPED: About(_W, _W, "that host's PublicIP, its --public-ip, must not lead into the overlay"),
    # traceroute lives on it.
    DropReason.TTL_EXPIRED: About(_I, _I, "a traceroute, or packets that go round in circles: docs/metrics.md"),
    DropReason.UNKNOWN_PEER: About(
        _W, _W, "is the sender behind NAT, or its lease gone? its --public-ip, our --source-check: docs/architecture.md"
    ),
    DropReason.SPOOFED_SOURCE: About(
        _W, _W, "the sender forwards for others, or lies: --source-check: docs/architecture.md"
    ),
    DropReason.SPOOFED_MAC: About(
        _W,
        _W,
        "the sender's device has not the VtepMAC of its lease: does its agent run? --source-check: docs/metrics.md",
    ),
    DropReason.NOT_OUR_SUBNET: About(
        _W, _W, "the sender has another registry, or an entry beside our subnet's bears our PublicIP: docs/metrics.md"
    ),
    DropReason.LEASE_EXPIRED: About(_W, _W, "is the registry away? --subnet-lease-renew-margin"),
    # Outward: path MTU discovery at work, the sender is told.
    DropReason.TOO_BIG: About(_I, _W, "the path carries less than the interface: Backend.MTU: docs/backends.md"),
    DropReason.UNREACHABLE: About(_W, _W, "ask ip route get for the peer's public IP: docs/metrics.md"),
    DropReason.REFUSED: About(_W, _W, "this host's firewall, or a full conntrack table: docs/firewall.md"),
    DropReason.NO_MEMORY: About(_W, _W, "the kernel is short of memory: docs/metrics.md"),
    # More comes than the host or the link can take: every network loses packets then.
    DropReason.QUEUE_FULL: About(_I, _I, "more than this host or its link carries: --workers, --tx-queue-len"),
    DropReason.DEVICE_DOWN: About(_W, _W, "look at ip link: docs/metrics.md"),
    DropReason.SYSTEM_ERROR: About(_W, _W, "look at the kernel's log, dmesg: docs/metrics.md"),
}
"""A test compares the keys with the reasons."""


def about(reason: str) -> tuple[str, About]:
    """Return the sentence that says what a reason of `DROP_REASONS` means, and what else there is to know of it."""
    known = DropReason[reason.upper()]
    return SENTENCES[known], ABOUT[known]
