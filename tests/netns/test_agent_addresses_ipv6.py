"""The external interface's IPv6 address goes, comes and changes under a running agent of both families."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping_matrix
from tests.support.agents import unanswered, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS


@pytest.fixture
def pair() -> Iterator[Lab]:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "host-gw"}}
    with Lab(Plan(fresh_name(), hosts=2, families="46", config=config)) as lab:
        yield lab


def said(host: Host) -> str:
    return json.dumps(host.control("/v1/status")["problems"])


def passes(lab: Lab, version: int) -> bool:
    return None not in ping_matrix(lab.pods(), 0.5, version).values()


def test_an_ipv6_address_that_goes_costs_ipv6_alone_and_another_one_is_followed(pair: Lab) -> None:
    h1 = pair.hosts[0]
    wait_for("both families", lambda: passes(pair, 4) and passes(pair, 6))
    own = h1.underlay_of(6)

    def uses_the_other() -> bool:
        return bool(h1.control("/v1/status")["public_ipv6"] == "2001:db8::99")

    h1.configure(f"address del {own}/64 dev eth0")
    wait_for("the loss is named", lambda: f"has lost its address {own}" in said(h1))
    assert h1.control("/v1/status")["ready"]
    assert unanswered(pair.pods(), 4) == []
    h1.configure("address add 2001:db8::99/64 dev eth0 nodad")
    waits = f"interface eth0 has lost its address {own}: no IPv6 traffic, waiting for it"
    # For ten seconds from the loss on, which may be over.
    wait_for("its own is waited for", lambda: waits in said(h1) or uses_the_other())
    wait_for("the other address", uses_the_other)
    wait_for("both families again", lambda: passes(pair, 4) and passes(pair, 6))
    wait_for("nothing is wrong", lambda: "has lost its address" not in said(h1))
