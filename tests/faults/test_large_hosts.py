"""Hosts that have very much of something else than flannel's: the agent asks for what it needs, and reads no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address
from itertools import islice

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import Plan
from tests.support.footprint import footprint_of_an_agent
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

CPU_MAX_S = 3.0
"""Of the agent, from its start through three repairs; counted, so that a busy machine does not matter."""
MEMORY_MAX_BYTES = 120 << 20
PART = 100_000
"""Commands that `ip` is given at a time: it has half a minute for them."""


def routes(n: int, table: str) -> Iterator[str]:
    first = int(IPv4Address("20.0.0.0"))
    return (f"route add {IPv4Address(first + (i << 8))}/24 via 192.0.2.254 table {table}" for i in range(n))


def addresses(n: int) -> Iterator[str]:
    yield from ("link add many type bridge", "link set many up")
    first = int(IPv4Address("20.0.0.1"))
    yield from (f"addr add {IPv4Address(first + i)}/32 dev many" for i in range(n))


def devices(n: int) -> Iterator[str]:
    return (f"link add a{i} type veth peer name b{i}" for i in range(n))


def rules(n: int) -> Iterator[str]:
    first = int(IPv4Address("20.0.0.1"))
    return (f"rule add to {IPv4Address(first + i)} lookup 77" for i in range(n))


HOSTS: Mapping[str, Callable[[], Iterator[str]]] = {
    "nothing": lambda: iter(()),
    "a million routes in another table": lambda: routes(1_000_000, "77"),
    "a million routes in main": lambda: routes(1_000_000, "main"),
    "10,000 addresses": lambda: addresses(10_000),
    "5,000 devices": lambda: devices(5_000),
    "2,000 rules": lambda: rules(2_000),
}


@pytest.mark.parametrize("what", HOSTS)
def test_an_agent_is_as_small_and_quick_as_elsewhere(what: str, record_property: Callable[[str, object], None]) -> None:
    with Lab(Plan(fresh_name(), hosts=2, agents=("h2",))) as lab:
        host = lab.hosts[0]
        lines = HOSTS[what]()
        while part := list(islice(lines, PART)):
            host.configure(*part)
        found = footprint_of_an_agent(host)
    record_property("figure", str(found))
    assert found.cpu_s < CPU_MAX_S
    assert found.memory_bytes < MEMORY_MAX_BYTES
