"""Whom the agent tells that a packet could not go on, and whom it must not tell (RFC 1812 section 4.3.2)."""

from __future__ import annotations

import socket
import time
from collections import Counter
from ipaddress import IPv4Address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from tests.support.agents import drops_of, subnet_of, wait_for
from tests.support.labs import NEEDS_NETNS
from tests.support.taps import IcmpErrors, put_on, quoted_id, send_raw

pytestmark = NEEDS_NETNS

NOWHERE = "10.244.255.7"  # in the overlay; agents pick among its first hundred subnets
ANSWERS_PER_S = 100  # to one destination
BURST = 10


def gateway_of(host: Host) -> IPv4Address:
    """Return the address that the host's kernel takes towards its pods."""
    return subnet_of(host).network_address + 1


def test_an_address_without_lease_is_answered_with_net_unreachable(pair: Lab) -> None:
    pod, host = pair.pods()[0], pair.hosts[0]
    shown = pod.run(["ping", "-c1", "-W20", NOWHERE], check=False).stdout
    assert f"From {gateway_of(host)} icmp_seq=1 Destination Net Unreachable" in shown


@pytest.mark.parametrize(
    "layer", [UDP(sport=5, dport=6), TCP(sport=5, dport=6), ICMP(type=8)], ids=["udp", "tcp", "ping"]
)
def test_the_answer_quotes_the_packet(pair: Lab, layer: Any) -> None:
    pod, host = pair.pods()[0], pair.hosts[0]
    packet = IP(src=str(pod.ip), dst=NOWHERE, id=77, ttl=40) / layer / b"some payload"
    with IcmpErrors(pod) as errors:
        send_raw(pod, packet)
        answer = errors.next()
    assert answer is not None
    assert (answer.src, answer.dst) == (str(gateway_of(host)), str(pod.ip))
    assert (answer[ICMP].type, answer[ICMP].code) == (3, 0)
    assert answer.ttl == 64
    quoted = answer["IP in ICMP"]
    assert (quoted.id, quoted.src, quoted.dst, quoted.ttl) == (77, str(pod.ip), NOWHERE, 39)
    assert bytes(answer)[20 + 8 + 20 :] == bytes(packet)[20:]


def test_a_pod_to_which_the_subnets_first_address_is_a_broadcast_one_hears_the_answer(pair: Lab) -> None:
    """As it is to all pods before Linux 5.14 (fib_add_ifaddr); rp_filter drops what comes from such an address."""
    pod, host = pair.pods()[0], pair.hosts[0]
    first = f"broadcast {subnet_of(host).network_address} dev eth0 table local proto kernel scope link src {pod.ip}"
    pod.configure(f"route add {first}")
    pod.run(["sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=2"])
    try:
        shown = pod.run(["ping", "-c1", "-W20", NOWHERE], check=False).stdout
        assert "Destination Net Unreachable" in shown
    finally:
        pod.run(["sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=0"])
        pod.configure(f"route del {first}")


def test_another_hosts_pod_and_the_host_itself_are_answered(pair: Lab) -> None:
    pod, (host, other) = pair.pods()[0], pair.hosts
    with IcmpErrors(pod) as errors:
        send_raw(pod, IP(src=str(pod.ip), dst=str(other.pods[0].ip), id=33, ttl=3) / UDP())
        answer = errors.next()
    assert answer is not None
    assert (quoted_id(answer), answer[ICMP].type) == (33, 11)
    assert answer.src == str(subnet_of(other).network_address)  # its flannel0's, by which it leaves
    shown = host.run(["ping", "-c1", "-W20", NOWHERE], check=False).stdout
    assert "Destination Net Unreachable" in shown


def unanswerable(pod: IPv4Address) -> dict[str, Any]:
    """Packets that cannot go on and about which no ICMP error may be sent; the identification numbers them from 1."""
    return {
        "to a multicast address": IP(src=str(pod), dst="224.0.0.5") / UDP(),
        "to the broadcast address": IP(src=str(pod), dst="255.255.255.255") / UDP(),
        "a later fragment": IP(src=str(pod), dst=NOWHERE, frag=100) / (b"x" * 40),
        "the last fragment of an expired one": IP(src=str(pod), dst=NOWHERE, frag=100, flags=0, ttl=1) / (b"x" * 40),
        "an ICMP error: unreachable": IP(src=str(pod), dst=NOWHERE) / ICMP(type=3) / IP() / UDP(),
        "an ICMP error: time exceeded": IP(src=str(pod), dst=NOWHERE) / ICMP(type=11) / IP() / UDP(),
        "an ICMP error: redirect": IP(src=str(pod), dst=NOWHERE) / ICMP(type=5) / IP() / UDP(),
        "an ICMP message cut short": IP(src=str(pod), dst=NOWHERE, proto=1),
        "from nobody": IP(src="0.0.0.0", dst=NOWHERE) / UDP(),
        "from a multicast address": IP(src="224.0.0.5", dst=NOWHERE) / UDP(),
        "from loopback": IP(src="127.0.0.1", dst=NOWHERE) / UDP(),
    }


def test_nobody_is_told_about_multicast_broadcast_fragments_and_icmp_errors(pair: Lab) -> None:
    pod, host = pair.pods()[0], pair.hosts[0]
    packets = unanswerable(pod.ip)
    before = Counter(drops_of(host, "out"))
    with IcmpErrors(pod) as at_pod, IcmpErrors(host) as at_host:
        for number, packet in enumerate(packets.values(), start=1):
            packet.id = number
            put_on(host, "flannel0", packet)
        # One that is answered, sent last: what was answered before it has arrived before it.
        put_on(host, "flannel0", IP(src=str(pod.ip), dst=NOWHERE, id=999) / UDP())
        first = at_pod.next()
        assert first is not None
        answered = list(packets)[quoted_id(first) - 1] if quoted_id(first) != 999 else None
        assert answered is None
        assert at_host.next(timeout_s=0) is None
    after = Counter(drops_of(host, "out"))
    assert after - before == Counter(not_unicast=2, no_route=len(packets) - 2 + 1)


def test_the_first_fragment_is_answered(pair: Lab) -> None:
    pod, host = pair.pods()[0], pair.hosts[0]
    with IcmpErrors(pod) as errors:
        put_on(host, "flannel0", IP(src=str(pod.ip), dst=NOWHERE, id=31, flags="MF") / UDP(len=3008) / (b"x" * 40))
        answer = errors.next()
    assert answer is not None
    assert quoted_id(answer) == 31


def test_an_address_of_our_own_subnet_that_comes_back_to_us_is_answered_and_does_not_loop(pair: Lab) -> None:
    pod, host = pair.pods()[0], pair.hosts[0]
    nobody = str(subnet_of(host).network_address + 200)
    before = drops_of(host, "out").get("own_subnet", 0)
    with IcmpErrors(pod) as errors:
        put_on(host, "flannel0", IP(src=str(pod.ip), dst=nobody, id=32) / UDP())
        answer = errors.next()
    assert answer is not None
    assert (quoted_id(answer), answer[ICMP].type, answer[ICMP].code) == (32, 3, 0)
    assert drops_of(host, "out")["own_subnet"] == before + 1


def test_answers_to_one_pod_are_limited_to_a_hundred_a_second(pair: Lab) -> None:
    pod, host = pair.pods()[0], pair.hosts[0]
    n_packets = 2500
    time.sleep(BURST / ANSWERS_PER_S)  # the tests before may have emptied the bucket
    before = drops_of(host, "out").get("no_route", 0)
    with IcmpErrors(pod) as errors, pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:

        def have_been_read() -> bool:
            for _ in range(500):  # flannel0's queue holds a thousand: on a busy machine not all of them fit
                sock.sendto(b"nobody takes this", (NOWHERE, 9))
            return drops_of(host, "out").get("no_route", 0) - before > n_packets

        started_s = time.monotonic()
        wait_for("the agent has read enough", have_been_read)
        n_answers = 0
        while errors.next(timeout_s=0.2) is not None:
            n_answers += 1
        lasted_s = time.monotonic() - started_s - 0.2
    assert BURST <= n_answers <= BURST + ANSWERS_PER_S * lasted_s
    assert n_answers < n_packets
