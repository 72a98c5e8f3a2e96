"""Nonsense in one half of a host's entry: it costs exactly that half, is said once, and is over when it is mended.

Each of the two hosts reads a registry of its own, so that what one of them reads of the other can be poisoned while the
other one's agent, which would put its own entry right, holds its lease:

    h1 ── the lab's registry: h1's entry, and h2's, written by hand
    h2 ── another one: h2's entry, and h1's, written by hand
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping
from tests.support.agents import Log, peers_of, wait_for, wait_for_pings
from tests.support.by_hand import ByHand, FileByHand, by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

KEYS = {"h1": "10.244.1.0-24&fd00:10:244:1::-64", "h2": "10.244.2.0-24&fd00:10:244:2::-64"}
SUBNETS = {4: "10.244.2.0/24", 6: "fd00:10:244:2::/64"}
WAYS = {"udp, etcd": ("udp", "etcd"), "vxlan, etcd": ("vxlan", "etcd"), "host-gw, etcd": ("host-gw", "etcd")}
WAYS |= {"udp, file": ("udp", "file")}


@dataclass(frozen=True)
class Pair:
    """The two hosts, what h1 reads of, and what h2's entry is when all is well."""

    lab: Lab
    registry: ByHand
    good: dict[str, Any]

    def write(self, key: str, value: dict[str, Any]) -> None:
        """Let h2's entry be that."""
        for other in self.registry.subnets():
            if other not in (KEYS["h1"], key):
                self.registry.delete(other)
        self.registry.put(key, json.dumps(value))


@pytest.fixture(scope="module", params=WAYS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    kind, registry = WAYS[request.param]
    config = {"Network": str(OVERLAY), "Backend": {"Type": kind}}
    other = tmp_path_factory.mktemp("h2") / "registry.json"
    arguments = ("--datapath=kernel",) if kind == "vxlan" else ()
    plan = Plan(
        *(fresh_name(), 2),
        registry=registry,
        config=config,
        families="46",
        agents=(),
        agent_args=arguments,
        host_args={"h2": ("--registry", f"file:{other}")},
    )
    with Lab(plan) as lab:
        hand = by_hand(lab)
        ends = {
            host.name: {"PublicIP": str(host.underlay_of(4)), "PublicIPv6": str(host.underlay_of(6))}
            for host in lab.hosts
        }
        hand.put(KEYS["h1"], json.dumps(ends["h1"]))
        other.write_text(json.dumps({"config": plan.config, "subnets": {KEYS["h2"]: ends["h2"]}}))
        for host in lab.hosts:
            host.start_agent()
        for host in lab.hosts:
            host.wait_ready()
            host.attach_pods()
        others = FileByHand(lab, other)  # whose agent writes there as well
        good = json.loads(others.subnets()[KEYS["h2"]])
        others.put(KEYS["h1"], hand.subnets()[KEYS["h1"]])
        known = Pair(lab, hand, {name: good[name] for name in good if name not in ("Expires", "Owner")})
        known.write(KEYS["h2"], known.good)
        yield known


Poison = Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]


def value(**fields: Any) -> Poison:
    """Return what makes of h2's entry one with these fields."""
    return lambda good: (KEYS["h2"], good | fields)


def key(text: str) -> Poison:
    """Return what puts h2's value under another key."""
    return lambda good: (text, good)


POISONS: dict[str, tuple[int, Poison, str]] = {
    "PublicIPv6 no address": (6, value(PublicIPv6="2001:db8::zz"), "is no IPv6 address"),
    "PublicIPv6 missing": (6, value(PublicIPv6=None), "has no PublicIPv6"),
    "PublicIPv6 link-local": (6, value(PublicIPv6="fe80::2"), "PublicIPv6 fe80::2 is link-local"),
    "PublicIPv6 in the overlay": (6, value(PublicIPv6="fd00:10:244:9::1"), "is in the overlay network"),
    "IPv6 outside the network": (6, key("10.244.2.0-24&fd00:99::-64"), "fd00:99::/64 is outside"),
    "IPv6 as wide as the network": (6, key("10.244.2.0-24&fd00:10:244::-48"), "is as wide as the overlay"),
    "IPv6 of no length": (6, key("10.244.2.0-24&fd00:10:244:2::-0"), "prefix length 0 is outside 1 to 128"),
    "IPv6 with host bits": (6, key("10.244.2.0-24&fd00:10:244:2::7-64"), "host bits are set"),
    "our own IPv6": (6, key("10.244.2.0-24&fd00:10:244:1::-64"), "fd00:10:244:1::/64 is our own subnet"),
    "our own IPv4": (4, key("10.244.1.0-24&fd00:10:244:2::-64"), "10.244.1.0/24 is our own subnet"),
    "PublicIP 0.0.0.0": (4, value(PublicIP="0.0.0.0"), "PublicIP 0.0.0.0 is no address of one host"),
    "PublicIP no address": (4, value(PublicIP="192.0.2"), "is no IPv4 address"),
    "IPv4 outside the network": (4, key("10.99.2.0-24&fd00:10:244:2::-64"), "10.99.2.0/24 is outside"),
    "IPv4 too long": (4, key("10.244.2.0-33&fd00:10:244:2::-64"), "prefix length 33 is outside 1 to 32"),
}
VXLAN_POISONS: dict[str, tuple[int, Poison, str]] = {
    "BackendV6Data no object": (6, value(BackendV6Data="bad"), "IPv6 part is ignored"),
    "BackendV6Data no MAC": (6, value(BackendV6Data={"VNI": 1, "VtepMAC": "zz"}), "IPv6 part is ignored"),
    "BackendData no MAC": (4, value(BackendData={"VNI": 1, "VtepMAC": 7}), "IPv4 part is ignored"),
}


@pytest.mark.parametrize("poison", [*POISONS, *VXLAN_POISONS])
def test_a_poisoned_half_costs_that_half_is_said_once_and_is_over_when_mended(pair: Pair, poison: str) -> None:
    h1, h2 = pair.lab.hosts
    if poison in VXLAN_POISONS and h1.backend != "vxlan":
        pytest.skip("says nothing of the backend")
    bad, spoil, why = (POISONS | VXLAN_POISONS)[poison]
    left = 10 - bad
    wait_for_pings(pair.lab)
    log, pods = Log(h1), [host.pods[0] for host in (h1, h2)]
    pair.write(*spoil(pair.good))
    wait_for("the other half is all there is", lambda: set(peers_of(h1)) == {SUBNETS[left]})
    assert None not in ping(pods[0], [pods[1].address(left)], PATIENCE_S)
    assert None in ping(pods[0], [pods[1].address(bad)])
    (line,) = said(log)
    assert why in line
    assert f"its IPv{bad} part is ignored: " in line
    pair.write(KEYS["h2"], pair.good)
    wait_for_pings(pair.lab)
    assert set(peers_of(h1)) == set(SUBNETS.values())
    assert said(log) == [line]
    wait_for("nothing is wrong", lambda: h1.control("/v1/status")["problems"] == [])


def said(log: Log) -> list[str]:
    """Return what was said of entries; that a host is ignored whose packets come is another matter, `degraded: ...`."""
    return [line for line in log.complaints() if line.startswith("entry ")]
