"""A kernel without policy routing (small arm64 boards): all looks at the kernel find what they find elsewhere."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannel_udp.doctor.finding import Verdict
from flannel_udp.doctor.kernel import ask_rules
from flannel_udp.doctor.known import Known, KnownFamily
from flannel_udp.errors import FlannelError
from flannel_udp.files.subnet_env import SubnetEnv
from flannel_udp.host import rtnetlink
from flannel_udp.host.lookup.cut_off import Need, refuse_cut_off
from flannel_udp.host.lookup.look import Look, look_up
from flannel_udp.host.lookup.question import Ways
from flannel_udp.lab.netns import write_sysctls
from flannel_udp.model import Subnet
from tests.support.labs import NEEDS_NETNS
from tests.support.no_policy_rules import without_rules
from tests.support.one_host import OneHost, one_host

pytestmark = NEEDS_NETNS

NETWORK, OWN, PEER = IPv4Network("10.1.0.0/16"), IPv4Network("10.1.15.0/24"), IPv4Network("10.1.16.0/24")
ELSEWHERE, DEVICE = 7, 8  # eth0, and eth1 in place of the tunnel
WAYS = Ways(DEVICE, {PEER: None})
REGISTRY = IPv4Address("10.1.200.1")


@pytest.fixture(params=[(errno.EOPNOTSUPP, False), (errno.EAFNOSUPPORT, True)], ids=["of none", "of this family"])
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[OneHost]:
    """A host where something leads a part of a peer's subnet elsewhere, and all else is well."""
    code, at_the_end = request.param

    def refusing(netlink: socket.socket) -> rtnetlink.Rtnetlink:
        return without_rules(netlink, code, at_the_end=at_the_end)

    with one_host() as made:
        made.add_links(ELSEWHERE)
        write_sysctls(made.name, {"ipv4/ip_forward": 0})
        made.ip("route add 10.1.0.0/16 dev eth1", "route add 10.1.16.7 dev eth0")
        monkeypatch.setattr(rtnetlink, "Rtnetlink", refusing)
        yield made


def test_what_leads_packets_elsewhere_is_found(host: OneHost) -> None:
    found = host.call(Look(NETWORK).look, OWN, WAYS, [], None)
    assert any("are sent to eth0, not to eth1: by the route" in item.text for item in found.routes), found
    assert ["this host does not forward" in item.text for item in found.forwarding] == [True]


def test_where_the_registry_is_cut_off_is_found(host: OneHost) -> None:
    found = host.call(Look(NETWORK).look, OWN, WAYS, [Need("the registry", REGISTRY)], None)
    assert ["is inside the overlay network 10.1.0.0/16" in item.text for item in found.cut_off] == [True]


def test_what_the_kernel_does_with_an_address_is_told(host: OneHost) -> None:
    told = host.call(look_up, IPv4Address("10.1.16.7"), NETWORK, OWN, WAYS)
    assert "eth0" in told.host
    assert told.fault is not None
    assert "are sent to eth0" in told.fault


def test_a_start_that_would_cut_the_registry_off_is_refused_and_another_one_is_not(host: OneHost) -> None:
    host.ip("route add 10.2.0.0/16 dev eth0")
    with pytest.raises(FlannelError, match=r"would cut this host off from 10\.2\.0\.1, the registry"):
        host.call(refuse_cut_off, lambda _: IPv4Network("10.2.0.0/16"), [Need("the registry", IPv4Address("10.2.0.1"))])
    needs = [Need("the registry", IPv4Address("10.1.16.7"))]  # it has a route of its own, which is longer
    assert host.call(refuse_cut_off, lambda _: NETWORK, needs) == []


def test_doctor_has_looked_at_the_rules(host: OneHost) -> None:
    env = SubnetEnv(NETWORK, Subnet(OWN), 1472, ip_masq=False)
    finding = host.call(ask_rules, KnownFamily(Known(env=env), 4))
    assert finding.verdict is Verdict.OK
