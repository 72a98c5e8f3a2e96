"""A full neighbour table, which no kernel since Linux 5.0 has of entries that are set, is named with what to raise."""

from __future__ import annotations

import errno
from ipaddress import IPv4Network, IPv6Network

import pytest

from flannel_udp.backend.vxlan.entries import why_no_neighbour
from flannel_udp.host.rtnetlink import Refusal
from flannel_udp.model import Prefix


@pytest.mark.parametrize(
    ("subnet", "setting"),
    [
        (IPv4Network("10.1.16.0/24"), "net.ipv4.neigh.default.gc_thresh3"),
        (IPv6Network("fd00:1:16::/64"), "net.ipv6.neigh.default.gc_thresh3"),
    ],
)
def test_a_full_table_is_named_with_its_setting(subnet: Prefix, setting: str) -> None:
    full = why_no_neighbour(Refusal(errno.ENOBUFS, "No buffer space available"), subnet)
    assert full == f"the kernel's table of them is full: raise {setting}"


def test_another_reason_is_the_kernels_own() -> None:
    assert why_no_neighbour(Refusal(errno.ENODEV, "No such device"), IPv4Network("10.1.16.0/24")) == "No such device"
