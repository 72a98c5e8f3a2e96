"""A bridge with the address of the subnet that the host had before, or of another one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network, ip_interface
from pathlib import Path

import pytest

from flannel_udp.files import subnet_env
from flannel_udp.files.subnet_env import SubnetEnv
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.model import Subnet
from tests.netns.test_doctor import faults as doctors_faults
from tests.support.agents import Agent, subnet_of, wait_for
from tests.support.by_hand import by_hand
from tests.support.cni import NEEDED, PluginError, Runtime, plugins_are_here
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.unit.test_former_bridges import OURS, REFUSED

pytestmark = NEEDS_NETNS

CONFIG = {"Network": "10.244.0.0/16", "SubnetMin": "10.244.9.0", "SubnetMax": "10.244.9.0"}
BEFORE = SubnetEnv(IPv4Network("10.1.0.0/16"), Subnet(IPv4Network("10.1.3.0/24")), 1472, ip_masq=False)
"""What subnet.env says of a run before the overlay network was changed."""


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=(), config=CONFIG)) as lab:
        yield lab.hosts[0]


def bridge(host: Host, name: str, *addresses: str) -> None:
    host.configure(f"link add {name} type bridge", f"link set {name} up")
    host.configure(*(f"addr add {address} dev {name}" for address in addresses or ["10.244.5.1/24"]))


def with_a_pod(host: Host) -> None:
    host.configure("link add veth1 type veth peer name far1", "link set veth1 master cni0")


def addresses(host: Host, name: str) -> list[str]:
    words = host.run(["ip", "-4", "-o", "addr", "show", "dev", name], check=False).stdout.split()
    return [word for before, word in itertools.pairwise(words) if before == "inet"]


def faults(host: Host) -> list[str]:
    return [text for text in host.control("/v1/status")["problems"] if "our subnet is" in text]


def fault_of(address: str) -> str:
    return (
        f"cni0 has {address}, and our subnet is 10.244.9.0/24: no pod can be started: stop the pods that are on it, "
        "then `ip link del cni0`: CNI makes it anew"
    )


@pytest.mark.parametrize("former", ["10.244.5.1/24", "10.1.3.1/24"], ids=["subnet", "Network"])
def test_an_empty_cni0_gets_the_new_address(host: Host, former: str) -> None:
    bridge(host, "cni0", former)
    subnet_env.write(host.subnet_file, BEFORE)
    with Agent(host) as agent:
        agent.wait_ready()
        wait_for("the new address", lambda: addresses(host, "cni0") == ["10.244.9.1/24"])
        agent.wait_for_line(f"put right: cni0, empty and with the former subnet's {former}, has 10.244.9.1/24 now")
        assert faults(host) == []


@pytest.mark.parametrize("former", ["10.244.5.1/24", "10.1.3.1/24"], ids=["subnet", "Network"])
def test_one_with_pods_is_named_with_what_mends_it(host: Host, former: str) -> None:
    bridge(host, "cni0", former)
    with_a_pod(host)
    subnet_env.write(host.subnet_file, BEFORE)
    with Agent(host) as agent:
        agent.wait_ready()
        wait_for("named", lambda: faults(host) == [fault_of(former)])
        assert host.is_ready()
        assert addresses(host, "cni0") == [former]
        what, mend = doctors_faults(host)["bridges"]
        assert f"{what}: {mend}" == fault_of(former)
        host.configure("link del veth1", "link del cni0")
        wait_for("no longer", lambda: faults(host) == [])


def test_one_of_nobody_knows_whose_network_is_named_and_left_alone(host: Host) -> None:
    """CRI-O's own configuration has made it, say, or an overlay of which no subnet.env is left."""
    bridge(host, "cni0", "10.85.0.1/16", "10.244.9.1/24")
    with Agent(host) as agent:
        agent.wait_ready()
        wait_for("named", lambda: faults(host) == [fault_of("10.85.0.1/16")])
        host.configure("addr del 10.85.0.1/16 dev cni0")
        wait_for("no longer", lambda: faults(host) == [])
        host.configure("addr add 10.85.0.1/16 dev cni0")  # behind ours, where the plugin does not look
        agent.wait_for_line("no longer degraded: cni0 has 10.85.0.1/16")
        assert addresses(host, "cni0") == ["10.244.9.1/24", "10.85.0.1/16"]
        assert "bridges" not in doctors_faults(host)
        assert faults(host) == []


def test_bridges_of_other_networks_are_nobodys_business_but_theirs(host: Host) -> None:
    """Where pods are on another one so is cni0; LXD's may be inside the overlay, and has had no subnet of ours."""
    bridge(host, "docker0", "10.244.9.1/24")
    bridge(host, "cni0", "10.85.0.1/16")
    bridge(host, "lxdbr0", "10.244.200.1/24")
    bridge(host, "cbr0", "10.1.3.1/24")  # this one was our pods': when it is named all have been looked at
    subnet_env.write(host.subnet_file, BEFORE)
    with Agent(host) as agent:
        agent.wait_ready()
        wait_for("looked", lambda: faults(host) != [])
        assert faults(host) == [fault_of("10.1.3.1/24").replace("cni0", "cbr0")]
        assert not any("lxdbr0" in what for what, _ in doctors_faults(host).values())


@pytest.mark.parametrize("former", ["10.244.5.0/24", "10.1.3.0/24"], ids=["subnet", "Network"])
def test_docker0_is_named_only(host: Host, former: str) -> None:
    subnet = IPv4Network(former)
    bridge(host, "docker0", f"{subnet[1]}/24")
    subnet_env.write(host.subnet_file, replace(BEFORE, network=subnet.supernet(new_prefix=16), subnet=Subnet(subnet)))
    with Agent(host) as agent:
        agent.wait_ready()
        fault = (
            f"docker0 has {subnet[1]}/24, and our subnet is 10.244.9.0/24: other hosts do not reach its containers: "
            "write its options anew (flannel-udp docker-opts) and restart Docker"
        )
        wait_for("named", lambda: faults(host) == [fault])
        assert addresses(host, "docker0") == [f"{subnet[1]}/24"]


def test_what_this_run_has_had_is_a_former_subnet_too() -> None:
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=())) as lab:
        (host,) = lab.hosts
        with Agent(host) as agent:
            agent.wait_ready()
            had = subnet_of(host)
            bridge(host, "cbr0", f"{had[1]}/24")
            key = str(had).replace("/", "-")
            by_hand(lab).delete(key)
            by_hand(lab).put(key, '{"PublicIP": "192.0.2.77"}')  # it is another host's
            wait_for(
                "named", lambda: [text for text in faults(host) if text.startswith(f"cbr0 has {had[1]}/24, ")] != []
            )
            assert subnet_of(host) != had


@pytest.mark.skipif(not plugins_are_here(), reason=f"needs {NEEDED}")
def test_the_plugin_refuses_what_we_say_it_refuses(host: Host, tmp_path: Path) -> None:
    """Debian's, asked for each of these addresses: without an agent, as that would put things right."""
    for number, (standing, refused) in enumerate(REFUSED):
        ours = ip_interface(OURS[6 if ":" in standing else 4]).network
        v4, v6 = (ours, None) if isinstance(ours, IPv4Network) else (None, ours)
        subnet_env.write(host.subnet_file, SubnetEnv(v4, Subnet(v4, v6), 1472, ip_masq=False, ipv6_network=v6))
        runtime = Runtime(host, tmp_path / str(number))
        host.run(["ip", "link", "del", "cni0"], check=False)
        bridge(host, "cni0")
        host.configure("addr flush dev cni0", *(f"addr add {address} dev cni0" for address in standing.split()))
        pod = runtime.new_pod()
        try:
            runtime.call("ADD", runtime.flannel, pod)
            said = ""
        except PluginError as error:
            said = error.msg
        assert ("already has an IP address different from" in said) == (refused is not None), (standing, said)
