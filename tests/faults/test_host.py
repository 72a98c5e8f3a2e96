"""What others do to a host, and an agent that dies: traffic runs between two pods all the time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest

from flannel_udp.host.upkeep import RETURN_S
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.faults.cluster import flows
from tests.faults.recorder import Recorder
from tests.support.agents import move_address, peers_of, subnet_of, up_with_peers, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

GROUP = "Host"
REPAIR_S, FOLLOW_S, RESTART_S = 1.0, RETURN_S + 3.0, 2.0
MOVED_TO = "192.0.2.77"


@pytest.fixture(scope="module")
def duo() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=2)) as lab:
        yield up_with_peers(lab)


def flannel0(host: Host) -> dict[str, Any]:
    done = host.run(["ip", "-json", "-4", "address", "show", "dev", "flannel0"], check=False)
    links: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return links[0] if links else {}


def is_right(host: Host, mtu: int = 1472) -> bool:
    """Tell whether flannel0 is up and has its MTU, address and route, as the kernel says."""
    link = flannel0(host)
    addresses = [item["local"] for item in link.get("addr_info", [])]
    route = host.run(["ip", "route", "show", "10.244.0.0/16"], check=False).stdout
    return (
        link.get("mtu") == mtu
        and "UP" in link["flags"]
        and str(subnet_of(host).network_address) in addresses
        and "dev flannel0" in route
    )


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("flannel0 set down", "link set flannel0 down"),
        ("address of flannel0 deleted", "addr flush dev flannel0"),
        ("route to the overlay deleted", "route del 10.244.0.0/16 dev flannel0"),
        ("MTU of flannel0 changed", "link set flannel0 mtu 1300"),
        ("flannel0 deleted", "link del flannel0"),
    ],
)
def test_a_changed_flannel0_is_put_right(duo: Lab, record: Recorder, name: str, command: str) -> None:
    h1 = duo.hosts[0]
    wait_for("flannel0 is right", lambda: is_right(h1))
    there, back = flows(duo)
    with record.fault(GROUP, name, f"`ip {command}`", there, back, limit_s=REPAIR_S, may_lose=math.inf) as fault:
        started_s = time.monotonic()
        h1.configure(command)
        fault.wait_right(started_s, lambda: is_right(h1))


def test_another_external_mtu_is_followed(duo: Lab, record: Recorder) -> None:
    h1 = duo.hosts[0]
    action = "`ip link set eth0 mtu 1400`"
    with record.fault(GROUP, "external MTU changed", action, *flows(duo), limit_s=REPAIR_S) as fault:
        started_s = time.monotonic()
        h1.configure("link set eth0 mtu 1400")
        fault.wait_right(started_s, lambda: is_right(h1, 1372), lambda: "MTU=1372" in h1.subnet_file.read_text())
    h1.configure("link set eth0 mtu 1500")
    wait_for("flannel0 is as before", lambda: is_right(h1))


def test_an_agent_that_was_killed_is_started_again(duo: Lab, record: Recorder) -> None:
    h1, h2 = duo.hosts
    subnet = subnet_of(h1)
    there, back = flows(duo)
    action = "`kill -9`, then started as at first"
    with record.fault(GROUP, "agent killed", action, there, back, limit_s=RESTART_S, may_lose=math.inf) as fault:
        started_s = time.monotonic()
        h1.kill_agent()
        h1.start_agent()
        sent = there.sent
        fault.wait_right(started_s, lambda: there.newest >= sent, h1.is_ready)
        assert subnet_of(h1) == subnet
        assert str(subnet) in peers_of(h2)


def test_another_external_address_is_followed(duo: Lab, record: Recorder) -> None:
    """The last one: h1 keeps the new address."""
    h1, h2 = duo.hosts
    there, back = flows(duo)
    action = f"`ip addr add {MOVED_TO}/24`, `ip addr del` of the old one"
    with record.fault(
        GROUP, "external address changed", action, there, back, limit_s=FOLLOW_S, may_lose=math.inf
    ) as fault:
        started_s = time.monotonic()
        move_address(h1, h1.underlay, MOVED_TO)
        fault.wait_right(started_s, lambda: peers_of(h2).get(str(subnet_of(h1))) == MOVED_TO)
