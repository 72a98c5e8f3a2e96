"""A registry inside the overlay network: VXLAN by the kernel has a route for each peer, ours one for all of it."""

from __future__ import annotations

import json

import pytest

from flannel_udp.backend.datapath import expects_kernel
from flannel_udp.backend.table import BACKENDS
from flannel_udp.host.vxlan_devices import IMPOSSIBLE
from flannel_udp.lab import netns
from flannel_udp.netconf.config import NetworkConfig
from tests.support.backends import parse_config
from tests.support.labs import NEEDS_NETNS, empty_namespace

pytestmark = NEEDS_NETNS

VXLAN = BACKENDS["vxlan"]


@pytest.fixture
def config() -> NetworkConfig:
    raw = {"Network": "10.0.0.0/8", "SubnetMin": "10.64.0.0", "SubnetMax": "10.127.0.0", "Backend": {"Type": "vxlan"}}
    return parse_config(json.dumps(raw)).config


@pytest.mark.parametrize(
    ("datapath", "beside", "leasable"),
    [
        ("kernel", None, "10.70.1.0/24"),
        ("auto", None, "10.70.1.0/24"),  # this machine's kernel has VXLAN
        ("userspace", "10.0.0.0/8", "10.0.0.0/8"),
    ],
)
def test_what_a_route_of_ours_may_take(config: NetworkConfig, datapath: str, beside: str | None, leasable: str) -> None:
    with empty_namespace() as name:

        def ask() -> list[str | None]:
            found = [
                VXLAN.route_for(config, address, datapath)
                for address in (config.overlay[0x090909], config.overlay[0x460109])
            ]
            return [None if route is None else str(route) for route in found]

        assert netns.call_inside(name, ask) == [beside, leasable]


def test_a_kind_that_the_kernel_does_not_know_is_told_without_making_anything() -> None:
    with empty_namespace() as name:
        assert not netns.call_inside(name, lambda: expects_kernel("auto", "nonsense", {}))
        assert netns.call_inside(name, lambda: expects_kernel("auto", "vxlan", IMPOSSIBLE))
