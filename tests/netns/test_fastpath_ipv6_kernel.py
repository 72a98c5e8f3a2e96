"""Engines of IPv6 behind real tunnel devices: what the kernel hands over, takes, and hears of what is dropped.

The peer is another engine, or with VXLAN the kernel.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import subprocess
import threading
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv6Address, IPv6Network
from typing import NamedTuple, Self

import pytest

from flannel_udp._fastpath.engine import Engine
from flannel_udp._fastpath.routes import OWN, PEERS_FROM
from flannel_udp._fastpath.routes6 import RouteList6, RouteTable6
from flannel_udp.dataplane.encapsulation import UDP, Encapsulation
from flannel_udp.dataplane.offload import SOL_UDP, UDP_SEGMENT, enable_on_socket, enable_on_tunnel
from flannel_udp.dataplane.tunnel import open_tunnel
from flannel_udp.dataplane.underlay import open_sockets
from flannel_udp.lab.netns import call_inside, ip_batch
from flannel_udp.options import Offload
from tests.support.agents import wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

PORTS, MTU, PATH_MTU = {"udp": 8_285, "vxlan": 8_472}, 1_430, 1_372
VXLAN = Encapsulation("vxlan", 1, 0x8E647CE7C901)
KERNELS_MAC = "8e:64:7c:e7:c9:02"
TRANSFER = os.urandom(1 << 20) * 16
IPV6_RECVERR, SO_EE_ORIGIN_ICMP6 = 25, 3  # linux/in6.h, linux/errqueue.h
EXTENDED_ERROR = struct.Struct("=IBBBxII")
AGAIN_S = 5.0
NO_ROUTE, ADDRESS_UNREACHABLE, TOO_BIG, HOP_LIMIT = (1, 0), (1, 3), (2, 0), (3, 0)  # RFC 4443


def underlay(number: int) -> IPv6Address:
    return IPv6Address(f"2001:db8::{number}")


def subnet(number: int) -> IPv6Network:
    return IPv6Network(f"fd00:10:244:{number}::/64")


class KernelHost:
    """A namespace with the pod `subnet::5`, which is the host itself."""

    def __init__(self, number: int, namespace: str) -> None:
        self.number = number
        self.pod = str(subnet(number)[5])
        self.namespace = namespace
        ip_batch([f"address add {self.pod}/128 dev lo nodad"], namespace=namespace)

    def socket(self, kind: int, protocol: int = 0) -> socket.socket:
        """Return an IPv6 socket of the namespace."""
        made = call_inside(self.namespace, lambda: socket.socket(socket.AF_INET6, kind, protocol))
        made.settimeout(PATIENCE_S)
        return made

    def speak_vxlan(self) -> None:
        """Reach the first host by the kernel's VXLAN, as flannel sets it up."""
        device, far = "flannel-v6.1", subnet(1)
        kind = f"type vxlan id {VXLAN.vni} local {underlay(self.number)} dev eth0 dstport {PORTS['vxlan']} nolearning"
        mac = VXLAN.own_mac.to_bytes(6, "big").hex(":")
        ip_batch(
            [
                f"link add {device} address {KERNELS_MAC} {kind}",
                f"address add {subnet(self.number)[0]}/128 dev {device} nodad",
                f"link set {device} up mtu {MTU}",
                f"route add {far} via {far[0]} dev {device} onlink",
                f"neighbour add {far[0]} lladdr {mac} dev {device} nud permanent",
            ],
            namespace=self.namespace,
        )
        entry = ["bridge", "-n", self.namespace, "fdb", "append", mac, "dev", device, "dst", str(underlay(1))]
        subprocess.run(entry, check=True)


class Host(KernelHost):
    """Likewise with a tunnel device and the engine behind it."""

    def __init__(self, number: int, namespace: str, encapsulation: Encapsulation = UDP) -> None:
        super().__init__(number, namespace)
        port = PORTS[encapsulation.kind]
        self.tunnel = call_inside(namespace, lambda: open_tunnel(1))
        ip_batch(
            [
                f"address add {subnet(number)[0]}/128 dev {self.tunnel.name} nodad",
                f"link set {self.tunnel.name} up mtu {MTU}",
                f"route add fd00:10:244::/48 dev {self.tunnel.name}",
            ],
            namespace=namespace,
        )
        (self.udp,) = call_inside(namespace, lambda: open_sockets(underlay(number), port, 1))
        self.icmp = self.socket(socket.SOCK_RAW, socket.IPPROTO_RAW)
        (tun_fd,) = self.tunnel.filenos()
        enable_on_socket(self.udp, Offload())
        granted = enable_on_tunnel(tun_fd, Offload(), versions=(6,))
        self.engine = Engine(
            tun_fd,
            self.udp.fileno(),
            self.icmp.fileno(),
            port,
            segment=True,
            join_tcp=granted.join_tcp,
            join_udp=granted.join_udp,
            encapsulation=encapsulation.kind,
            vni=encapsulation.vni,
            own_mac=encapsulation.own_mac,
            version=6,
        )
        self.engine.publish(table(number, int(KERNELS_MAC.replace(":", ""), 16)))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()

    def _poll(self) -> None:
        while not self._stop.is_set():
            self.engine.poll(linger_ms=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.engine.close()
        for each in (self.udp, self.icmp, self.tunnel):
            each.close()


def table(number: int, peers_mac: int) -> RouteTable6:
    """What host `number` of the two knows."""
    hops = [OWN if each == number else PEERS_FROM for each in (1, 2)]
    routes = RouteList6(
        b"".join(subnet(each).network_address.packed for each in (1, 2)), bytes([64, 64]), array("I", hops)
    )
    addresses = bytes(PEERS_FROM * 16) + underlay(3 - number).packed
    return RouteTable6(routes, addresses, int(subnet(number)[0]), array("Q", [0, 0, peers_mac]))


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two namespaces with a wire between them."""
    names = f"fu-{fresh_name()}", f"fu-{fresh_name()}"
    with ExitStack() as stack:
        for name in names:
            ip_batch([f"netns add {name}"])
            stack.callback(ip_batch, [f"netns del {name}"])
        ip_batch([f"link add eth0 netns {names[0]} type veth peer name eth0 netns {names[1]}"])
        for number, name in enumerate(names, 1):
            lines = ["link set lo up", f"address add {underlay(number)}/64 dev eth0 nodad", "link set eth0 up"]
            ip_batch(lines, namespace=name)
        for name in names:  # until then what is sent is lost, the question for the neighbour's address, say
            wait_for("eth0 is up", partial(is_up, name))
        yield names


def is_up(name: str) -> bool:
    shown = subprocess.run(["ip", "-n", name, "link", "show", "eth0"], check=True, capture_output=True, text=True)
    return "state UP" in shown.stdout


@pytest.fixture
def hosts(namespaces: tuple[str, str]) -> Iterator[tuple[Host, Host]]:
    with Host(1, namespaces[0]) as first, Host(2, namespaces[1]) as second:
        yield first, second


def drops(host: Host, direction: str) -> dict[str, int]:
    """What the engine dropped, without what the kernel says to the routers and groups of every link."""
    counted: dict[str, int] = host.engine.counters()[direction]["drops"]
    return {reason: n for reason, n in counted.items() if reason != "not_unicast"}


def send_all(client: socket.socket) -> None:
    client.sendall(TRANSFER)
    client.shutdown(socket.SHUT_WR)


def carry(sender: KernelHost, receiver: KernelHost) -> None:
    """Let TCP carry `TRANSFER` from pod to pod, and hold what arrives to it."""
    with receiver.socket(socket.SOCK_STREAM) as listener, sender.socket(socket.SOCK_STREAM) as client:
        listener.bind((receiver.pod, 0))
        listener.listen()
        client.bind((sender.pod, 0))
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            server.settimeout(PATIENCE_S)
            feeder = threading.Thread(target=send_all, args=(client,))
            feeder.start()
            got = hashlib.sha256()
            while chunk := server.recv(1 << 20):
                got.update(chunk)
            feeder.join()
    assert got.digest() == hashlib.sha256(TRANSFER).digest()


def test_tcp_crosses_in_super_packets_both_ways(hosts: tuple[Host, Host]) -> None:
    carry(*hosts)
    carry(*hosts[::-1])
    for host in hosts:
        counters = host.engine.counters()
        assert counters["out"]["packets"] > 2 * counters["system_calls"]["tun_reads"]
        assert counters["in"]["packets"] > 2 * counters["system_calls"]["tun_writes"]
        assert counters["system_calls"]["tun_join_errors"] == 0
        assert drops(host, "out") == drops(host, "in") == {}


def test_tcp_of_a_kernel_vxlan_peer_arrives_uncut_and_is_taken(namespaces: tuple[str, str]) -> None:
    far = KernelHost(2, namespaces[1])
    far.speak_vxlan()
    with Host(1, namespaces[0], VXLAN) as near:
        carry(near, far)
        carry(far, near)
        counters = near.engine.counters()
        assert counters["offloaded_in"]["super_packets"] > 0
        assert counters["system_calls"]["tun_join_errors"] == 0
        assert drops(near, "out") == drops(near, "in") == {}


def test_udp_crosses_in_super_packets(hosts: tuple[Host, Host]) -> None:
    near, far = hosts
    payload = os.urandom(40 * 200)
    with near.socket(socket.SOCK_DGRAM) as client, far.socket(socket.SOCK_DGRAM) as server:
        server.bind((far.pod, 0))
        client.bind((near.pod, 0))
        client.sendmsg([payload], [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", 200))], 0, server.getsockname())
        assert [server.recv(1_500) for _ in range(40)] == [payload[i : i + 200] for i in range(0, len(payload), 200)]
    # What was sent is counted after the call, and may be received before.
    wait_for("it is counted", lambda: near.engine.counters()["out"]["packets"] >= 40)
    assert near.engine.counters()["system_calls"]["tun_reads"] < 40
    assert far.engine.counters()["system_calls"]["tun_join_errors"] == 0


class Sent(NamedTuple):
    """A datagram from the first host, and what its kernel hears: ICMPv6 type and code, an MTU, from which host."""

    target: str
    hop_limit: int
    n_bytes: int
    answer: tuple[int, int]
    mtu: int = 0
    answered_by: int = 1


@pytest.mark.parametrize(
    "sent",
    [
        Sent("fd00:10:244:9::9", 64, 10, NO_ROUTE),
        Sent("fd00:10:244:1::77", 64, 10, ADDRESS_UNREACHABLE),
        Sent("fd00:10:244:2::5", 1, 10, HOP_LIMIT),
        Sent("fd00:10:244:2::5", 2, 10, HOP_LIMIT, answered_by=2),
        Sent("fd00:10:244:2::5", 64, 1_400, TOO_BIG, PATH_MTU),
    ],
    ids=["no route", "own subnet", "hop limit", "hop limit beyond the tunnel", "too big"],
)
def test_the_kernel_hears_why_a_packet_was_dropped(hosts: tuple[Host, Host], sent: Sent) -> None:
    near, _ = hosts
    near.engine.limit_path_mtu(PEERS_FROM, int(underlay(2)), PATH_MTU)
    with near.socket(socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, sent.hop_limit)
        client.bind((near.pod, 0))
        client.connect((sent.target, 9))
        send_until_refused(client, sent.n_bytes)
        _, controls, _, _ = client.recvmsg(2_000, 200, socket.MSG_ERRQUEUE)
    (error,) = [data for level, kind, data in controls if (level, kind) == (socket.IPPROTO_IPV6, IPV6_RECVERR)]
    _, origin, kind, code, mtu, _ = EXTENDED_ERROR.unpack_from(error)
    assert (origin, (kind, code), mtu) == (SO_EE_ORIGIN_ICMP6, sent.answer, sent.mtu)
    offender = IPv6Address(error[EXTENDED_ERROR.size + 8 :][:16])  # in a struct sockaddr_in6
    assert offender == subnet(sent.answered_by)[0]
    if sent.answered_by == 1:  # counted after the call: what was sent may be heard before
        wait_for("each is answered", lambda: 0 < answers(near) == sum(drops(near, "out").values()))


def answers(host: Host) -> int:
    """Return how many ICMPv6 errors the engine has sent."""
    n: int = host.engine.counters()["icmp"]["sent"]
    return n


def send_until_refused(client: socket.socket, n_bytes: int) -> None:
    """Send a datagram until the kernel says why not: one may be lost on the way to the engine, which answers each."""
    client.settimeout(AGAIN_S)
    for _ in range(int(PATIENCE_S / AGAIN_S)):
        try:
            client.send(bytes(n_bytes))
            client.recv(1)
        except TimeoutError:
            continue
        except OSError:
            return
    raise AssertionError(f"no error within {PATIENCE_S:g} s")
