"""DirectRouting's decisions: who is on-link by the kernel's answer, and who answers by the tunnel all the same."""

from __future__ import annotations

import errno
import struct
from ipaddress import IPv4Address

import pytest

from flannel_udp.backend.direct import FORGOTTEN_S, LASTING_S, TunnelAnswers, route_for
from flannel_udp.host.on_link import is_on_link
from flannel_udp.host.rtnetlink import RTMSG, attribute
from flannel_udp.model import PeerActivity
from tests.support.backends import parse_config

ETH0, ETH1 = 2, 3
UNICAST, LOCAL, BROADCAST = 1, 2, 3
OIF, GATEWAY, MULTIPATH, TABLE, VIA, ENCAP = 4, 5, 9, 15, 18, 22
ROUTER = IPv4Address("192.0.2.254").packed


def answer(*attrs: tuple[int, bytes], kind: int = UNICAST) -> bytes:
    """Return what the kernel says of a route of table 254."""
    return RTMSG.pack(2, 24, 0, 0, 254, 2, 253, kind, 0) + b"".join(attribute(*each) for each in attrs)


def oif(index: int) -> tuple[int, bytes]:
    return OIF, struct.pack("=I", index)


def next_hop(index: int) -> bytes:
    return struct.pack("=HBBi", 8, 0, 0, index)


@pytest.mark.parametrize(
    ("said", "on_link"),
    [
        (answer(oif(ETH0)), True),
        (answer(oif(ETH0), (TABLE, struct.pack("=I", 77))), True),
        (answer(oif(ETH1)), False),
        (answer((GATEWAY, ROUTER), oif(ETH0)), False),
        (answer((VIA, b"\x0a\x00" + bytes(16)), oif(ETH0)), False),
        (answer((MULTIPATH, next_hop(ETH0) + next_hop(ETH1))), False),
        (answer((MULTIPATH, next_hop(ETH0))), False),
        (answer((ENCAP, b""), oif(ETH0)), False),
        (answer(oif(ETH0), kind=LOCAL), False),
        (answer(oif(ETH0), kind=BROADCAST), False),
        (answer(), False),
        (errno.ENETUNREACH, False),
        (errno.EINVAL, False),
    ],
    ids=[
        *("connected", "by a rule's table", "another interface", "a gateway", "a gateway of IPv6", "several next hops"),
        *("one of several", "a tunnel of its own", "ours", "broadcast", "no interface", "no route", "blackhole"),
    ],
)
def test_a_host_is_on_link_where_one_route_leads_there_without_a_gateway(said: bytes | int, on_link: bool) -> None:
    assert is_on_link(said, ETH0) is on_link


def came(peer: int, n: int = 1) -> list[PeerActivity]:
    return [PeerActivity(peer, 0, n, 0)]


def test_who_answers_by_the_tunnel_for_a_while_is_told_once_and_stays_known() -> None:
    answers, direct = TunnelAnswers(), {7}
    assert [answers.note(came(7), direct, s) for s in (0.0, LASTING_S - 0.5, LASTING_S, LASTING_S + 1)] == [
        *(False, False),
        *(True, False),
    ]
    assert answers.lasting(direct, LASTING_S + 2) == [7]


def test_who_answers_so_for_a_moment_only_or_is_not_direct_is_not_named() -> None:
    answers = TunnelAnswers()
    assert not answers.note([*came(7), *came(8), *came(9, 0)], {7, 9}, 0.0)
    assert not answers.note([*came(8), *came(9, 0)], {7, 9}, LASTING_S)
    assert answers.lasting({7, 9}, LASTING_S) == []


def test_who_stops_to_answer_so_or_goes_back_to_the_tunnel_is_forgotten() -> None:
    answers = TunnelAnswers()
    for now_s in (0.0, LASTING_S):
        answers.note([*came(7), *came(8)], {7, 8}, now_s)
    assert answers.lasting({7}, LASTING_S) == [7]
    assert answers.lasting({7, 8}, LASTING_S) == [7]
    assert answers.lasting({7}, LASTING_S + FORGOTTEN_S) == []


def test_an_address_of_the_overlay_may_have_a_route_of_its_subnet_with_direct_routing_only() -> None:
    address = IPv4Address("10.1.15.9")
    for direct, expected in (("true", "10.1.15.0/24"), ("false", "10.1.0.0/16")):
        raw = f'{{"Network": "10.1.0.0/16", "SubnetMin": "10.1.8.0", "Backend": {{"DirectRouting": {direct}}}}}'
        config = parse_config(raw).config
        assert str(route_for(config, address)) == expected
        assert str(route_for(config, IPv4Address("10.1.2.3"))) == "10.1.0.0/16"
        assert route_for(config, IPv4Address("10.2.2.3")) is None
