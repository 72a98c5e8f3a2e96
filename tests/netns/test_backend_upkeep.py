"""Host-gw's routes are taken away, hindered or in somebody's way: what can be put right is, the rest is named once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from flannel_udp.files import subnet_env
from flannel_udp.host.upkeep import RETURN_S
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping, ping_matrix
from tests.support.agents import Log, command_line, move_address, peers_of, subnet_of, up_with_peers, wait_for
from tests.support.by_hand import FileByHand, by_hand
from tests.support.kernel_state import lease_end_of, ours_of
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S, promised

pytestmark = NEEDS_NETNS

REPAIR_S = 1.0
FOLLOW_S = 3.0
MOVED_S = RETURN_S + FOLLOW_S
MOVED_TO = IPv4Address("192.0.2.77")
STRANGERS = "10.244.240.0/24"
"""A subnet that no host of the lab gets: it is not among the first hundred."""


@pytest.fixture(scope="module")
def trio() -> Iterator[Lab]:
    """Three hosts whose tests end as they began."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": "host-gw"}}
    with Lab(Plan(fresh_name(), hosts=3, config=config)) as lab:
        yield up_with_peers(lab)


@pytest.fixture
def h1(trio: Lab) -> Host:
    """The host that is disturbed, whose routes stand, and of which nothing is said from a test before."""
    host = trio.hosts[0]
    wait_for("its routes stand", lambda: are_right(trio))
    wait_for("nothing is wrong", lambda: problems_of(host) == [])
    return host


def expected_routes(lab: Lab) -> list[str]:
    first, *others = lab.hosts
    source = subnet_of(first).network_address
    return sorted(f"{subnet_of(other)} via {other.underlay} dev eth0 src {source}" for other in others)


def are_right(lab: Lab) -> bool:
    """Tell whether h1's routes are those to its peers, and hang on the address that ends them with the lease."""
    h1 = lab.hosts[0]
    held = (lease_end_of(h1) or "").startswith(f"{subnet_of(h1).network_address}/32 ")
    return held and sorted(ours_of(h1)) == expected_routes(lab)


def repairs_of(host: Host) -> dict[str, int]:
    repairs: dict[str, int] = host.control("/v1/status")["host_repairs"]
    return repairs


def problems_of(host: Host) -> list[str]:
    problems: list[str] = host.control("/v1/status")["problems"]
    return problems


def row_of(host: Host, subnet: object) -> dict[str, Any]:
    """Return what `peers` says of one peer."""
    (row,) = [row for row in host.control("/v1/peers") if row["subnet"] == str(subnet)]
    return dict(row)


def assert_traffic(lab: Lab) -> None:
    wait_for("traffic", lambda: None not in ping_matrix(lab.pods(), timeout_s=0.3).values())


def gateway_of(route: str) -> str:
    """Return where a route leads: ``10.244.1.0/24 via 192.0.2.1 dev eth0``."""
    return route.split()[2]


# Taken away


def test_a_deleted_route_is_back_within_a_second(trio: Lab, h1: Host) -> None:
    log, before = Log(h1), repairs_of(h1)["route"]
    h1.configure(f"route del {subnet_of(trio.hosts[1])}")
    assert wait_for("it is back", lambda: are_right(trio)) < promised(REPAIR_S)
    wait_for("it is counted", lambda: repairs_of(h1)["route"] == before + 1)
    assert log.events() == ["put right: routes to peers: 1"]


def test_the_deleted_address_that_ends_the_routes_is_back_with_them_within_a_second(trio: Lab, h1: Host) -> None:
    log = Log(h1)
    h1.configure(f"address del {subnet_of(h1).network_address}/32 dev lo")
    assert wait_for("all is back", lambda: are_right(trio)) < promised(REPAIR_S)
    assert_traffic(trio)
    wait_for("it is said", lambda: log.events() == ["put right: routes to peers: 2"])


def test_an_interface_that_goes_down_is_waited_for_and_has_its_routes_again(trio: Lab, h1: Host) -> None:
    log = Log(h1)
    h1.configure("link set eth0 down")
    assert wait_for("not ready", lambda: not h1.is_ready()) < promised(FOLLOW_S)
    assert h1.control("/v1/status")["state"] == "interface eth0 is down: waiting for it"
    h1.configure("link set eth0 up")
    assert wait_for("ready, with its routes", lambda: h1.is_ready() and are_right(trio)) < promised(FOLLOW_S)
    h1.configure("route add default via 192.0.2.254")  # the kernel took it away, and nobody of ours puts it back
    assert_traffic(trio)
    assert log.lines("no traffic") == ["no traffic: interface eth0 is down: waiting for it"]
    assert log.lines("traffic can pass again") == ["traffic can pass again, through eth0"]
    wait_for("nothing is wrong", lambda: problems_of(h1) == [])  # the kernel may have been asked amid it


def test_an_interface_that_is_made_anew_has_its_routes_again(trio: Lab, h1: Host) -> None:
    log = Log(h1)
    h1.configure("link del eth0")
    wait_for("it is missed", lambda: not h1.is_ready())
    trio.net.configure(f"link add h1 type veth peer name eth0 netns {h1.namespace}", "link set h1 master underlay up")
    h1.configure("link set eth0 up", f"address add {h1.underlay}/24 dev eth0", "route add default via 192.0.2.254")
    assert wait_for("ready", h1.is_ready) < promised(FOLLOW_S)
    wait_for("its routes", lambda: are_right(trio))
    assert_traffic(trio)
    assert log.lines("no traffic") == ["no traffic: interface eth0 is gone: waiting for it"]
    wait_for("nothing is wrong", lambda: problems_of(h1) == [])  # the kernel may have been asked amid it


def test_another_address_of_the_interface_is_registered_and_the_others_route_to_it(trio: Lab, h1: Host) -> None:
    h2 = trio.hosts[1]
    subnet = subnet_of(h1)
    move_address(h1, h1.underlay, MOVED_TO)
    assert wait_for("the others know", lambda: peers_of(h2).get(str(subnet)) == str(MOVED_TO)) < promised(MOVED_S)
    assert_traffic(trio)
    assert are_right(trio)
    theirs = f"{subnet} via {MOVED_TO} dev eth0 src {subnet_of(h2).network_address}"
    wait_for("their route", lambda: theirs in ours_of(h2))  # a neighbour of the old address may take what comes still
    move_address(h1, MOVED_TO, h1.underlay)
    wait_for("the others know", lambda: peers_of(h2).get(str(subnet)) == str(h1.underlay))
    assert_traffic(trio)
    entry = json.loads(by_hand(trio).subnets()[str(subnet).replace("/", "-")])
    assert (entry["PublicIP"], entry["BackendType"]) == (str(h1.underlay), "host-gw")


def test_another_mtu_of_the_interface_is_subnet_envs(trio: Lab, h1: Host) -> None:
    log = Log(h1)
    h1.configure("link set eth0 mtu 1400")
    try:
        wait_for("subnet.env follows", lambda: subnet_env.require(h1.subnet_file).mtu == 1400)
        said = ["the MTU of eth0 is 1400 now, and so is the overlay's", f"wrote {h1.subnet_file}"]
        wait_for("both are said", lambda: log.events() == said)
    finally:
        h1.configure("link set eth0 mtu 1500")
    wait_for("subnet.env follows back", lambda: subnet_env.require(h1.subnet_file).mtu == 1500)
    assert are_right(trio)


# In somebody's way


def test_a_foreign_route_is_named_and_left_and_ours_comes_when_it_goes(trio: Lab, h1: Host) -> None:
    _, h2, h3 = trio.hosts
    log, subnet = Log(h1), subnet_of(h2)
    foreign = f"{subnet} via {h3.underlay} dev eth0"
    fault = f"route {foreign} (proto boot) is not ours: remove it, or give it a metric"
    h1.configure(f"route replace {foreign}")
    wait_for("it is named", lambda: problems_of(h1) == [fault])
    assert row_of(h1, subnet)["problem"] == fault
    assert row_of(h1, subnet_of(h3))["problem"] is None
    assert fault in command_line(h1, "route", "get", str(h2.pods[0].ip)).stdout
    assert f"problem    {fault}" in command_line(h1, "status").stdout.splitlines()
    assert h1.is_ready()
    assert ping(h1.pods[0], [h3.pods[0].ip], PATIENCE_S) != [None]  # the others are unaffected
    assert foreign in [line.strip() for line in h1.run(["ip", "route"]).stdout.splitlines()]
    h1.configure(f"route del {foreign}")
    assert wait_for("ours is back", lambda: are_right(trio)) < promised(REPAIR_S)
    wait_for("nothing is named", lambda: problems_of(h1) == [])
    assert_traffic(trio)
    said = [fault, f"routes that could not be set stand now: {subnet}", "put right: routes to peers: 1"]
    wait_for("all is said", lambda: log.events("route") == said)


def test_a_peer_that_is_not_on_link_is_named_and_the_others_are_unaffected(trio: Lab, h1: Host) -> None:
    hand, log = by_hand(trio), Log(h1)
    key = STRANGERS.replace("/", "-")
    hand.put(key, '{"PublicIP":"198.51.100.9","BackendType":"host-gw"}')
    fault = (
        f"no route to {STRANGERS} via 198.51.100.9 dev eth0: "
        "198.51.100.9 is not on-link, that is in a network of eth0's own"
    )
    wait_for("it is named", lambda: problems_of(h1) == [fault])
    assert row_of(h1, STRANGERS)["problem"] == fault
    assert h1.is_ready()
    assert are_right(trio)
    assert_traffic(trio)
    h1.configure("address add 198.51.100.1/24 dev eth0")
    wait_for("it has its route", lambda: any(line.startswith(STRANGERS) for line in ours_of(h1)))
    wait_for("it is none any more", lambda: (problems_of(h1), row_of(h1, STRANGERS)["problem"]) == ([], None))
    h1.configure("address del 198.51.100.1/24 dev eth0")
    hand.delete(key)
    wait_for("it is forgotten", lambda: are_right(trio) and problems_of(h1) == [])
    assert log.lines("no route to")[0] == fault


# In the registry


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ('{"PublicIP":"192.0.2.1","BackendType":"host-gw"}', "it has our public IP, but our subnet is {own}; what"),
        ('{"PublicIP":"192.0.2.9","BackendType":"vxlan"}', "its backend is 'vxlan', ours is host-gw"),
        ('{"PublicIP":"192.0.2.9"}', "its backend is '', ours is host-gw"),
        ('{"PublicIP":"192.0.2.9","BackendType":7}', "lease value: BackendType 7 is no string"),
        ('{"PublicIP":"224.0.0.9","BackendType":"host-gw"}', "PublicIP 224.0.0.9 is no address of one host"),
        ('{"PublicIP":["192.0.2.9"]}', "lease value: PublicIP ['192.0.2.9'] is no IPv4 address"),
        ('["host-gw"]', "lease value is no JSON object: ['host-gw']"),
    ],
    ids=["ourselves", "another backend", "none", "no text", "no host", "no address", "no object"],
)
def test_an_entry_that_is_no_peer_is_ignored_with_one_warning(trio: Lab, h1: Host, value: str, why: str) -> None:
    hand, log = by_hand(trio), Log(h1)
    key = STRANGERS.replace("/", "-")
    hand.put(key, value)
    wait_for("it is said", lambda: bool(log.events(f"entry '{key}' is ")))
    (line,) = log.events()
    assert why.format(own=subnet_of(h1)) in line
    assert STRANGERS not in peers_of(h1)
    assert are_right(trio)
    hand.delete(key)
    wait_for("it is gone", lambda: key not in hand.subnets())


def test_a_peer_that_goes_over_to_another_backend_loses_its_route_with_one_warning(trio: Lab, h1: Host) -> None:
    hand, log = by_hand(trio), Log(h1)
    key = STRANGERS.replace("/", "-")
    hand.put(key, '{"PublicIP":"192.0.2.9","BackendType":"host-gw"}')
    wait_for("its route", lambda: any(line.startswith(f"{STRANGERS} via 192.0.2.9 ") for line in ours_of(h1)))
    hand.put(key, '{"PublicIP":"192.0.2.9","BackendType":"vxlan","BackendData":{"VNI":1}}')
    wait_for("it is gone", lambda: are_right(trio))
    hand.delete(key)
    assert log.events("ignored") == [f"entry '{key}' is ignored: its backend is 'vxlan', ours is host-gw"]


def test_of_two_peers_with_one_subnet_one_counts_with_one_warning_and_the_other_takes_its_place(
    trio: Lab, h1: Host
) -> None:
    hand, log = by_hand(trio), Log(h1)
    first, second = "10.244.240.0-24", "10.244.240.0-24&fd00::-64"
    hand.put(second, '{"PublicIP":"192.0.2.92","BackendType":"host-gw"}')
    wait_for("the route", lambda: any(line.startswith(f"{STRANGERS} via 192.0.2.92 ") for line in ours_of(h1)))
    hand.put(first, '{"PublicIP":"192.0.2.91","BackendType":"host-gw"}')
    # The new route is appended, and then the former one deleted.
    wait_for(
        "the other one alone",
        lambda: [gateway_of(line) for line in ours_of(h1) if line.startswith(STRANGERS)] == ["192.0.2.91"],
    )
    assert log.lines("hold one subnet") == [f"entries {first!r} and {second!r} hold one subnet: {first!r} counts"]
    hand.delete(first)
    wait_for("the route", lambda: any(line.startswith(f"{STRANGERS} via 192.0.2.92 ") for line in ours_of(h1)))
    hand.delete(second)
    wait_for("it is gone", lambda: are_right(trio))


def test_of_many_peers_off_link_ten_are_named_and_the_rest_counted(trio: Lab, h1: Host) -> None:
    """The last one here: so many peers use up the log's room for lines about peers."""
    registry, log = FileByHand(trio), Log(h1)
    keys = [f"10.244.{230 + number}.0-24" for number in range(12)]
    with registry.document() as document:
        for key in keys:
            document["subnets"][key] = {"PublicIP": "198.51.100.9", "BackendType": "host-gw"}
    wait_for("they are told", lambda: bool(log.lines("more like these")))
    assert len(log.lines("no route to")) == 10
    assert log.lines("more like these") == ["... and 2 more like these: see flannel-udp peers"]
    assert (len(problems_of(h1)), problems_of(h1)[-1]) == (11, "and 2 more: see flannel-udp peers")
    assert sum(row["problem"] is not None for row in h1.control("/v1/peers")) == 12
    with registry.document() as document:
        for key in keys:
            del document["subnets"][key]
    wait_for("they are forgotten", lambda: problems_of(h1) == [])
