"""What happens to packets between two of our agents: TTL, fragments, the MTU, long transfers."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP, fragment

from flannel_udp.lab.capture import trace
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host, Pod
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.tunnel import tunnel_of
from tests.support.agents import command_json, subnet_of, up_with_peers, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S
from tests.support.taps import IcmpErrors, Tap, quoted_id, send_raw

pytestmark = NEEDS_NETNS

TRANSFER_BYTES = 30_000_000


def tunnel_address(host: Host) -> str:
    """Return flannel0's address."""
    return str(subnet_of(host).network_address)


def bridge_address(host: Host) -> str:
    return str(subnet_of(host).network_address + 1)


def receiver(pod: Pod) -> socket.socket:
    """Return a UDP socket on port 9 of the pod."""
    sock = pod.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((str(pod.ip), 9))
    sock.settimeout(PATIENCE_S)
    return sock


# TTL


def answer_to(probe: IP, source: Pod, errors: IcmpErrors) -> Any:
    """Send a probe until an ICMP error is about it: the kernel limits its errors, of a whole machine before 6.13."""
    about: list[Any] = []

    def is_answered() -> bool:
        send_raw(source, probe)
        while not about and (error := errors.next(0.5)) is not None:
            about.extend([error] if quoted_id(error) == probe.id else [])
        return bool(about)

    wait_for(f"an answer to {probe.summary()}", is_answered)
    return about[0]


def test_each_agent_takes_one_from_the_ttl_and_each_kernel_one(pair: Lab) -> None:
    source, target = pair.pods()
    seen = [step.packet for step in trace(source, target, timeout_s=PATIENCE_S)]
    assert all(seen)
    inner = [packet.inside(tunnel_of(source.plan)) or packet for packet in seen if packet]
    assert [packet.ttl for packet in inner] == [64, 63, 62, 61, 60]


def test_traceroute_shows_every_router_and_both_agents_each_by_the_address_that_leads_back(pair: Lab) -> None:
    source, target = pair.pods()
    h1, h2 = pair.hosts
    hops = []
    with IcmpErrors(source) as errors:
        for ttl in range(1, 5):
            probe = IP(src=str(source.ip), dst=str(target.ip), ttl=ttl, id=ttl) / UDP(dport=33434) / b"probe"
            answer = answer_to(probe, source, errors)
            assert (answer[ICMP].type, answer[ICMP].code) == (11, 0)
            hops.append(answer.src)
    # The kernel of h1, its agent outbound (the kernel gives its answer the pods' gateway as well), the agent of h2
    # inbound, the kernel of h2 (which answers from flannel0).
    assert hops == [bridge_address(h1), bridge_address(h1), tunnel_address(h2), tunnel_address(h2)]


# Fragments


@pytest.mark.parametrize("size", [4000, 20_000])
def test_a_ping_in_fragments_comes_back_whole(pair: Lab, size: int) -> None:
    source, target = pair.pods()
    for _ in range(2):  # one ping of two waits for the second answer only about as long as the first one took
        source.run(["ping", "-c1", "-W60", "-s", str(size), str(target.ip)])


def test_fragments_out_of_order_are_forwarded_one_by_one_and_reassembled_by_the_pod(pair: Lab) -> None:
    source, target = pair.pods()
    payload = bytes(i % 251 for i in range(5000))
    whole = IP(src=str(source.ip), dst=str(target.ip), id=4711) / UDP(sport=9, dport=9) / payload
    train: list[Any] = fragment(IP(bytes(whole)), fragsize=1200)  # type: ignore[no-untyped-call]  # scapy has no types
    assert len(train) == 5
    seen: list[int] = []
    with receiver(target) as sock, Tap(pair.hosts[1], "flannel0") as tunnel:

        def passed(n: int) -> bool:
            seen.extend(packet.frag for packet in map(IP, tunnel.packets()) if packet.id == 4711)
            return len(seen) == n

        for n, piece in enumerate([train[3], train[0], train[4], train[2], train[1]], start=1):
            send_raw(source, piece)
            # Where a sender wanders between processors the kernel changes the order of what is sent at once.
            wait_for("it is forwarded, whatever is missing", partial(passed, n))
        assert sock.recv(65_535) == payload
    assert seen == [450, 0, 600, 300, 150]  # units of 8 bytes


# The MTU


@pytest.fixture(scope="module", params=[1500, 1400])
def wide_pods(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Pods whose links take 1500 bytes whatever flannel0 takes, as behind a bridge that nobody told of the overlay."""
    with Lab(Plan(fresh_name(), hosts=2, underlay_mtu=request.param)) as lab:
        for host in lab.hosts:
            host.configure("link set p1 mtu 1500", "link set cni0 mtu 1500")
            host.pods[0].configure("link set eth0 mtu 1500")
        yield up_with_peers(lab)


def test_a_packet_too_big_for_flannel0_is_answered_with_its_mtu(wide_pods: Lab) -> None:
    source, target = wide_pods.pods()
    mtu = wide_pods.plan.underlay_mtu - 28  # outer IPv4 and UDP headers
    assert command_json(wide_pods.hosts[0], "status")["tunnel"]["mtu"] == mtu
    fits = mtu - 28  # IPv4 and ICMP headers
    shown = source.run(["ping", "-c1", "-W60", "-M", "do", "-s", "1472", str(target.ip)], check=False)
    assert f"Frag needed and DF set (mtu = {mtu})" in shown.stdout
    source.run(["ip", "route", "flush", "cache"])
    source.run(["ping", "-c1", "-W60", "-M", "do", "-s", str(fits), str(target.ip)])
    shown = source.run(["ping", "-c1", "-W60", "-M", "do", "-s", str(fits + 1), str(target.ip)], check=False)
    assert f"mtu = {mtu}" in shown.stdout + shown.stderr


def test_the_largest_packet_crosses_the_underlay_in_one_piece(wide_pods: Lab) -> None:
    source, target = wide_pods.pods()
    mtu = wide_pods.plan.underlay_mtu
    with Tap(wide_pods.hosts[1], "eth0") as wire:
        source.run(["ping", "-c1", "-W60", "-M", "do", "-s", str(mtu - 56), str(target.ip)])
        sizes = {len(packet) for packet in wire.packets()}
    assert max(sizes) == mtu


@pytest.mark.parametrize("direction", ["there", "back"])
def test_a_tcp_transfer_arrives_intact(wide_pods: Lab, direction: str) -> None:
    pods = wide_pods.pods()
    source, target = pods if direction == "there" else reversed(pods)
    assert transfer(source, target, target.ip) == TRANSFER_BYTES


def transfer(source: Pod, target: Pod, address: IPv4Address) -> int:
    """Send numbered blocks over one TCP connection, compare the digests of both ends and return how many bytes came."""
    blocks = [hashlib.sha256(i.to_bytes(4)).digest() * 2048 for i in range(TRANSFER_BYTES // 65_536 + 1)]
    data = b"".join(blocks)[:TRANSFER_BYTES]
    received = hashlib.sha256()
    n_bytes = 0
    with target.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.settimeout(PATIENCE_S)
        listener.bind((str(address), 0))
        listener.listen(1)

        def send() -> None:
            with source.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
                sock.settimeout(PATIENCE_S)
                sock.connect(listener.getsockname())
                sock.sendall(data)

        sender = threading.Thread(target=send)
        sender.start()
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(PATIENCE_S)
            while chunk := connection.recv(1 << 18):
                received.update(chunk)
                n_bytes += len(chunk)
        sender.join()
    assert received.hexdigest() == hashlib.sha256(data).hexdigest()
    return n_bytes
