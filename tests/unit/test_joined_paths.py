"""Packet paths of one IP version each that are handed over, and told of, as one."""

from __future__ import annotations

import os
from ipaddress import ip_address

import pytest

from flannel_udp.backend.joined_paths import join_path_facts, share_out
from flannel_udp.backend.protocol import Handed, NetworkFacts
from flannel_udp.dataplane.dropped import KEPT
from flannel_udp.errors import FlannelError
from flannel_udp.model import DroppedPacket

FOUR, SIX = {"tun-0": 3, "vxlan-0": 4, "icmp": 5}, {"tun6-0": 6, "vxlan6-0": 7, "icmp6": 8}


def test_each_version_gets_what_was_its_own() -> None:
    shares = share_out(Handed({**FOUR, **SIX}, {"4": {"a": 4}, "6": {"a": 6}}), (4, 6))
    assert shares == {4: Handed(FOUR, {"a": 4}), 6: Handed(SIX, {"a": 6})}


def test_what_systemd_kept_has_no_state_and_what_says_none_of_a_version_makes_no_sense_later() -> None:
    assert share_out(Handed({**FOUR, **SIX}), (4, 6)) == {4: Handed(FOUR), 6: Handed(SIX)}
    assert share_out(Handed({**FOUR, **SIX}, {"4": 1}), (4, 6)) == {4: Handed(FOUR, {}), 6: Handed(SIX, {})}


def test_what_had_one_version_only_goes_on_with_that_where_both_are_on() -> None:
    assert share_out(Handed(SIX), (4, 6)) == {6: Handed(SIX)}


@pytest.mark.parametrize(
    ("names", "versions", "why"),
    [
        (FOUR, (6,), "its packets are IPv4, ours IPv6"),
        ({**FOUR, **SIX}, (4,), "its packets are IPv4 and IPv6, ours IPv4"),
        ({**FOUR, **SIX}, (6,), "its packets are IPv4 and IPv6, ours IPv6"),
    ],
)
def test_other_versions_are_refused_and_their_descriptors_closed(
    names: dict[str, int], versions: tuple[int, ...], why: str
) -> None:
    descriptors = {name: os.open(os.devnull, os.O_RDONLY) for name in names}
    with pytest.raises(FlannelError, match=f"^{why}$"):
        share_out(Handed(descriptors), versions)
    for fd in descriptors.values():
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def dropped(time_s: float, address: str) -> DroppedPacket:
    at = ip_address(address)
    return DroppedPacket("out", time_s, None, at.version, at, at, 17, 100)


def facts(offset: int, address: str, *offload: str) -> NetworkFacts:
    return NetworkFacts(
        offload=offload,
        worker_packets=[(1 + offset, 2 + offset), (3, 4)],
        counters={"out": {"packets": 4 + offset, "drops": {"no_route": offset}}},
        last_dropped={"no_route": [dropped(time_s + offset / 2, address) for time_s in range(4)]},
    )


def test_what_was_counted_is_added_up_and_the_newest_drops_are_kept() -> None:
    joined = join_path_facts(facts(0, "10.1.0.1", "tso", "uso"), facts(1, "fd00::1", "tso"))
    assert joined.offload == ["tso"]
    assert joined.worker_packets == [(3, 5), (6, 8)]
    assert joined.counters == {"out": {"packets": 9, "drops": {"no_route": 1}}}
    assert joined.last_dropped is not None
    times = [packet.time_s for packet in joined.last_dropped["no_route"]]
    assert times == [1.5, 2.0, 2.5, 3.0, 3.5][-KEPT:]


def test_where_the_kernel_carries_packets_nothing_is_said() -> None:
    assert join_path_facts(NetworkFacts(device="a"), NetworkFacts(device="b")) == NetworkFacts(device="a")
