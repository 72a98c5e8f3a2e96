"""The CNI plugin on hosts with IPv6, with Debian's bridge and host-local; the subnet file is written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_interface
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.files import subnet_env
from flannel_udp.files.subnet_env import SubnetEnv
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import OVERLAY, OVERLAY_V6, Plan
from flannel_udp.model import Subnet
from tests.support.cni import NEEDED, CniPod, PluginError, Runtime, plugins_are_here
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = [*NEEDS_NETNS, pytest.mark.skipif(not plugins_are_here(), reason=f"needs {NEEDED}")]

MTU = 1452
V4, V6 = IPv4Network("10.244.1.0/24"), IPv6Network("fd00:10:244:1::/64")
DUAL = SubnetEnv(OVERLAY, Subnet(V4, V6), MTU, ip_masq=False, ipv6_network=OVERLAY_V6)
ONLY_V6 = SubnetEnv(None, Subnet(None, V6), MTU, ip_masq=False, ipv6_network=OVERLAY_V6)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=(), families="46")) as lab:
        yield lab


@pytest.fixture
def runtime(lab: Lab, tmp_path: Path) -> Runtime:
    return Runtime(lab.hosts[0], tmp_path)


def addresses_of(pod: CniPod) -> list[str]:
    """Return the pod's addresses in the order that it names them."""
    (eth0,) = json.loads(pod.run(["ip", "-json", "addr", "show", "dev", "eth0"]).stdout)
    addresses: list[dict[str, Any]] = eth0["addr_info"]
    return [f"{address['local']}/{address['prefixlen']}" for address in addresses if address["scope"] == "global"]


def routes_of(pod: CniPod, family: str) -> set[str]:
    """Return where the pod's routes lead over a gateway."""
    routes = json.loads(pod.run(["ip", "-json", family, "route"]).stdout)
    return {f"{route['dst']} via {route['gateway']}" for route in routes if "gateway" in route}


def test_a_pod_has_an_address_and_a_route_of_each_family_ipv4_first(lab: Lab, runtime: Runtime) -> None:
    subnet_env.write(lab.hosts[0].subnet_file, DUAL)
    pods = [runtime.new_pod(), runtime.new_pod()]
    for pod in pods:
        runtime.add(pod)
    given = [str(ip_interface(ip["address"]).network) for ip in pods[0].result["ips"]]
    assert given == [str(V4), str(V6)]
    assert addresses_of(pods[0]) == [ip["address"] for ip in pods[0].result["ips"]]
    assert routes_of(pods[0], "-4") == {f"{OVERLAY} via {V4[1]}", f"default via {V4[1]}"}
    assert routes_of(pods[0], "-6") == {f"{OVERLAY_V6} via {V6[1]}", f"default via {V6[1]}"}
    for ip in pods[1].result["ips"]:
        # Until one is answered: a bridge has a new port, and neighbours have to be found.
        pods[0].run(
            ["ping", "-c", "1", "-w", f"{PATIENCE_S:.0f}", str(ip_interface(ip["address"]).ip)],
            timeout_s=2 * PATIENCE_S,
        )
    for pod in pods:
        runtime.check(pod)
        runtime.delete(pod)
    assert runtime.remains() == []


def test_a_host_with_ipv6_alone(lab: Lab, runtime: Runtime) -> None:
    subnet_env.write(lab.hosts[0].subnet_file, ONLY_V6)
    pod = runtime.new_pod()
    runtime.add(pod)
    assert [ip_interface(address).network for address in addresses_of(pod)] == [V6]
    assert routes_of(pod, "-6") == {f"{OVERLAY_V6} via {V6[1]}", f"default via {V6[1]}"}
    assert routes_of(pod, "-4") == set()
    runtime.check(pod)
    runtime.delete(pod)
    assert runtime.remains() == []


def test_an_empty_subnet_file_lacks_the_keys_of_both_families(lab: Lab, runtime: Runtime) -> None:
    lab.hosts[0].subnet_file.write_text("")
    with pytest.raises(PluginError) as caught:
        runtime.add(runtime.new_pod())
    assert caught.value.msg.endswith(
        "lacks FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"
    )
