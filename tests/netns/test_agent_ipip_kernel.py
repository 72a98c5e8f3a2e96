"""IP in IP by the kernel, on hosts whose kernel's IPIP is a double: the device's life, the routes', what is in the way.

No packet passes here (see tests/support/ipip_kernel.py): what counts is what the kernel is asked, and what it has then.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from flannel_udp.files import subnet_env
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support import ipip_kernel
from tests.support.agents import Agent, move_address, subnet_of, wait_for
from tests.support.by_hand import by_hand
from tests.support.ipip_kernel import LOCAL, PMTUDISC, REMOTE, State, as_kept
from tests.support.kernel_state import kernel_state, lease_end_of, ours_of
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import promised

pytestmark = NEEDS_NETNS

CONFIG = {"Network": str(OVERLAY), "Backend": {"Type": "ipip"}}
PEER, PEER_IP = IPv4Network("10.244.240.0/24"), IPv4Address("192.0.2.40")
"""A subnet that no host of the lab gets: it is not among the first hundred."""
OURS = IPv4Network("10.244.1.0/24")
REPAIR_S = 1.0
"""A busy machine: what is promised is measured elsewhere."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    """One host, and beside it what is written into the registry."""
    with Lab(Plan(fresh_name(), hosts=1, agents=(), config=CONFIG)) as lab:
        by_hand(lab).put_leased(key_of(PEER), value_of(PEER_IP))
        yield lab


@pytest.fixture
def host(lab: Lab) -> Host:
    return lab.hosts[0]


def key_of(subnet: IPv4Network) -> str:
    return str(subnet).replace("/", "-")


def value_of(public_ip: object, kind: str = "ipip") -> str:
    return f'{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"{kind}"}}'


def state_of(host: Host) -> State:
    return State(host.state / "ipip.json")


def agent_on(host: Host, *arguments: str) -> Agent:
    environment = {ipip_kernel.STATE: str(host.state / "ipip.json")}
    return Agent(host, *arguments, environment=environment, program=("-P", ipip_kernel.__file__))


def add_device(host: Host, name: str, local: str = "0.0.0.0", *, up: bool = True, **data: bytes) -> None:
    """Have an IPIP device of somebody else's on the host."""
    numbers = {getattr(ipip_kernel, key.upper()): value for key, value in data.items()}
    state_of(host).add(name, {LOCAL: IPv4Address(local).packed, **numbers})
    host.configure(f"link add {name} type ifb", f"link set {name} {'up' if up else 'down'}")


def link_of(host: Host, name: str = "flannel.ipip") -> dict[str, Any]:
    (link,) = json.loads(host.run(["ip", "-json", "-d", "address", "show", "dev", name]).stdout)
    return dict(link)


def routes_are_right(host: Host, public_ip: object = PEER_IP) -> bool:
    return ours_of(host) == [f"{PEER} via {public_ip} dev flannel.ipip onlink"]


def routes_of(host: Host) -> set[str]:
    return {line.strip() for line in host.run(["ip", "route", "show"]).stdout.splitlines()}


def repairs_of(host: Host) -> dict[str, int]:
    repairs: dict[str, int] = host.control("/v1/status")["host_repairs"]
    return repairs


def refusal(agent: Agent) -> str:
    assert agent.exit_code() == 1, agent.said()
    (line,) = [line for line in agent.said() if line.startswith("flannel-udp: ")]
    return line


# What it makes


def test_device_address_and_routes_are_flannels(host: Host, lab: Lab) -> None:
    with agent_on(host) as agent:
        agent.wait_ready()
        subnet = subnet_of(host)
        wait_for("the peer's route", lambda: routes_are_right(host))
        link = link_of(host)
        assert (link["mtu"], link["ifalias"], "UP" in link["flags"]) == (1_480, "flannel-udp", True)
        (address,) = link["addr_info"]
        assert (address["local"], address["prefixlen"], address["scope"]) == (str(subnet[0]), 32, "global")
        assert address["valid_life_time"] < 86_400  # it ends with the lease, and the routes with it
        assert lease_end_of(host) is None
        wanted = {LOCAL: host.underlay.packed, PMTUDISC: b"\0"}
        assert state_of(host).data_of("flannel.ipip") == as_kept(wanted)
        assert len(state_of(host).requests()) == 1
        assert subnet_env.require(host.subnet_file).mtu == 1_480
        entry = json.loads(by_hand(lab).subnets()[key_of(subnet)])
        assert (entry["PublicIP"], entry["PublicIPv6"], entry["BackendType"]) == (str(host.underlay), None, "ipip")
        assert "BackendData" not in entry
        status = host.control("/v1/status")
        assert (status["backend"], status["problems"]) == ({"type": "ipip", "datapath": "kernel"}, [])


def test_routes_follow_the_registry(host: Host, lab: Lab) -> None:
    hand = by_hand(lab)
    with agent_on(host) as agent:
        agent.wait_ready()
        wait_for("it is there", lambda: routes_are_right(host))
        hand.put_leased(key_of(PEER), value_of("198.51.100.7"))  # behind a router, and on no network of the device's
        wait_for("it moves", lambda: routes_are_right(host, "198.51.100.7"))
        hand.delete(key_of(PEER))
        wait_for("it goes", lambda: ours_of(host) == [])


def test_with_direct_routing_only_hosts_beyond_the_link_are_tunnelled(host: Host, lab: Lab) -> None:
    hand, beyond = by_hand(lab), IPv4Network("10.244.241.0/24")
    hand.configure({"Network": str(OVERLAY), "Backend": {"Type": "ipip", "DirectRouting": True}})
    hand.put_leased(key_of(beyond), value_of("198.51.100.7"))
    with agent_on(host) as agent:
        agent.wait_ready()
        first = subnet_of(host).network_address
        expected = [f"{PEER} via {PEER_IP} dev eth0 src {first}", f"{beyond} via 198.51.100.7 dev flannel.ipip onlink"]
        wait_for("both routes", lambda: sorted(ours_of(host)) == expected)
        agent.stop()
    hand.choose_backend("ipip")
    with agent_on(host) as agent:
        agent.wait_ready()
        expected[0] = f"{PEER} via {PEER_IP} dev flannel.ipip onlink"
        wait_for("the tunnel for all", lambda: sorted(ours_of(host)) == expected)


# Kept right


@pytest.mark.parametrize(
    ("disturbance", "counted"),
    [
        ("link del flannel.ipip", "tunnel"),
        ("link set flannel.ipip down", "link"),
        ("link set flannel.ipip mtu 1300", "mtu"),
        ("address flush dev flannel.ipip", "address"),
        (f"route del {PEER}", "route"),
    ],
)
def test_what_somebody_changes_is_put_right_and_counted(host: Host, disturbance: str, counted: str) -> None:
    with agent_on(host) as agent:
        agent.wait_ready()
        wait_for("the peer's route", lambda: routes_are_right(host))
        before = kernel_state(host)
        host.configure(disturbance)
        wait_for("it is counted", lambda: repairs_of(host)[counted] >= 1, promised(REPAIR_S))
        wait_for("all is as before", lambda: kernel_state(host) == before and link_of(host)["mtu"] == 1_480)
        assert "UP" in link_of(host)["flags"]


def test_another_local_address_of_the_device_is_changed_in_place(host: Host) -> None:
    with agent_on(host) as agent:
        agent.wait_ready()
        wait_for("the peer's route", lambda: routes_are_right(host))
        index = link_of(host)["ifindex"]
        other = ipip_kernel.packed(as_kept({LOCAL: IPv4Address("192.0.2.9").packed, PMTUDISC: b"\0"})).hex()
        with state_of(host).changed() as state:
            state["devices"]["flannel.ipip"]["data"] = other
        host.configure("link set flannel.ipip txqueuelen 999")  # the double tells nobody that it was changed
        wait_for("it is ours", lambda: state_of(host).data_of("flannel.ipip")[LOCAL] == host.underlay.packed)
        wait_for("it is counted", lambda: repairs_of(host)["settings"] == 1)
        assert link_of(host)["ifindex"] == index
        assert routes_are_right(host)


def test_it_follows_the_interfaces_address_without_being_made_anew(host: Host) -> None:
    with agent_on(host) as agent:
        agent.wait_ready()
        wait_for("the peer's route", lambda: routes_are_right(host))
        index = link_of(host)["ifindex"]
        move_address(host, host.underlay, "192.0.2.77")
        moved = IPv4Address("192.0.2.77").packed
        wait_for("the device has it", lambda: state_of(host).data_of("flannel.ipip")[LOCAL] == moved)
        assert link_of(host)["ifindex"] == index
        wait_for("its routes stand", lambda: routes_are_right(host))
        last = state_of(host).requests()[-1]
        assert struct.unpack_from("=BxHi", last, 16)[2] == index  # struct ifinfomsg


def test_it_follows_the_interfaces_mtu(host: Host) -> None:
    with agent_on(host) as agent:
        agent.wait_ready()
        host.configure("link set eth0 mtu 1400")
        wait_for("the device", lambda: link_of(host)["mtu"] == 1_380)
        wait_for("subnet.env", lambda: subnet_env.require(host.subnet_file).mtu == 1_380)


# One run after another


@pytest.mark.parametrize("end", ["SIGTERM", "kill -9"])
def test_all_stays_at_its_end_and_the_next_run_goes_on_with_it(host: Host, end: str) -> None:
    with agent_on(host) as agent:
        agent.wait_ready()
        wait_for("the peer's route", lambda: routes_are_right(host))
        subnet, before, index = subnet_of(host), kernel_state(host), link_of(host)["ifindex"]
        if end == "SIGTERM":
            assert agent.stop() == 0
            assert link_of(host)["addr_info"][0]["valid_life_time"] == 2**32 - 1  # forever
    assert kernel_state(host) == before
    with agent_on(host) as agent:
        agent.wait_ready()
        wait_for("its routes stand", lambda: routes_are_right(host))
        assert (subnet_of(host), link_of(host)["ifindex"]) == (subnet, index)
        assert kernel_state(host) == before
        assert len(state_of(host).requests()) == 1


def test_it_is_clean_on_exit_where_that_is_asked_for(host: Host) -> None:
    before = kernel_state(host)
    with agent_on(host, "--clean-on-exit") as agent:
        agent.wait_ready()
        wait_for("the peer's route", lambda: routes_are_right(host))
        assert agent.stop() == 0
    assert kernel_state(host) == before


@pytest.mark.parametrize("kind", ["udp", "host-gw", "alloc"])
def test_nothing_stays_after_a_change_of_backend(host: Host, lab: Lab, kind: str) -> None:
    before = kernel_state(host)
    with agent_on(host) as agent:
        agent.wait_ready()
        wait_for("the peer's route", lambda: routes_are_right(host))
        agent.stop()
    by_hand(lab).choose_backend(kind)
    with agent_on(host, "--clean-on-exit") as agent:
        agent.wait_ready()
        agent.wait_for_line("removed what an earlier run left: the device flannel.ipip")
        agent.stop()
    assert kernel_state(host) == before


# What is in the way


def test_flannelds_device_is_taken_as_it_is(host: Host) -> None:
    add_device(host, "flannel.ipip", str(host.underlay))
    index = link_of(host)["ifindex"]
    with agent_on(host) as agent:
        agent.wait_ready()
        wait_for("the peer's route", lambda: routes_are_right(host))
        assert link_of(host)["ifindex"] == index
        assert state_of(host).requests() == []


def test_what_flanneld_left_of_departed_peers_goes_and_nobody_elses_route_does(host: Host) -> None:
    """On its device flanneld has ``SUBNET via PUBLIC-IP onlink``, in the main table, of protocol boot."""
    add_device(host, "flannel.ipip", str(host.underlay))
    foreign = (
        "198.18.9.0/24 via 192.0.2.9 dev flannel.ipip onlink",  # beside the overlay
        f"{OVERLAY} via 192.0.2.9 dev flannel.ipip onlink",  # all of it: nobody leases that
        "10.244.9.7/32 via 192.0.2.9 dev flannel.ipip onlink",  # one pod
        "10.244.11.0/24 via 192.0.2.9 dev flannel.ipip proto static onlink",
        "10.244.12.0/24 via 192.0.2.9 dev flannel.ipip metric 7 onlink",
        "10.244.13.0/24 dev flannel.ipip scope link",
        "10.244.14.0/24 via 10.244.14.1 dev flannel.ipip onlink",  # to a pod
        "10.244.15.0/24 via 192.0.2.9 dev eth0 onlink",
    )
    for route in foreign:
        host.configure(f"route add {route}")
    stays = routes_of(host)
    for left in (f"{PEER} via 192.0.2.8", "10.244.9.0/24 via 192.0.2.9"):  # of one that moved, and one that is gone
        host.configure(f"route add {left} dev flannel.ipip onlink")
    with agent_on(host) as agent:
        agent.wait_ready()
        wait_for("the peer's route", lambda: routes_are_right(host))
        assert not any("not ours" in line for line in agent.said())
        shown = routes_of(host)
        assert stays <= shown
        assert not any(route.startswith("10.244.9.0/24 via") for route in shown)
        host.configure("route add 10.244.9.0/24 via 192.0.2.9 dev flannel.ipip onlink")  # flanneld is gone by now
        stays = routes_of(host)
        assert agent.stop() == 0
    with agent_on(host) as agent:
        agent.wait_ready()
        wait_for("the peer's route", lambda: routes_are_right(host))
        assert stays <= routes_of(host)


def test_flannelds_device_with_another_address_is_changed_where_our_entry_says_that_it_ran_here(
    host: Host, lab: Lab
) -> None:
    by_hand(lab).put_leased(key_of(OURS), value_of(host.underlay))
    add_device(host, "flannel.ipip", "192.0.2.9")
    with agent_on(host) as agent:
        agent.wait_ready()
        assert subnet_of(host) == OURS
        wait_for("it is ours", lambda: state_of(host).data_of("flannel.ipip")[LOCAL] == host.underlay.packed)


def test_an_administrators_device_of_our_name_is_named_and_left_alone(host: Host, lab: Lab) -> None:
    add_device(host, "flannel.ipip", "192.0.2.9")
    before = kernel_state(host)
    with agent_on(host) as agent:
        line = refusal(agent)
        assert "there is an ipip device flannel.ipip already, and it is not ours" in line
        assert "it has local 192.0.2.9 remote any, not local 192.0.2.1 remote any" in line
        assert "ip link del flannel.ipip" in line
    assert kernel_state(host) == before
    assert key_of(PEER) in by_hand(lab).subnets()
    assert len(by_hand(lab).subnets()) == 1


def test_a_device_of_our_name_and_another_kind_is_named(host: Host) -> None:
    host.configure("link add flannel.ipip type bridge")
    with agent_on(host) as agent:
        assert "there is a device flannel.ipip already, and it is no ipip device" in refusal(agent)


def test_another_device_with_our_address_is_named(host: Host) -> None:
    add_device(host, "tun7", str(host.underlay))
    with agent_on(host) as agent:
        assert "another ipip device has our address: tun7: remove it with 'ip link del tun7'" in refusal(agent)


def test_the_modules_own_device_is_in_nobodys_way(host: Host) -> None:
    add_device(host, "tunl0")
    with agent_on(host) as agent:
        agent.wait_ready()
        wait_for("the peer's route", lambda: routes_are_right(host))
        assert host.control("/v1/status")["problems"] == []
    assert link_of(host, "tunl0")["ifname"] == "tunl0"


# Our own packet path on such a kernel


def test_userspace_where_the_kernel_could_takes_the_kernels_device_away(host: Host) -> None:
    with agent_on(host) as agent:
        agent.wait_ready()
        wait_for("the peer's route", lambda: routes_are_right(host))
        agent.stop()
    with agent_on(host, "--datapath=userspace") as agent:
        agent.wait_for_line("removed the kernel's flannel.ipip, which an earlier run left and which was in the way")
        agent.wait_ready()
        assert link_of(host)["linkinfo"]["info_kind"] == "tun"
        wait_for("routes go, too", lambda: ours_of(host) == [])
        agent.stop()
    with agent_on(host) as agent:
        agent.wait_ready()
        wait_for("the peer's route", lambda: routes_are_right(host))


def test_userspace_names_a_device_that_delivers_every_packet_again(host: Host) -> None:
    add_device(host, "tunl0")
    with agent_on(host, "--datapath=userspace") as agent:
        line = "the kernel's tunl0 takes every packet of peers, too, and delivers it a second time"
        agent.wait_for_line(line)
        wait_for("status", lambda: any(line in text for text in host.control("/v1/status")["problems"]))
        host.configure("link set tunl0 down")
        host.configure("link set flannel.ipip txqueuelen 4999")  # news of what we look after
        wait_for("no more", lambda: host.control("/v1/status")["problems"] == [])


def test_the_remote_end_of_a_device_is_compared(host: Host) -> None:
    add_device(host, "flannel.ipip", str(host.underlay), remote=IPv4Address("192.0.2.9").packed)
    assert state_of(host).data_of("flannel.ipip")[REMOTE] == IPv4Address("192.0.2.9").packed
    with agent_on(host) as agent:
        assert "remote 192.0.2.9" in refusal(agent)
