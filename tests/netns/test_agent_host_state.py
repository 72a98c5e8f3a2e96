"""Somebody changes flannel0 or the external interface under a running agent: it is put right, and traffic goes on."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from typing import Any

import pytest

from flannel_udp.files import subnet_env
from flannel_udp.files.subnet_env import SubnetEnv
from flannel_udp.host.upkeep import RETURN_S
from flannel_udp.lab import ethtool
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import ping_matrix
from flannel_udp.model import Subnet
from flannel_udp.options import DataplaneOptions
from tests.support.agents import Agent, Log, links_of, move_address, peers_of, subnet_of, up_with_peers, wait_for
from tests.support.by_hand import by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import promised

pytestmark = NEEDS_NETNS

REPAIR_S = 1.0
FOLLOW_S = 3.0
"""How soon flannel0 must be right again, and a changed external interface be followed."""
ON_ETH9 = "198.51.100.7"
ETH9 = ["link add eth9 type veth peer name far9", "link set eth9 up", "link set far9 up"]
ETH9.append(f"addr add {ON_ETH9}/24 dev eth9")
NETWORK = "10.244.0.0/16"
SIOCSIFMTU = 0x8922  # linux/sockios.h
TUN_TSO = ("tx-tcp-segmentation", "tx-tcp-ecn-segmentation")
"""What a tunnel device has of `ethtool -K DEVICE tso`."""


@pytest.fixture(scope="module")
def duo() -> Iterator[Lab]:
    """Two hosts whose tests end as they began; see `Host.restart` for why some start the agent afresh."""
    with Lab(Plan(fresh_name(), hosts=2)) as lab:
        yield up_with_peers(lab)


@pytest.fixture
def h1(duo: Lab) -> Host:
    """The host that is disturbed, with an agent that has made no repair yet."""
    host, other = duo.hosts
    host.stop_agent()
    host.start_agent()
    host.wait_ready()
    host.wait_peers({subnet_of(other)})
    return host


def flannel0(host: Host, name: str = "flannel0") -> dict[str, Any]:
    """Return what `ip` says of the device, empty if there is none."""
    done = host.run(["ip", "-json", "-4", "address", "show", "dev", name], check=False)
    (link,) = json.loads(done.stdout or "[{}]") or [{}]
    return {key: link.get(key) for key in ("mtu", "txqlen", "flags")} | {
        "addresses": [(item["local"], item["prefixlen"]) for item in link.get("addr_info", [])]
    }


def test_status_says_what_ethtool_has_switched_off(h1: Host) -> None:
    def offload() -> set[str]:
        return set(h1.control("/v1/status")["offload"])

    before = offload()
    assert "tso" in before
    ethtool.set_features(h1.namespace, "flannel0", dict.fromkeys(TUN_TSO, False))
    assert offload() == before - {"tso"}
    ethtool.set_features(h1.namespace, "flannel0", dict.fromkeys(TUN_TSO, True))
    assert offload() == before


def routes_of(host: Host) -> list[str]:
    lines = host.run(["ip", "route", "show", "table", "all"]).stdout.splitlines()
    return [line.strip() for line in lines if NETWORK in line or line.startswith("blackhole")]


def is_right(host: Host, mtu: int = 1472) -> bool:
    """Tell whether flannel0 is as the agent made it."""
    link = flannel0(host)
    address = (str(subnet_of(host).network_address), 32)
    up = "UP" in (link["flags"] or ())
    return up and link["mtu"] == mtu and address in link["addresses"] and f"{NETWORK} dev flannel0" in routes_of(host)


def repairs_of(host: Host) -> dict[str, int]:
    """Return what was put right, and how often."""
    repairs: dict[str, int] = host.control("/v1/status")["host_repairs"]
    return {what: count for what, count in repairs.items() if count}


def assert_traffic(lab: Lab) -> None:
    """Every pod reaches every other one: what is lost in the first moments is asked again."""
    wait_for("traffic", lambda: None not in ping_matrix(lab.pods(), timeout_s=0.5).values())


# flannel0


@pytest.mark.parametrize(
    ("doing", "repairs"),
    [
        ("link set flannel0 down", {"link": 1, "route": 1}),
        ("addr flush dev flannel0", {"address": 1, "route": 1}),
        ("link set flannel0 mtu 1300", {"mtu": 1}),
        (f"route del {NETWORK}", {"route": 1}),
        (f"route replace {NETWORK} dev eth0", {"route": 1}),
    ],
)
def test_a_changed_flannel0_is_put_right_within_a_second(
    duo: Lab, h1: Host, doing: str, repairs: dict[str, int]
) -> None:
    log = Log(h1)
    assert is_right(h1)
    h1.configure(doing)
    assert wait_for("it is put right", lambda: repairs_of(h1) == repairs) < promised(REPAIR_S)
    assert is_right(h1)
    assert_traffic(duo)
    assert repairs_of(h1) == repairs
    # In one line, or in two where the agent looked between the kernel's steps: an address goes, then its routes.
    told = [line.removeprefix("put right on flannel0: ").split(", ") for line in log.events()]
    assert sorted(what for line in told for what in line) == sorted(repairs)


def test_a_deleted_blackhole_route_is_put_back_within_a_second(duo: Lab, h1: Host) -> None:
    h1.stop_agent()
    h1.start_agent("--ip-blackhole-route")
    h1.wait_ready()
    h1.wait_peers({subnet_of(duo.hosts[1])})
    log, route = Log(h1), f"blackhole {subnet_of(h1)} metric 4294967295"
    assert route in routes_of(h1)
    h1.configure(f"route del {route}")
    assert wait_for("it is there again", lambda: route in routes_of(h1)) < promised(REPAIR_S)
    wait_for("it is counted", lambda: repairs_of(h1) == {"blackhole": 1})
    assert_traffic(duo)
    assert repairs_of(h1) == {"blackhole": 1}
    assert log.events() == [f"put right: the blackhole route for {subnet_of(h1)}"]


def test_what_others_add_to_flannel0_stays(duo: Lab, h1: Host) -> None:
    extra = [f"{NETWORK} dev flannel0 metric 7", f"{NETWORK} dev flannel0 table 100"]
    h1.configure(
        "addr add 198.51.100.7/32 dev flannel0",
        "addr add fe80::7/64 dev flannel0",
        *(f"route add {route.replace('table', 'scope link table')}" for route in extra),
    )
    h1.configure("link set flannel0 mtu 1300")
    wait_for("the MTU is right again", lambda: is_right(h1))
    assert ("198.51.100.7", 32) in flannel0(h1)["addresses"]
    assert "fe80::7/64" in h1.run(["ip", "-6", "addr", "show", "dev", "flannel0"]).stdout
    assert len(routes_of(h1)) == 3, routes_of(h1)
    assert_traffic(duo)
    assert repairs_of(h1) == {"mtu": 1}


def test_a_deleted_flannel0_is_made_anew_and_the_counters_go_on(duo: Lab, h1: Host) -> None:
    assert_traffic(duo)
    log, before = Log(h1), h1.control("/v1/status")
    peers_before = h1.control("/v1/peers")
    h1.configure("link del flannel0")
    assert wait_for("it is there again", lambda: is_right(h1)) < promised(REPAIR_S)
    assert flannel0(h1)["txqlen"] == DataplaneOptions().tx_queue_packets
    assert_traffic(duo)
    after = h1.control("/v1/status")
    assert after["counters"]["out"]["packets"] > before["counters"]["out"]["packets"] > 0
    assert h1.control("/v1/peers")[0]["packets_out"] > peers_before[0]["packets_out"] > 0
    assert after["offload"] == before["offload"]
    assert repairs_of(h1) == {"tunnel": 1}
    assert log.events() == ["flannel0 was deleted or broke: made it anew"]


def test_a_flannel0_that_somebody_else_was_faster_to_make_gets_the_next_name(duo: Lab, h1: Host) -> None:
    log = Log(h1)
    faster = (
        "import fcntl, os, struct, subprocess, sys\n"
        "subprocess.run(['ip', 'link', 'set', 'flannel0', 'name', 'stolen'], check=True)\n"
        "tun = os.open('/dev/net/tun', os.O_RDWR)\n"
        "fcntl.ioctl(tun, 0x400454CA, struct.pack('16sH22x', b'flannel0', 0x1001))\n"
        "subprocess.run(['ip', 'link', 'del', 'stolen'], check=True)\n"
        "print('done', flush=True)\n"
        "sys.stdin.read()\n"
    )
    stranger = h1.popen([sys.executable, "-c", faster], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "done\n"
        wait_for("another device", lambda: h1.control("/v1/status")["tunnel"]["name"] == "flannel1")
        wait_for("its route", lambda: f"{NETWORK} dev flannel1" in routes_of(h1))
        assert_traffic(duo)
        assert log.events()[-1].endswith("was deleted or broke: made flannel1 anew"), log.events()
    finally:
        stranger.kill()
        stranger.communicate()
    assert links_of(h1) == ["flannel1"]


def test_with_several_workers_a_deleted_flannel0_has_all_its_queues_again(duo: Lab, h1: Host) -> None:
    h1.stop_agent()
    h1.start_agent("--workers", "2")
    h1.wait_ready()
    h1.wait_peers({subnet_of(duo.hosts[1])})
    h1.configure("link del flannel0")
    assert wait_for("it is there again", lambda: is_right(h1)) < promised(REPAIR_S)
    assert_traffic(duo)
    (link,) = json.loads(h1.run(["ip", "-json", "-detail", "link", "show", "dev", "flannel0"]).stdout)
    assert link["linkinfo"]["info_data"]["numqueues"] == 2


def test_who_fights_with_us_is_told_once_and_costs_little(h1: Host) -> None:
    log = Log(h1)
    with h1.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:

        def fight() -> None:
            """Without a program that has to start first: what stands for a second is right."""
            fcntl.ioctl(sock, SIOCSIFMTU, struct.pack("16si20x", b"flannel0", 1300))

        def fight_until_told() -> bool:
            fight()
            return bool(log.lines("again and again"))

        wait_for("it is told", fight_until_told)
        ends_s = time.monotonic() + 5.0
        while time.monotonic() < ends_s:
            fight()
            time.sleep(0.05)
    wait_for("each repair is told, and one thing more", lambda: len(log.events()) == repairs_of(h1)["mtu"] + 1)
    fought = repairs_of(h1)["mtu"]
    assert 10 <= fought <= 15, fought
    (warning,) = log.lines("again and again")
    assert warning == "somebody undoes our repairs again and again, they become rarer from now on: mtu"
    unsteady = "the MTU of flannel0 does not stay at 1472: `ip -ts monitor link` shows when"
    assert log.lines("does not stay") == [f"degraded: {unsteady}"]
    status = h1.control("/v1/status")
    assert (status["ready"], status["problems"], status["degraded"]) == (True, [unsteady], ["host"])
    wait_for("in the end we win", lambda: is_right(h1))
    wait_for("nothing is wrong any more", lambda: h1.control("/v1/status")["problems"] == [])


# The external interface


def test_another_external_address_is_bound_and_registered_and_traffic_goes_on(registry: str) -> None:
    with Lab(Plan(fresh_name(), hosts=2, registry=registry)) as lab:
        h1, h2 = up_with_peers(lab).hosts
        subnet, log = subnet_of(h1), Log(h1)
        assert_traffic(lab)
        move_address(h1, h1.underlay, "192.0.2.77")

        def registered() -> bool:
            return peers_of(h2).get(str(subnet)) == "192.0.2.77"

        assert wait_for("the other host knows", registered) < promised(RETURN_S + FOLLOW_S)
        assert_traffic(lab)
        assert subnet_of(h1) == subnet
        entry = json.loads(by_hand(lab).subnets()[str(subnet).replace("/", "-")])
        assert entry["PublicIP"] == "192.0.2.77"
        status = h1.control("/v1/status")
        assert (status["ready"], status["public_ip"]) == (True, "192.0.2.77")
        assert repairs_of(h1) == {"socket": 1}
        told = f"the external address is 192.0.2.77 on eth0 now, it was {h1.underlay} on eth0"
        assert len(log.lines(told)) == 1
        assert log.lines("lost our subnet") == []


def test_an_interface_that_goes_down_is_waited_for(duo: Lab, h1: Host) -> None:
    log = Log(h1)
    h1.configure("link set eth0 down")
    assert wait_for("not ready", lambda: not h1.is_ready()) < promised(FOLLOW_S)
    assert h1.control("/v1/status")["state"] == "interface eth0 is down: waiting for it"
    h1.configure("link set eth0 up")
    assert wait_for("ready", h1.is_ready) < promised(FOLLOW_S)
    assert_traffic(duo)
    assert repairs_of(h1) == {"interface": 1}
    assert log.events() == [
        "no traffic: interface eth0 is down: waiting for it",
        "traffic can pass again, through eth0",
    ]


@contextmanager
def eth9_before_eth0(return_s: float = RETURN_S) -> Iterator[tuple[Host, Agent]]:
    """An agent that takes eth9 where it can, and else eth0; what it loses it waits for as long as is said."""
    program = f"""
import sys
from flannel_udp.cli.main import main
from flannel_udp.host import upkeep
upkeep.RETURN_S = {return_s}
sys.exit(main())
"""
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        (host,) = lab.hosts
        host.configure(*ETH9)
        regexes = ("--iface-regex=^198[.]", "--iface-regex=^192[.]")
        with Agent(host, *regexes, iface="", program=("-c", program)) as agent:
            agent.wait_ready()
            yield host, agent


@pytest.mark.parametrize(
    ("doing", "undoing"),
    [
        ("link set eth9 down", ["link set eth9 up"]),
        (f"addr del {ON_ETH9}/24 dev eth9", [f"addr add {ON_ETH9}/24 dev eth9"]),
        ("link del eth9", ETH9),
    ],
    ids=["down and up", "without its address", "made anew"],
)
def test_an_interface_that_is_back_within_seconds_is_the_agents_still(doing: str, undoing: list[str]) -> None:
    with eth9_before_eth0(120.0) as (host, agent):  # seconds, as a busy machine has them
        host.configure(doing)
        agent.wait_for_line("no traffic: interface eth9 ")
        time.sleep(1.0)
        assert not host.is_ready()
        host.configure(*undoing)
        agent.wait_for_line("traffic can pass again, through eth9")
        assert wait_for("ready", host.is_ready) < promised(FOLLOW_S)
        assert host.control("/v1/status")["interface"]["address"] == ON_ETH9
        assert not [line for line in agent.said() if "the external address is" in line]


def test_in_the_place_of_an_interface_that_stays_away_another_one_is_taken() -> None:
    with eth9_before_eth0() as (host, agent):
        began_s = time.monotonic()
        host.configure("link set eth9 down")
        agent.wait_for_line("no traffic: interface eth9 is down: waiting for it")
        agent.wait_for_line(f"the external address is {host.underlay} on eth0 now, it was {ON_ETH9} on eth9")
        assert RETURN_S <= time.monotonic() - began_s < promised(RETURN_S + FOLLOW_S)
        wait_for("ready", host.is_ready)


def test_what_was_taken_in_its_place_is_waited_for_as_long() -> None:
    with eth9_before_eth0(30.0) as (host, agent):  # what is lost and comes back here must do so by then
        host.configure("link set eth9 down")
        agent.wait_for_line(f"the external address is {host.underlay} on eth0 now, it was {ON_ETH9} on eth9")
        wait_for("ready", host.is_ready)
        host.configure("link set eth9 up", "link set eth0 down")
        agent.wait_for_line("no traffic: interface eth0 is down: waiting for it")
        host.configure("link set eth0 up")
        wait_for("ready again", host.is_ready)
        assert len([line for line in agent.said() if "the external address is" in line]) == 1


@pytest.mark.parametrize("cni0", ["10.244.9.1/24", "10.1.3.1/24"], ids=["inside Network", "of a former Network"])
def test_of_its_own_devices_the_agent_takes_none_at_the_start_or_in_need(cni0: str) -> None:
    """Their addresses match the pattern, too, and what would leave from them comes back into the tunnel."""
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        (host,) = lab.hosts
        for name, address in (("cni0", cni0), ("eth9", "10.9.9.1/24")):
            host.configure(f"link add {name} type bridge", f"link set {name} up", f"addr add {address} dev {name}")
        host.configure("link add pod type veth peer name pod0", "link set pod master cni0")  # else it gets our address
        former = Subnet(IPv4Network("10.1.3.0/24"))
        subnet_env.write(host.subnet_file, SubnetEnv(IPv4Network("10.1.0.0/16"), former, 1472, ip_masq=False))
        with Agent(host, "--iface-regex=^10[.]", iface="") as agent:
            agent.wait_ready()
            host.configure("link set eth9 down")
            agent.wait_for_line("no traffic: interface eth9 is down: waiting for it")
            time.sleep(RETURN_S + 1.0)
            assert not host.is_ready()
            host.configure("link set eth9 up")
            wait_for("ready", host.is_ready)
            status = host.control("/v1/status")
            assert (status["interface"]["name"], status["tunnel"]["mtu"]) == ("eth9", 1472)
            assert not [line for line in agent.said() if "the external address is" in line]


def test_another_external_mtu_is_followed_by_flannel0_and_subnet_env(duo: Lab, h1: Host) -> None:
    log = Log(h1)
    h1.configure("link set eth0 mtu 1400")
    try:
        assert wait_for("flannel0 follows", lambda: is_right(h1, mtu=1372)) < promised(FOLLOW_S)
        wait_for("subnet.env follows", lambda: subnet_env.require(h1.subnet_file).mtu == 1372)
        wait_for("it is counted", lambda: repairs_of(h1) == {"mtu": 1})
        assert h1.control("/v1/status")["tunnel"]["mtu"] == 1372
        assert_traffic(duo)
        said = ["the MTU of eth0 is 1400 now: the tunnel's is 1372", f"wrote {h1.subnet_file}"]
        wait_for("both are said", lambda: log.events() == said)
    finally:
        h1.configure("link set eth0 mtu 1500")
    wait_for("flannel0 follows back", lambda: is_right(h1))


def test_a_forced_mtu_stays_and_that_it_does_not_fit_is_said_once() -> None:
    config = {"Network": NETWORK, "Backend": {"Type": "udp", "MTU": 1450}}
    with Lab(Plan(fresh_name(), hosts=1, config=config)) as lab:
        (host,) = lab.hosts
        log = Log(host)
        host.configure("link set eth0 mtu 1490", "link set eth0 mtu 1400")
        wait_for("it is said", lambda: bool(log.lines("Backend.MTU is 1450")))
        host.configure("addr add 192.0.2.88/24 dev eth0", "addr del 192.0.2.88/24 dev eth0", "link set eth0 mtu 1480")
        wait_for("it fits again", lambda: host.control("/v1/status")["interface"]["mtu"] == 1480)
        assert flannel0(host)["mtu"] == 1450
        assert subnet_env.require(host.subnet_file).mtu == 1450
        misfit = "Backend.MTU is 1450: the MTU of eth0, 1400, leaves room for 1372: lower the one or raise the other"
        assert log.events() == [f"{misfit}; the tunnel keeps its MTU of 1450, and what is larger is lost"]


def test_an_interface_chosen_by_its_address_is_waited_for_and_taken_where_it_appears() -> None:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        (host,) = lab.hosts
        address = f"{host.underlay}/24"
        with Agent(host, iface=str(host.underlay)) as agent:
            agent.wait_ready()
            host.configure("addr add 192.0.2.88/24 dev eth0", f"addr del {address} dev eth0")
            agent.wait_for_line(f"no traffic: interface eth0 has lost its address {host.underlay}: waiting for it")
            assert not host.is_ready()
            host.configure("link add eth9 type veth peer name far9", "link set eth9 up", f"addr add {address} dev eth9")
            agent.wait_for_line("traffic can pass again, through eth9")
            wait_for("ready", host.is_ready)
            status = host.control("/v1/status")
            assert (status["interface"]["name"], status["public_ip"]) == ("eth9", str(host.underlay))
            assert agent.stop() == 0


def test_a_given_public_ip_stays_when_the_address_changes() -> None:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        (host,) = lab.hosts
        with Agent(host, "--public-ip=203.0.113.9") as agent:
            agent.wait_ready()
            before = by_hand(lab).subnets()
            move_address(host, host.underlay, "192.0.2.77")
            agent.wait_for_line("the external address is 192.0.2.77 on eth0 now")
            bound = host.run(["ss", "-Hlun", "sport", "=", ":8285"]).stdout
            assert "192.0.2.77:8285" in bound
            assert str(host.underlay) not in bound
            assert host.control("/v1/status")["public_ip"] == "203.0.113.9"
            assert by_hand(lab).subnets() == before


def test_a_port_that_is_taken_on_the_new_address_is_waited_for() -> None:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        (host,) = lab.hosts
        with Agent(host) as agent, host.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            agent.wait_ready()
            host.configure("addr add 192.0.2.77/32 dev lo")
            other.bind(("192.0.2.77", 8285))
            host.configure("addr del 192.0.2.77/32 dev lo")
            move_address(host, host.underlay, "192.0.2.77")
            agent.wait_for_line("no traffic: UDP port 8285 on 192.0.2.77 is in use")
            assert not host.is_ready()
            other.close()
            wait_for("ready", host.is_ready)
            assert repairs_of(host) == {"socket": 1}
