"""What is said of subnets that several hosts hold, and of nodes with our address; hosts: test_agent_identity."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from flannel_udp.agent.identity import degradations_of_claims, degradations_of_shared
from flannel_udp.control.peers import SharedSubnet
from flannel_udp.model import Degradation, Entry

KUBECTL, LEASES = "kubectl get nodes, and delete the stale one", "flannel-udp lease list, and release the stale one"


@pytest.mark.parametrize(
    ("shared", "kubernetes", "said"),
    [
        (
            SharedSubnet("10.1.15.0/24", ("h1", "a"), ours=True),
            True,
            Degradation(
                "identity",
                f"node a has our podCIDR 10.1.15.0/24, too: what is meant for our pods may go there: {KUBECTL}",
            ),
        ),
        (
            SharedSubnet("10.1.15.0/24", ("h1", "a", "b"), ours=True),
            True,
            Degradation(
                "identity",
                f"nodes a and b have our podCIDR 10.1.15.0/24, too: what is meant for our pods may go there: {KUBECTL}",
            ),
        ),
        (
            SharedSubnet("10.1.16.0/24", ("n1", "n2"), ours=False),
            True,
            Degradation(
                "peers", f"nodes n1 and n2 have one podCIDR, 10.1.16.0/24: packets for it go to n1 alone: {KUBECTL}"
            ),
        ),
        (
            SharedSubnet("10.1.16.0/24", ("192.0.2.2", "192.0.2.3"), ours=False),
            False,
            Degradation(
                "peers",
                "hosts 192.0.2.2 and 192.0.2.3 have one subnet, 10.1.16.0/24: packets for it go to 192.0.2.2 alone: "
                f"{LEASES}",
            ),
        ),
    ],
)
def test_who_has_it_and_what_comes_of_that_is_one_line(shared: SharedSubnet, kubernetes: bool, said: object) -> None:
    assert degradations_of_shared([shared], kubernetes=kubernetes) == [said]


def test_a_few_are_named() -> None:
    many = [SharedSubnet(f"10.1.{number}.0/24", ("n1", "n2"), ours=False) for number in range(5)]
    *named, rest = degradations_of_shared(many, kubernetes=True)
    assert len(named) == 3
    assert rest == Degradation("peers", "and 2 more subnets are of several hosts: flannel-udp lease list")


def node(name: str, key: str, v4: str, v6: str = "null") -> Entry:
    return Entry(key, f'{{"PublicIP":"{v4}","PublicIPv6":{v6}}}'.encode(), 1, host=name)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            node("stale", "10.1.9.0-24", "192.0.2.1"),
            (
                "node stale has 10.1.9.0/24 under our address 192.0.2.1, so that its pods get nothing from this host: "
                "give each node an address of its own, by --iface or --public-ip; if there is no such node any more, "
                "kubectl delete node stale"
            ),
        ),
        (
            node("b", "10.1.9.0-24&fd00:1:0:9::-64", "192.0.2.2", '"2001:db8::1"'),
            (
                "node b has 10.1.9.0/24 and fd00:1:0:9::/64 under our address 2001:db8::1, so that its pods get "
                "nothing from this host: give each node an address of its own, by --iface or --public-ipv6; if there "
                "is no such node any more, kubectl delete node b"
            ),
        ),
    ],
)
def test_a_node_with_our_address_is_named_without_marks_which_nodes_lack(entry: Entry, said: str) -> None:
    ours = {ip_address("192.0.2.1"), ip_address("2001:db8::1")}
    assert degradations_of_claims([entry], ours, 7) == [Degradation("identity", said)]


def test_a_few_nodes_with_our_address_are_named() -> None:
    many = [node(f"n{number}", f"10.1.{number}.0-24", "192.0.2.1") for number in range(5)]
    *named, rest = degradations_of_claims(many, {ip_address("192.0.2.1")}, 7)
    assert (len(named), rest) == (3, Degradation("identity", "and 2 more nodes have"))
