"""A bridge with the address of the subnet that the host had before."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

CONFIG = {"Network": "10.244.0.0/16", "SubnetMin": "10.244.9.0", "SubnetMax": "10.244.9.0"}


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=(), config=CONFIG)) as lab:
        yield lab.hosts[0]


def bridge(host: Host, name: str) -> None:
    host.configure(f"link add {name} type bridge", f"link set {name} up", f"addr add 10.244.5.1/24 dev {name}")


def addresses(host: Host, name: str) -> list[str]:
    words = host.run(["ip", "-4", "-o", "addr", "show", "dev", name], check=False).stdout.split()
    return [word for before, word in itertools.pairwise(words) if before == "inet"]


def faults(host: Host) -> list[str]:
    return [text for text in host.control("/v1/status")["problems"] if "former subnet" in text]


def test_an_empty_cni0_gets_the_new_address(host: Host) -> None:
    bridge(host, "cni0")
    with Agent(host) as agent:
        agent.wait_ready()
        wait_for("the new address", lambda: addresses(host, "cni0") == ["10.244.9.1/24"])
        agent.wait_for_line("put right: cni0, empty and with the former subnet's 10.244.5.1/24, has 10.244.9.1/24 now")
        assert faults(host) == []


def test_one_with_pods_is_named_with_what_mends_it(host: Host) -> None:
    bridge(host, "cni0")
    host.configure("link add veth1 type veth peer name far1", "link set veth1 master cni0")
    with Agent(host) as agent:
        agent.wait_ready()
        fault = (
            "cni0 has 10.244.5.1/24 of a former subnet, and ours is 10.244.9.0/24: no pod can be started: stop the "
            "pods that are on it, then `ip link del cni0`: CNI makes it anew"
        )
        wait_for("named", lambda: faults(host) == [fault])
        assert host.is_ready()
        assert addresses(host, "cni0") == ["10.244.5.1/24"]
        host.configure("link del cni0")
        wait_for("no longer", lambda: faults(host) == [])


def test_docker0_is_named_only(host: Host) -> None:
    bridge(host, "docker0")
    with Agent(host) as agent:
        agent.wait_ready()
        wait_for("named", lambda: any("restart Docker" in text for text in faults(host)))
        assert addresses(host, "docker0") == ["10.244.5.1/24"]
