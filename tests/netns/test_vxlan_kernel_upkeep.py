"""The kernel's VXLAN is taken apart under a running agent: all of it is back at once, and counted."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from flannel_udp.files import subnet_env
from flannel_udp.host.upkeep import RETURN_S
from flannel_udp.lab.kernel_vxlan import KernelPeer
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping_matrix
from tests.support.agents import Log, move_address, peers_of, pid_of, subnet_of, undoing, up_with_peers, wait_for
from tests.support.by_hand import by_hand
from tests.support.by_hand_vxlan import mac_of
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import promised
from tests.support.standstill import freeze
from tests.support.vxlan_state import DEVICE, addresses_of, entries_for, entries_of, has_device, link_of

pytestmark = NEEDS_NETNS

NEWS_S = 5.0
"""At the news, that is: well before the next of the looks that are due every 10 s."""
FOLLOW_S = 3.0
MOVED_S = RETURN_S + FOLLOW_S
MOVED_TO = "192.0.2.77"


@pytest.fixture(scope="module")
def trio() -> Iterator[Lab]:
    """Three hosts whose tests end as they began."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    with Lab(Plan(fresh_name(), hosts=3, config=config, agent_args=("--datapath=kernel",))) as lab:
        yield up_with_peers(lab)


@pytest.fixture
def h1(trio: Lab) -> Host:
    """The host that is disturbed, whose device and entries are right, and nothing is said of."""
    h1 = trio.hosts[0]
    wait_for("all is right", lambda: is_right(trio))
    wait_for("nothing is wrong", lambda: problems_of(h1) == [])
    return h1


@pytest.fixture(scope="module")
def macs(trio: Lab) -> dict[str, str]:
    """The MACs of all hosts, which never change."""
    return {host.name: mac_of(host) for host in trio.hosts}


def expected_of(lab: Lab, h1: Host) -> list[str]:
    others = [host for host in lab.hosts if host is not h1]
    peers = [KernelPeer(subnet_of(host), host.underlay, mac_of(host)) for host in others]
    return sorted(line for each in peers for line in entries_for(each))


def is_right(lab: Lab, mtu: int = 1450, local: str | None = None) -> bool:
    """Tell whether the device on h1 is as it has to be, with all that is on it."""
    h1 = lab.hosts[0]
    if not has_device(h1):
        return False
    link, data = link_of(h1), link_of(h1)["linkinfo"]["info_data"]
    return (
        (link["mtu"], "UP" in link["flags"], data["local"]) == (mtu, True, local or str(h1.underlay))
        and addresses_of(h1) == [f"{subnet_of(h1).network_address}/32"]
        and entries_of(h1) == expected_of(lab, h1)
    )


def repairs_of(host: Host) -> dict[str, int]:
    repairs: dict[str, int] = host.control("/v1/status")["host_repairs"]
    return repairs


def problems_of(host: Host) -> list[str]:
    problems: list[str] = host.control("/v1/status")["problems"]
    return problems


def assert_traffic(lab: Lab) -> None:
    wait_for("traffic", lambda: None not in ping_matrix(lab.pods(), timeout_s=0.3).values())


FAULTS = {
    "deleted": ("tunnel", [f"ip link del {DEVICE}"]),
    "down": ("link", [f"ip link set {DEVICE} down"]),
    "protocol down": ("link", [f"ip link set {DEVICE} protodown on"]),
    "no address": ("address", ["ip address del {first}/32 dev flannel.1"]),
    "another mtu": ("mtu", [f"ip link set {DEVICE} mtu 1400"]),
    "another mac": (
        "mac",
        [f"ip link set {DEVICE} down", f"ip link set {DEVICE} address 0a:00:00:00:00:99", f"ip link set {DEVICE} up"],
    ),
    "another local": ("settings", [f"ip link set {DEVICE} type vxlan id 1 dev eth0 local 192.0.2.99"]),
    "learning": ("settings", [f"ip link set {DEVICE} type vxlan id 1 dev eth0 learning"]),
    "ipv6": ("ipv6", [f"ip link set {DEVICE} addrgenmode eui64"]),
    "no neighbour": ("neighbour", ["ip neighbour del {peer} dev flannel.1"]),
    "another neighbour": ("neighbour", ["ip neighbour replace {peer} lladdr 0a:00:00:00:00:99 dev flannel.1"]),
    "no fdb": ("fdb", ["bridge fdb del {mac} dev flannel.1"]),
    "another fdb": ("fdb", ["bridge fdb replace {mac} dev flannel.1 dst 192.0.2.99 self permanent"]),
    "fdb of another port": ("fdb", ["bridge fdb replace {mac} dev flannel.1 dst 192.0.2.2 port 99 self permanent"]),
    "no route": ("route", ["ip route del {subnet}"]),
    "no routes": ("route", [f"ip route flush dev {DEVICE}"]),
    "no neighbours": ("neighbour", [f"ip neighbour flush dev {DEVICE} nud permanent"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_put_right_at_the_news_and_counted(
    trio: Lab, h1: Host, macs: dict[str, str], fault: str
) -> None:
    what, commands = FAULTS[fault]
    subnet = subnet_of(trio.hosts[1])
    names = {
        "first": subnet_of(h1).network_address,
        "peer": subnet.network_address,
        "subnet": subnet,
        "mac": macs["h2"],
    }
    before, log = repairs_of(h1), Log(h1)
    for command in commands:
        h1.run(command.format(**names).split())
    wait_for("it is noticed", lambda: repairs_of(h1)[what] > before[what])
    assert wait_for("all is right", lambda: is_right(trio)) < promised(NEWS_S)
    assert mac_of(h1) == macs["h1"]
    assert {host.name: mac_of(host) for host in trio.hosts} == macs
    assert_traffic(trio)
    wait_for("nothing is named", lambda: problems_of(h1) == [])  # what took long to mend was told, and is so a while
    assert log.lines("undoes our repairs") == []
    wait_for("ready", h1.is_ready)


def test_a_device_that_is_made_a_port_of_a_bridge_is_taken_out_and_counted(trio: Lab, h1: Host) -> None:
    before, bridge = repairs_of(h1)["master"], "br7"
    h1.configure(f"link add {bridge} type bridge", f"link set {DEVICE} master {bridge}")
    try:
        wait_for("it is counted", lambda: repairs_of(h1)["master"] > before)
        assert wait_for("it is out", lambda: "master" not in link_of(h1) and is_right(trio)) < promised(NEWS_S)
        assert_traffic(trio)
    finally:
        h1.configure(f"link del {bridge}")


def test_a_device_that_somebody_deletes_and_makes_otherwise_is_named_and_ours_comes_when_it_goes(
    trio: Lab, h1: Host, macs: dict[str, str]
) -> None:
    log = Log(h1)
    pid = pid_of(h1)
    freeze(pid)  # else it may have made the device anew before the other one
    try:
        h1.configure(f"link del {DEVICE}", f"link add {DEVICE} type bridge")
    finally:
        os.kill(pid, signal.SIGCONT)
    said = f"there is a device {DEVICE} already, and it is no vxlan device: remove it with 'ip link del {DEVICE}'"
    wait_for("it is named", lambda: said in h1.control("/v1/status")["state"])
    assert not h1.is_ready()
    assert len(log.lines(said)) == 1
    h1.configure(f"link del {DEVICE}")
    wait_for("ready", h1.is_ready)
    wait_for("all is right", lambda: is_right(trio))
    assert mac_of(h1) == macs["h1"]
    assert_traffic(trio)


def test_who_deletes_the_device_again_and_again_is_named(trio: Lab, h1: Host) -> None:
    with undoing(h1, f"link del {DEVICE}"):
        wait_for("it is said", lambda: "somebody deletes it" in h1.control("/v1/status")["state"])
    wait_for("all is right", lambda: is_right(trio))
    wait_for("ready", h1.is_ready)


def test_a_foreign_route_is_named_and_left_and_ours_comes_when_it_goes(trio: Lab, h1: Host) -> None:
    h2, h3 = trio.hosts[1:]
    subnet, log = subnet_of(h2), Log(h1)
    foreign = f"{subnet} via {h3.underlay} dev eth0"
    fault = f"route {foreign} (proto boot) is not ours: remove it, or give it a metric"
    h1.configure(f"route replace {foreign}")
    wait_for("it is named", lambda: problems_of(h1) == [fault])
    assert h1.is_ready()
    h1.configure(f"route del {foreign}")
    assert wait_for("ours is back", lambda: is_right(trio)) < promised(NEWS_S)
    wait_for("nothing is named", lambda: problems_of(h1) == [])
    assert log.events("not ours") == [fault]


def test_another_address_on_the_device_is_named_as_it_keeps_routes_alive(trio: Lab, h1: Host) -> None:
    h1.configure(f"address add 198.51.100.1/32 dev {DEVICE}")
    said = f"198.51.100.1 is an address of {DEVICE}, too, so that routes outlive the lease if the agent is killed"
    wait_for("it is named", lambda: any(said in line for line in problems_of(h1)))
    h1.configure(f"address del 198.51.100.1/32 dev {DEVICE}")
    wait_for("it is forgotten", lambda: problems_of(h1) == [])


def test_an_interface_that_goes_down_is_waited_for(trio: Lab, h1: Host) -> None:
    log = Log(h1)
    h1.configure("link set eth0 down")
    wait_for("not ready", lambda: not h1.is_ready())
    h1.configure("link set eth0 up", "route add default via 192.0.2.254")
    assert wait_for("ready", h1.is_ready) < promised(FOLLOW_S)
    wait_for("all is right", lambda: is_right(trio))
    assert_traffic(trio)
    assert log.lines("no traffic") == ["no traffic: interface eth0 is down: waiting for it"]


def test_an_interface_that_is_made_anew_takes_the_device_along_which_comes_back_with_its_mac(
    trio: Lab, h1: Host, macs: dict[str, str]
) -> None:
    log = Log(h1)
    h1.configure("link del eth0")
    wait_for("it is missed", lambda: not h1.is_ready())
    trio.net.configure(f"link add h1 type veth peer name eth0 netns {h1.namespace}", "link set h1 master underlay up")
    h1.configure("link set eth0 up", f"address add {h1.underlay}/24 dev eth0", "route add default via 192.0.2.254")
    assert wait_for("ready", h1.is_ready) < promised(FOLLOW_S)
    wait_for("all is right", lambda: is_right(trio))
    assert mac_of(h1) == macs["h1"]
    assert_traffic(trio)
    assert log.lines("no traffic") == ["no traffic: interface eth0 is gone: waiting for it"]
    wait_for("nothing is wrong", lambda: problems_of(h1) == [])


def test_another_address_of_the_interface_is_the_device_s_and_the_others_send_there(trio: Lab, h1: Host) -> None:
    h2, subnet = trio.hosts[1], subnet_of(h1)
    move_address(h1, h1.underlay, MOVED_TO)
    assert wait_for("the others know", lambda: peers_of(h2).get(str(subnet)) == MOVED_TO) < promised(MOVED_S)
    assert_traffic(trio)
    wait_for("the device follows", lambda: is_right(trio, local=MOVED_TO))
    move_address(h1, MOVED_TO, h1.underlay)
    wait_for("the others know", lambda: peers_of(h2).get(str(subnet)) == str(h1.underlay))
    wait_for("the device follows", lambda: is_right(trio))
    assert_traffic(trio)
    entry = json.loads(by_hand(trio).subnets()[str(subnet).replace("/", "-")])
    assert entry["BackendData"] == {"VNI": 1, "VtepMAC": mac_of(h1)}


def test_another_mtu_of_the_interface_is_the_device_s_and_subnet_envs(trio: Lab, h1: Host) -> None:
    h1.configure("link set eth0 mtu 1400")
    try:
        wait_for("the device follows", lambda: is_right(trio, mtu=1350))
        wait_for("subnet.env follows", lambda: subnet_env.require(h1.subnet_file).mtu == 1350)
    finally:
        h1.configure("link set eth0 mtu 1500")
    wait_for("the device follows back", lambda: is_right(trio))
    wait_for("subnet.env follows back", lambda: subnet_env.require(h1.subnet_file).mtu == 1450)
