"""What is said of subnets that several hosts hold; of our address under others' keys: test_agent_identity."""

from __future__ import annotations

import pytest

from flannel_udp.agent.identity import degradations_of_shared
from flannel_udp.control.peers import SharedSubnet
from flannel_udp.model import Degradation

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
