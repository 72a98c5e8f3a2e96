"""What arrives on port 8285 and should not get in: strangers, peers that lie about who they are, broken packets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from flannel_udp.dataplane.reference import checksum, fault_of
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import acquaint, command_json, unanswered, up_with_peers, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.taps import Tap, is_echo_request, send_datagrams

pytestmark = NEEDS_NETNS

PORT = 8285
LIAR_SUBNET = "10.244.200.0/24"
LIAR_POD = "10.244.200.5"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Lab]:
    """h1 and h2 run our agent; h3 is registered and h4 is not, and both send what they like."""
    plan = Plan(fresh_name(), hosts=4, agents=("h1", "h2"), reservations={LIAR_SUBNET: "192.0.2.3"})
    with Lab(plan) as lab:
        acquaint([host for host in up_with_peers(lab).hosts if host.runs_agent])
        yield lab


class Visit:
    """What the agent of `host` did with a few datagrams that somebody sends it."""

    def __init__(self, host: Host, sender: Host, datagrams: list[bytes]) -> None:
        before = self._counters(host)
        pod = host.pods[0]
        with Tap(host, "flannel0") as tunnel, Tap(pod, "eth0") as at_pod:
            send_datagrams(sender, sender.underlay, host.underlay, PORT, datagrams)

            def all_counted() -> bool:
                return (self._counters(host) - before).total() == len(datagrams)

            wait_for(f"{len(datagrams)} datagrams are counted", all_counted)
            self.written, self.delivered = (
                # Without the pod's own answers, such as port unreachable, and the agent's own questions to its peers.
                [packet for packet in tap.packets() if packet[12:16] != pod.ip.packed and not is_echo_request(packet)]
                for tap in (tunnel, at_pod)
            )
        self.counted = dict(self._counters(host) - before)
        """Drops by reason, and ``delivered``."""

    @staticmethod
    def _counters(host: Host) -> Counter[str]:
        counters = host.control("/v1/status")["counters"]["in"]
        return Counter(counters["drops"]) + Counter(delivered=counters["packets"])


def to_pod(host: Host, source: str | IPv4Address) -> bytes:
    return bytes(IP(src=str(source), dst=str(host.pods[0].ip)) / UDP(sport=7, dport=7) / b"let me in")


def test_a_registered_peer_may_send_what_is_its_own(guarded: Lab) -> None:
    h1, _, liar, _ = guarded.hosts
    visit = Visit(h1, liar, [to_pod(h1, LIAR_POD)])
    assert visit.counted == {"delivered": 1}
    assert [IP(packet).src for packet in visit.delivered] == [LIAR_POD]


def test_a_stranger_is_dropped_whatever_it_claims(guarded: Lab) -> None:
    h1, h2, _, stranger = guarded.hosts
    sources: list[str | IPv4Address] = [LIAR_POD, h2.pods[0].ip, h1.pods[0].ip, "10.244.255.9", "198.51.100.7"]
    before = command_json(h1, "status")["counters"]["in"]["drops"].get("unknown_peer", 0)
    visit = Visit(h1, stranger, [to_pod(h1, source) for source in sources])
    assert visit.counted == {"unknown_peer": len(sources)}
    assert command_json(h1, "status")["counters"]["in"]["drops"]["unknown_peer"] == before + len(sources)
    assert (visit.written, visit.delivered) == ([], [])


def test_a_peer_that_uses_the_addresses_of_others_is_dropped(guarded: Lab) -> None:
    h1, h2, liar, _ = guarded.hosts
    sources = [h2.pods[0].ip, h1.pods[0].ip, IPv4Address(int(h1.pods[0].ip) - 1)]  # another's, ours, our bridge's
    visit = Visit(h1, liar, [to_pod(h1, source) for source in sources])
    assert visit.counted == {"spoofed_source": len(sources)}
    assert (visit.written, visit.delivered) == ([], [])


def test_nobody_may_send_through_us_to_elsewhere(guarded: Lab) -> None:
    h1, h2, liar, _ = guarded.hosts
    targets = [h2.pods[0].ip, LIAR_POD, "10.244.255.9", "198.51.100.7", "127.0.0.1", "224.0.0.5", "192.0.2.1"]
    datagrams = [bytes(IP(src=LIAR_POD, dst=str(target)) / UDP()) for target in targets]
    visit = Visit(h1, liar, datagrams)
    assert visit.counted == {"not_our_subnet": len(targets)}
    assert visit.written == []


@pytest.mark.parametrize(
    ("check", "from_stranger", "from_liar"),
    [("loose", {"unknown_peer": 1}, {"delivered": 1}), ("off", {"delivered": 1}, {"delivered": 1})],
)
def test_the_check_can_be_loosened(check: str, from_stranger: dict[str, int], from_liar: dict[str, int]) -> None:
    plan = Plan(
        fresh_name(),
        hosts=3,
        agents=("h1",),
        reservations={LIAR_SUBNET: "192.0.2.3", "10.244.201.0/24": "192.0.2.9"},
        agent_args=(f"--source-check={check}",),
    )
    with Lab(plan) as lab:
        h1, stranger, liar = lab.hosts
        spoofed = [to_pod(h1, "10.244.201.5")]
        assert Visit(h1, stranger, spoofed).counted == from_stranger
        assert Visit(h1, liar, spoofed).counted == from_liar


# Broken packets. What is wrong with each is told by the pure-Python twin of the packet path.


def whole(host: Host, size: int) -> bytes:
    """Return a good packet of `size` bytes."""
    packet = bytes(IP(src=LIAR_POD, dst=str(host.pods[0].ip), proto=253) / Raw(bytes(size - 20)))
    assert fault_of(packet) is None
    return packet


def with_right_checksum(packet: bytes) -> bytes:
    """Return the packet with its header checksum computed anew, so that nothing else is wrong with it."""
    header_len = (packet[0] & 15) * 4
    header = packet[:10] + b"\0\0" + packet[12:header_len]
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + packet[header_len:]


def cut_short(host: Host) -> list[bytes]:
    """Every length from 0 to 68 of a good packet of 69 bytes."""
    return [whole(host, 69)[:size] for size in range(69)]


def noise(host: Host) -> list[bytes]:
    """Every length from 0 to 68 of bytes that are no header at all."""
    return [bytes(size) for size in range(69)] + [b"\xff" * size for size in range(69)]


def other_versions(host: Host) -> list[bytes]:
    """Every version and header length, with the checksum of the header it claims and with the old one."""
    packets = []
    for first in range(256):
        packet = bytes([first]) + whole(host, 48)[1:]
        packets += [packet, with_right_checksum(packet)]
    return [packet for packet in packets if fault_of(packet)]


def lying_total_lengths(host: Host) -> list[bytes]:
    """Every total length up to beyond the packet's own, and the largest, under a right checksum."""
    packet = whole(host, 68)
    lengths = [size for size in (*range(140), 0x7FFF, 0x8000, 0xFFFF) if size != len(packet)]
    return [with_right_checksum(packet[:2] + size.to_bytes(2, "big") + packet[4:]) for size in lengths]


def wrong_checksums(host: Host) -> list[bytes]:
    """Every bit of the header turned over."""
    packet = whole(host, 60)
    flipped = []
    for bit in range(160):
        byte = packet[bit // 8] ^ (0x80 >> bit % 8)
        flipped.append(packet[: bit // 8] + bytes([byte]) + packet[bit // 8 + 1 :])
    return flipped


@pytest.mark.parametrize("make", [cut_short, noise, other_versions, lying_total_lengths, wrong_checksums])
def test_broken_packets_are_counted_by_what_is_wrong_and_never_delivered(guarded: Lab, make: Any) -> None:
    h1, _, liar, _ = guarded.hosts
    datagrams = make(h1)
    faults = Counter(fault_of(datagram) for datagram in datagrams)
    assert None not in faults
    pid = h1.agent_pid()
    visit = Visit(h1, liar, datagrams)
    assert visit.counted == dict(faults)
    assert (visit.written, visit.delivered) == ([], [])
    assert h1.agent_pid() == pid
    assert unanswered([h1.pods[0], guarded.hosts[1].pods[0]]) == []


def test_a_good_packet_with_options_is_delivered_as_it_came(guarded: Lab) -> None:
    h1, _, liar, _ = guarded.hosts
    options = b"\x01\x01\x01\x00" * 10  # three no-operations and an end of list: RFC 791 section 3.1
    base = bytes(IP(src=LIAR_POD, dst=str(h1.pods[0].ip), proto=253, ttl=9))
    packet = with_right_checksum(b"\x4f" + base[1:2] + (80).to_bytes(2, "big") + base[4:] + options + bytes(20))
    visit = Visit(h1, liar, [packet])
    assert visit.counted == {"delivered": 1}
    (written,) = visit.written
    assert written == with_right_checksum(packet[:8] + b"\x08" + packet[9:])


def test_a_datagram_to_another_port_is_nobodys(guarded: Lab) -> None:
    h1, _, liar, _ = guarded.hosts
    with Tap(h1, "flannel0") as tunnel:
        send_datagrams(liar, liar.underlay, h1.underlay, PORT + 1, [to_pod(h1, LIAR_POD)])
        visit = Visit(h1, liar, [to_pod(h1, LIAR_POD)])
        assert visit.counted == {"delivered": 1}
        assert [packet for packet in tunnel.packets() if packet[12:16] == IPv4Address(LIAR_POD).packed] == visit.written
