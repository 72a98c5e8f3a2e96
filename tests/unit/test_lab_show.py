"""What `lab demo` and the arguments of `lab` look like, without any namespace."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from flannel_udp.cli.arguments import split_rest
from flannel_udp.cli.lab_commands import LAB_COMMANDS
from flannel_udp.cli.main import main
from flannel_udp.lab.capture import Packet, describe
from flannel_udp.lab.demo import format_pings
from flannel_udp.lab.drawing import draw
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import checksum, echo_request
from flannel_udp.lab.tunnel import Tunnel, tunnel_of
from tests.support.lab_status import status

UDP_TUNNEL = Tunnel("udp", "flannel0", 8285)
VXLAN_TUNNEL = Tunnel("vxlan", "flannel.7", 8472, 7)
IPIP_TUNNEL = Tunnel("ipip", "flannel.ipip")


def test_two_hosts_are_drawn_side_by_side_on_one_cable() -> None:
    drawn = draw(
        status(2, 2), underlay="192.0.2.0/24", overlay="10.244.0.0/16", backend="udp", tunnels={4: UDP_TUNNEL}, mtu=1472
    )
    assert drawn == (
        "underlay 192.0.2.0/24: a bridge in the namespace fu-demo-net\n"
        "━━━━━━┯━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┯━━━━━━━━━━━━━━━━━━━━━━━\n"
        "      │                               │\n"
        "┌─────┴──────────────────────┐  ┌─────┴──────────────────────┐\n"
        "│ h1  (namespace fu-demo-h1) │  │ h2  (namespace fu-demo-h2) │\n"
        "│ eth0      192.0.2.1        │  │ eth0      192.0.2.2        │\n"
        "│ flannel0  10.244.1.0/32    │  │ flannel0  10.244.2.0/32    │\n"
        "│ cni0      10.244.1.1/24    │  │ cni0      10.244.2.1/24    │\n"
        "└─────┬──────────────────────┘  └─────┬──────────────────────┘\n"
        "      ├─ p1  eth0 10.244.1.2          ├─ p1  eth0 10.244.2.2\n"
        "      └─ p2  eth0 10.244.1.3          └─ p2  eth0 10.244.2.3\n"
        "\n"
        "overlay 10.244.0.0/16, backend udp, MTU 1472: "
        "flannel0 to flannel0, each packet the payload of a datagram to UDP port 8285"
    )


def test_both_families_are_drawn_with_the_device_of_each() -> None:
    shape = status(1, 1)
    host = shape["hosts"][0]
    host |= {"underlay_v6": "2001:db8::1", "subnet_v6": "fd00:10:244:1::/64"}
    host["pods"][0]["ip_v6"] = "fd00:10:244:1::2"
    tunnels = {4: Tunnel("vxlan", "flannel.1", 8472, 1), 6: Tunnel("vxlan", "flannel-v6.1", 8472, 1, version=6)}
    drawn = draw(shape, underlay="u", overlay="o", backend="vxlan", tunnels=tunnels, mtu=1430)
    assert drawn == (
        "underlay u: a bridge in the namespace fu-demo-net\n"
        "━━━━━━┯━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━\n"
        "      │\n"
        "┌─────┴─────────────────────────────┐\n"
        "│ h1  (namespace fu-demo-h1)        │\n"
        "│ eth0          192.0.2.1           │\n"
        "│               2001:db8::1         │\n"
        "│ flannel.1     10.244.1.0/32       │\n"
        "│ flannel-v6.1  fd00:10:244:1::/128 │\n"
        "│ cni0          10.244.1.1/24       │\n"
        "│               fd00:10:244:1::1/64 │\n"
        "└─────┬─────────────────────────────┘\n"
        "      └─ p1  eth0 10.244.1.2 fd00:10:244:1::2\n"
        "\n"
        "overlay o, backend vxlan, MTU 1430: flannel.1 to flannel.1 and flannel-v6.1 to flannel-v6.1, each packet "
        "in an Ethernet frame, in VXLAN 1, in a datagram to UDP port 8472"
    )


@given(hosts=st.integers(1, 12), pods=st.integers(0, 4), width=st.integers(80, 250))
def test_a_drawing_keeps_to_the_width_and_forgets_nobody(hosts: int, pods: int, width: int) -> None:
    shape = status(hosts, pods)
    drawn = draw(
        shape, underlay="192.0.2.0/24", overlay="10.244.0.0/16", backend="udp", tunnels={4: UDP_TUNNEL}, width=width
    )
    *rows, _overlay = drawn.splitlines()
    assert max(map(len, rows)) <= width
    for host in shape["hosts"]:
        assert f"fu-demo-{host['name']})" in drawn
        assert all(f"eth0 {pod['ip']}" in drawn for pod in host["pods"])


def test_a_host_without_a_subnet_is_drawn_too() -> None:
    shape = status(1, 1)
    shape["hosts"][0] |= {"subnet": None, "pods": [{"name": "p1", "ip": None}]}
    assert draw(shape, underlay="u", overlay="o", backend="udp", tunnels={4: UDP_TUNNEL}).count("none yet") == 3


@pytest.mark.parametrize("kind", ["host-gw", "alloc"])
def test_without_a_tunnel_none_is_drawn(kind: str) -> None:
    assert tunnel_of(Plan(config={"Backend": {"Type": kind}})) is None
    drawn = draw(status(2, 1), underlay="u", overlay="o", backend=kind, tunnels={4: None})
    assert "flannel" not in drawn
    assert drawn.splitlines()[-1].startswith(f"overlay o, backend {kind}: ")


@pytest.mark.parametrize(
    ("backend", "device", "carried"),
    [
        ({"Type": "udp", "Port": 9000}, "flannel0", "the payload of a datagram to UDP port 9000"),
        (
            {"type": "vxlan", "vni": 7},
            "flannel.7",
            "in an Ethernet frame, in VXLAN 7, in a datagram to UDP port 8472",
        ),
        (
            {"Type": "vxlan", "VNI": 16_777_215},
            "flannel.xffffff",
            "in an Ethernet frame, in VXLAN 16777215, in a datagram to UDP port 8472",
        ),
        ({"Type": "ipip"}, "flannel.ipip", "the payload of another packet, protocol 4"),
    ],
)
def test_a_tunnel_is_drawn_with_its_device_and_what_it_does(
    backend: dict[str, object], device: str, carried: str
) -> None:
    tunnel = tunnel_of(Plan(config={"Backend": backend}))
    drawn = draw(status(2, 1), underlay="u", overlay="o", backend="any", tunnels={4: tunnel})
    assert f"│ {device}  10.244.1.0/32" in drawn
    assert f"│ {'eth0'.ljust(len(device))}  192.0.2.1" in drawn
    assert drawn.endswith(f": {device} to {device}, each packet {carried}")


def test_a_lost_ping_stands_out_in_matrix_and_summary() -> None:
    text = format_pings(["h1/p1", "h2/p1"], {("h1/p1", "h2/p1"): 0.0015, ("h2/p1", "h1/p1"): None})
    assert [line.split() for line in text.splitlines()[1:3]] == [["h1/p1", "h2/p1"], ["h1/p1", "·", "1.50"]]
    assert text.splitlines()[3].split() == ["h2/p1", "LOST", "·"]
    assert text.splitlines()[4] == "1 of 2 pings answered, median 1.50 ms, slowest 1.50 ms"


def test_the_echo_request_of_ipv6_is_what_scapy_would_send_but_for_the_checksum() -> None:
    theirs = bytearray(bytes(ICMPv6EchoRequest(id=0x1234, seq=7, data=bytes(range(56)))))
    theirs[2:4] = bytes(2)
    assert echo_request(0x1234, 7, version=6) == bytes(theirs)


def test_the_echo_request_is_what_scapy_would_send() -> None:
    ours = echo_request(0x1234, 7)
    theirs = ICMP(type=8, id=0x1234, seq=7) / bytes(range(56))
    assert ours == bytes(theirs)


@given(st.binary(max_size=80))
def test_data_with_its_checksum_appended_sums_to_zero(data: bytes) -> None:
    even = data + b"\0" * (len(data) % 2)
    assert checksum(even + checksum(even).to_bytes(2)) == 0


PING = IP(src="10.244.1.2", dst="10.244.2.2", ttl=62) / ICMP(type=8) / bytes(56)
OUTER = IP(src="192.0.2.1", dst="192.0.2.2", ttl=64) / UDP(sport=8285, dport=8285) / PING
FRAME = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / PING
VXLAN_OUTER = IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=40000, dport=8472) / VXLAN(flags=8, vni=7) / FRAME
IPIP_OUTER = IP(src="192.0.2.1", dst="192.0.2.2") / PING


PING6 = IPv6(src="fd00:10:244:1::2", dst="fd00:10:244:2::2", hlim=62) / ICMPv6EchoRequest(data=bytes(56))
OUTER6 = IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=8285, dport=8285) / PING6
FRAME6 = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / PING6
VXLAN_OUTER6 = (
    IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=40000, dport=8472) / VXLAN(flags=8, vni=7) / FRAME6
)


def parsed(packet: IP | IPv6) -> Packet:
    found = Packet.parse(bytes(packet))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("outer", "tunnel", "words"),
    [
        (OUTER, UDP_TUNNEL, ["192.0.2.1:8285 → 192.0.2.2:8285  UDP  TTL 64  112 bytes, inside:"]),
        (
            VXLAN_OUTER,
            VXLAN_TUNNEL,
            [
                "192.0.2.1:40000 → 192.0.2.2:8472  UDP  TTL 64  134 bytes, inside:",
                "  VNI 7, Ethernet 02:00:00:00:00:01 → 02:00:00:00:00:02",
            ],
        ),
        (IPIP_OUTER, IPIP_TUNNEL, ["192.0.2.1 → 192.0.2.2  IPIP  TTL 64  104 bytes, inside:"]),
    ],
    ids=["udp", "vxlan", "ipip"],
)
def test_an_outer_packet_is_described_with_the_inner_one_below(outer: IP, tunnel: Tunnel, words: list[str]) -> None:
    assert describe(parsed(outer), tunnel).splitlines() == [
        *words,
        "  10.244.1.2 → 10.244.2.2  ICMP echo request  TTL 62  84 bytes",
    ]


@pytest.mark.parametrize(
    ("outer", "tunnel", "words"),
    [
        (
            OUTER6,
            Tunnel("udp", "flannel0", 8285, version=6),
            ["[2001:db8::1]:8285 → [2001:db8::2]:8285  UDP  hop limit 64  152 bytes, inside:"],
        ),
        (
            VXLAN_OUTER6,
            Tunnel("vxlan", "flannel-v6.7", 8472, 7, version=6),
            [
                "[2001:db8::1]:40000 → [2001:db8::2]:8472  UDP  hop limit 64  174 bytes, inside:",
                "  VNI 7, Ethernet 02:00:00:00:00:01 → 02:00:00:00:00:02",
            ],
        ),
    ],
    ids=["udp", "vxlan"],
)
def test_an_outer_packet_of_ipv6_is_described_likewise(outer: IPv6, tunnel: Tunnel, words: list[str]) -> None:
    assert describe(parsed(outer), tunnel).splitlines() == [
        *words,
        "  fd00:10:244:1::2 → fd00:10:244:2::2  ICMPv6 echo request  hop limit 62  104 bytes",
    ]


@pytest.mark.parametrize(
    ("outer", "tunnel"),
    [
        (OUTER, Tunnel("udp", "flannel0", 8286)),
        (VXLAN_OUTER, Tunnel("vxlan", "flannel.7", 8473, 7)),
        (IP() / UDP(dport=8472) / VXLAN(flags=0, vni=7) / FRAME, VXLAN_TUNNEL),
        (IP() / UDP(dport=8472) / VXLAN(flags=8, vni=7) / Ether(type=0x0806) / PING, VXLAN_TUNNEL),
        (OUTER, IPIP_TUNNEL),
        (OUTER, None),
    ],
    ids=["port", "VXLAN's port", "no VNI", "ARP", "protocol", "no tunnel"],
)
def test_what_is_not_of_the_tunnel_holds_no_inner_packet(outer: IP, tunnel: Tunnel | None) -> None:
    assert parsed(outer).inside(tunnel) is None


@pytest.mark.parametrize("len_kept", range(len(bytes(OUTER))))
def test_a_packet_cut_short_anywhere_is_no_packet(len_kept: int) -> None:
    assert Packet.parse(bytes(OUTER)[:len_kept]) is None


@pytest.mark.parametrize("len_kept", range(len(bytes(OUTER6))))
def test_a_packet_of_ipv6_cut_short_anywhere_is_no_packet(len_kept: int) -> None:
    assert Packet.parse(bytes(OUTER6)[:len_kept]) is None


@given(st.binary(max_size=120))
def test_no_bytes_at_all_make_the_parser_fail(data: bytes) -> None:
    packet = Packet.parse(data)
    if packet is not None:
        assert packet.total_len <= len(data)
        for tunnel in (UDP_TUNNEL, VXLAN_TUNNEL, IPIP_TUNNEL):
            describe(packet, tunnel)
        packet.is_echo_request(IPv4Address("10.244.1.2"), IPv4Address("10.244.2.2"))


def test_a_command_for_a_node_keeps_its_own_flags_and_dashes() -> None:
    flags = LAB_COMMANDS["lab exec"].all_flags
    for words in (["h1/p1", "--", "sh", "-c", "--", "true"], ["h1/p1", "sh", "-c", "--", "true"]):
        own, rest = split_rest(["--name", "x", *words], flags, 1)
        assert (own, rest) == (["--name", "x", "h1/p1"], ["sh", "-c", "--", "true"])


@pytest.mark.parametrize("words", [("h1",), ("h1", "--"), ("h1", ""), ("h1", "--name", "x", "--", "true")])
def test_a_command_that_is_missing_or_comes_before_an_option_is_asked_for(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "exec", *words]) == 2
    assert "lab exec needs a command" in capsys.readouterr().err


def test_a_labs_help_tells_the_defaults_of_a_plan() -> None:
    told = {flag.name: flag.default_text for flag in LAB_COMMANDS["lab up"].all_flags}
    plan = Plan()
    for name in ("name", "hosts", "pods", "registry", "families"):
        assert told[name] == str(getattr(plan, name))
    assert told["backend"] == f"flannel's, {plan.backend}"


def test_the_demonstration_does_not_meet_a_lab_that_is_up() -> None:
    names = {
        flag.default_text
        for command in ("lab up", "lab demo")
        for flag in LAB_COMMANDS[command].all_flags
        if flag.name == "name"
    }
    assert len(names) == 2
