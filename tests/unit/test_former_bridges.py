"""Which addresses of a bridge keep CNI's plugin `bridge` from putting pods on it."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest

from flannel_udp.host.former_bridges import refused_for

OURS = {4: "10.1.16.1/24", 6: "fd00:1:0:16::1/64"}
REFUSED = [
    ("", None),
    ("10.1.16.1/24", None),
    ("10.1.16.1/24 10.244.3.1/24", None),
    ("10.1.15.1/24", "10.1.15.1/24"),
    ("10.244.3.1/24", "10.244.3.1/24"),
    ("10.244.3.1/24 10.1.16.1/24", "10.244.3.1/24"),
    ("10.1.16.1/16", "10.1.16.1/16"),
    ("10.1.16.9/24", "10.1.16.9/24"),
    ("fd00:1:0:15::1/64", None),
    ("fd00:1:0:16::1/64", None),
    ("fd00:1:0:16::1/56", "fd00:1:0:16::1/56"),
    ("fd00:1:0:16::1/80", "fd00:1:0:16::1/80"),
    ("fd00:1:0:15::1/64 fd00:1:0:16::9/64", "fd00:1:0:16::9/64"),
]
"""What a bridge has, in the kernel's order, and which of these is refused beside ours; netns tests ask the plugin."""


@pytest.mark.parametrize(("addresses", "refused"), REFUSED)
def test_the_first_ipv4_address_and_overlapping_ipv6_ones_are_refused(addresses: str, refused: str | None) -> None:
    wanted = ip_interface(OURS[6 if ":" in addresses else 4])
    found = refused_for(map(ip_interface, addresses.split()), wanted)
    assert found == (None if refused is None else ip_interface(refused))
