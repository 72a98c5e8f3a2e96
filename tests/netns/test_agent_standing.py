"""What stands is not repaired, what is missing makes us not ready, and who undoes one thing delays no other."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import ping_matrix
from tests.support.agents import Agent, Log, subnet_of, undoing, up_with_peers, wait_for
from tests.support.labs import NEEDS_NETNS, empty_namespace, fresh_name
from tests.support.patience import promised

pytestmark = NEEDS_NETNS

NETWORK = "10.244.0.0/16"
SOON_S = 1.5
"""Within about a second."""


@pytest.fixture(scope="module")
def duo() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=2)) as lab:
        yield up_with_peers(lab)


@pytest.fixture
def h1(duo: Lab) -> Host:
    """A host with another network card, and an agent that has made no repair yet."""
    host, other = duo.hosts
    host.stop_agent()
    host.run(["ip", "link", "del", "eth9"], check=False)
    host.configure("link add eth9 type veth peer name far9", "link set far9 up", "link set eth9 up")
    host.start_agent()
    host.wait_ready()
    host.wait_peers({subnet_of(other)})
    return host


def repairs_of(host: Host) -> dict[str, int]:
    """Return what was put right, and how often, but for the MTU, which `looked_again` changes."""
    repairs: dict[str, int] = host.control("/v1/status")["host_repairs"]
    return {what: count for what, count in repairs.items() if count and what != "mtu"}


def mtus_put_right(host: Host) -> int:
    return int(host.control("/v1/status")["host_repairs"]["mtu"])


def looked_again(host: Host) -> None:
    """Return once the agent has looked at the host twice more: it puts right what is wrong for that purpose."""
    for _ in range(2):
        before = mtus_put_right(host)
        host.configure("link set flannel0 mtu 1300")
        wait_for("it has looked", partial(_more_mtus_put_right, host, before))


def _more_mtus_put_right(host: Host, before: int) -> bool:
    return mtus_put_right(host) > before


def overlay_route(host: Host) -> str:
    """Return the main table's route to the overlay that is in force."""
    return host.run(["ip", "route", "show", "exact", NETWORK]).stdout.partition("\n")[0].strip()


def obstacle_of(host: Host) -> str | None:
    """Return why the agent is not ready, as `status` and /readyz say."""
    status = host.control("/v1/status")
    return None if status["ready"] else str(status["state"])


def problems_of(host: Host) -> list[str]:
    """Return what stops some of the traffic."""
    return list(host.control("/v1/status")["problems"])


# Nothing is repaired that stands


@pytest.mark.parametrize(
    "doing",
    [
        [f"route add {NETWORK} dev eth9 table 100", f"rule add to {NETWORK} table 100"],
        [f"rule add to {NETWORK} blackhole"],
        ["route add 10.244.0.0/17 dev eth9", "route add 10.244.128.0/17 dev eth9"],
        ["route add blackhole 10.244.0.0/24"],
        [f"route add {NETWORK} dev eth9 metric 50", f"route add {NETWORK} dev eth9 tos 8"],
        [f"route append {NETWORK} dev eth9"],
        ["addr add 10.244.255.1/16 dev eth9 metric 7"],
    ],
    ids=lambda doing: doing[-1],
)
def test_a_route_that_stands_behind_another_table_or_beside_others_is_left_alone(h1: Host, doing: list[str]) -> None:
    try:
        log = Log(h1)
        h1.configure(*doing)
        looked_again(h1)
        assert repairs_of(h1) == {}
        assert log.lines("again and again") == log.lines("no traffic") == []
    finally:
        undo(h1)


def undo(host: Host) -> None:
    """Take away what these tests add."""
    host.run(["ip", "rule", "flush"], check=False)
    for line in ("rule add pref 32766 table main", "rule add pref 32767 table default"):
        host.run(["ip", *line.split()], check=False)
    host.run(["ip", "link", "del", "eth9"], check=False)
    for refusing in ("blackhole 10.244.0.0/24", f"unreachable {NETWORK}", f"blackhole {NETWORK}"):
        host.run(["ip", "route", "del", *refusing.split()], check=False)


@pytest.mark.parametrize(
    "doing", ["prepend {} dev eth9", "prepend blackhole {}", "replace {} nexthop dev eth9 nexthop dev flannel0"]
)
def test_a_route_in_front_of_ours_gives_way(h1: Host, doing: str) -> None:
    try:
        h1.configure(f"route {doing.format(NETWORK)}")
        wait_for("ours is in force", lambda: overlay_route(h1) == f"{NETWORK} dev flannel0", timeout_s=promised(SOON_S))
        wait_for("it is counted", lambda: repairs_of(h1) == {"route": 1})
        looked_again(h1)
        assert repairs_of(h1) == {"route": 1}
    finally:
        undo(h1)


def test_a_route_in_front_of_ours_gives_way_also_behind_another_table(h1: Host) -> None:
    try:
        h1.configure(f"route add {NETWORK} dev eth9 table 100", f"rule add to {NETWORK} table 100")
        h1.configure(f"route prepend {NETWORK} dev eth9")
        wait_for("ours is in force", lambda: overlay_route(h1) == f"{NETWORK} dev flannel0", timeout_s=promised(SOON_S))
        looked_again(h1)
        assert repairs_of(h1) == {"route": 1}
    finally:
        undo(h1)


def test_an_address_on_lo_that_the_route_to_the_peers_names_is_no_lost_one() -> None:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        (host,) = lab.hosts
        host.configure(
            "route del default",
            "addr add 198.51.100.7/32 dev lo",
            "route add 203.0.113.0/24 dev eth0 src 198.51.100.7",
        )
        with Agent(host, "--iface-can-reach=203.0.113.9", iface=None) as agent:
            agent.wait_ready()
            looked_again(host)
            assert repairs_of(host) == {}
            assert host.control("/v1/status")["interface"]["name"] == "eth0"
            host.configure("link del flannel0")
            wait_for("it is made anew", lambda: repairs_of(host) == {"tunnel": 1}, timeout_s=promised(SOON_S))

            host.configure("addr del 198.51.100.7/32 dev lo")
            gone = "interface eth0 has lost its address 198.51.100.7"
            wait_for("not ready", lambda: not host.is_ready(), timeout_s=promised(SOON_S))
            agent.wait_for_line(f"no traffic: {gone}")
            host.configure("addr add 198.51.100.7/32 dev lo", "route add 203.0.113.0/24 dev eth0 src 198.51.100.7")
            wait_for("ready", host.is_ready, timeout_s=promised(2 * SOON_S))
            looked_again(host)
            assert repairs_of(host) == {"tunnel": 1, "interface": 1}
            assert agent.stop() == 0


def test_a_renamed_external_interface_is_the_same_one(duo: Lab, h1: Host) -> None:
    log = Log(h1)
    h1.configure("link set eth0 down", "link set eth0 name wan0", "link set wan0 up")
    try:
        wait_for("its name is known", lambda: h1.control("/v1/status")["interface"]["name"] == "wan0")
        wait_for("ready", h1.is_ready)
        assert len(log.lines("interface eth0 is called wan0 now")) == 1
    finally:
        h1.configure("link set wan0 down", "link set wan0 name eth0", "link set eth0 up")
        h1.run(["ip", "route", "add", "default", "via", "192.0.2.254"], check=False)
    wait_for("ready", h1.is_ready)
    wait_for("traffic", lambda: None not in ping_matrix(duo.pods(), timeout_s=0.5).values())


# One fault's pace never delays another's


def test_a_deleted_flannel0_comes_back_within_a_second_while_somebody_undoes_our_route(h1: Host) -> None:
    with undoing(h1, f"route del {NETWORK}"):
        wait_for("pauses have begun", lambda: repairs_of(h1).get("route", 0) >= 11)
        for times in range(3):
            h1.configure("link del flannel0")
            wait_for("it is made anew", partial(_made_anew_since, h1, times), timeout_s=promised(SOON_S))
            # Before it is up it is given its MTU, whatever we say.
            wait_for("it has its shape", partial(_is_up, h1, "flannel0"), timeout_s=promised(SOON_S))
            h1.configure("link set flannel0 mtu 1300")
            wait_for("its MTU", partial(_more_mtus_put_right, h1, times), timeout_s=promised(SOON_S))


def _is_up(host: Host, device: str) -> bool:
    return host.run(["ip", "link", "show", "up", "dev", device]).stdout != ""


def _made_anew_since(host: Host, times: int) -> bool:
    return repairs_of(host).get("tunnel", 0) > times


def test_who_takes_one_peers_route_away_again_and_again_is_named_and_delays_no_others() -> None:
    config = {"Network": NETWORK, "Backend": {"Type": "host-gw"}}
    with Lab(Plan(fresh_name(), hosts=3, config=config)) as lab:
        host, *others = up_with_peers(lab).hosts
        fought, other = (str(subnet_of(peer)) for peer in others)
        unsteady = f"the route {fought} via {others[0].underlay} does not stay"
        log = Log(host)
        with undoing(host, f"route del {fought}"):
            wait_for("it is named", lambda: any(unsteady in text for text in problems_of(host)))
            assert host.is_ready()
            for _ in range(3):
                before = repairs_of(host)["route"]
                host.configure(f"route del {other}")
                wait_for("it is back", partial(_is_routed, host, other), timeout_s=promised(SOON_S))
                wait_for("it is counted", partial(_more_routes_put_right, host, before))
            # One line for each pause, of which each is twice as long as the one before: not one for each repair.
            assert 1 <= len(log.lines(unsteady)) <= 10
        wait_for("nothing is wrong", lambda: problems_of(host) == [])
        wait_for("it stays", partial(_is_routed, host, fought))
        wait_for("traffic", lambda: None not in ping_matrix(lab.pods(), timeout_s=0.5).values())


def _is_routed(host: Host, subnet: str) -> bool:
    return host.run(["ip", "route", "show", "exact", subnet]).stdout != ""


def _more_routes_put_right(host: Host, before: int) -> bool:
    return repairs_of(host)["route"] > before


# Ready is what the kernel has


@pytest.mark.parametrize(
    ("what", "text"),
    [
        (f"route replace {NETWORK} dev eth9", "the route 10.244.0.0/16 dev flannel0 does not stay"),
        (f"route prepend unreachable {NETWORK}", "the route 10.244.0.0/16 dev flannel0 does not stay"),
        ("link set flannel0 down", "flannel0 does not stay up"),
        ("link set flannel0 carrier off", "flannel0 does not stay up"),
        ("addr flush dev flannel0", "flannel0 does not keep its address"),
        ("link del flannel0", "flannel0 does not stay, somebody deletes it"),
    ],
)
def test_who_keeps_undoing_what_traffic_needs_makes_us_not_ready_until_it_stays(
    duo: Lab, h1: Host, what: str, text: str
) -> None:
    log = Log(h1)
    try:
        with undoing(h1, what):
            wait_for("not ready", lambda: not h1.is_ready())
            wait_for("it says why", lambda: text in (obstacle_of(h1) or ""))
            wait_for("pauses have begun", lambda: bool(log.lines("again and again")))
            # It may be whole for a moment, after each repair.
            wait_for("still not ready", lambda: not h1.is_ready())
        # A pause may have just begun.
        wait_for("ready again", h1.is_ready, timeout_s=promised(20.0))
        wait_for("ours is in force", lambda: overlay_route(h1) == f"{NETWORK} dev flannel0")
        wait_for("traffic", lambda: None not in ping_matrix(duo.pods(), timeout_s=0.5).values())
        said = log.lines("no traffic")
        # Each thing that does not stay is told once, with the route that goes with a link, say, and again where a slow
        # daemon let it stand for a while; and nothing for ever.
        assert len(said) - len(set(said)) <= 10
    finally:
        undo(h1)


def test_a_flannel0_without_carrier_gets_it_back(duo: Lab, h1: Host) -> None:
    h1.configure("link set flannel0 carrier off")
    wait_for("it is put right", lambda: repairs_of(h1) == {"link": 1}, timeout_s=promised(SOON_S))
    wait_for("traffic", lambda: None not in ping_matrix(duo.pods(), timeout_s=0.5).values())


def test_an_overlay_that_became_another_interfaces_own_network_makes_us_not_ready(h1: Host) -> None:
    try:
        h1.configure("addr add 10.244.255.1/16 dev eth9", f"route del {NETWORK} dev flannel0")
        wait_for("not ready", lambda: not h1.is_ready(), timeout_s=promised(SOON_S))
        expected = f"the overlay network {NETWORK} is the own network of interface eth9"
        assert (obstacle_of(h1) or "").startswith(expected)
        h1.configure("addr del 10.244.255.1/16 dev eth9")
        wait_for("ready", h1.is_ready, timeout_s=promised(SOON_S))
        assert repairs_of(h1) == {"route": 1}
    finally:
        undo(h1)


def test_an_external_address_that_the_kernel_does_not_deliver_to_us_makes_us_not_ready(h1: Host) -> None:
    local = f"local {h1.underlay} dev eth0 table local"
    assert h1.is_ready()
    h1.configure(f"route del {local}")  # what a VRF does to who is outside of it
    wait_for("not ready", lambda: not h1.is_ready(), timeout_s=promised(SOON_S))
    assert (obstacle_of(h1) or "").startswith(f"the kernel takes no packets to {h1.underlay} for this host")
    h1.configure(f"route add {local} proto kernel scope host src {h1.underlay}")
    wait_for("ready", h1.is_ready, timeout_s=promised(SOON_S))


def test_a_blackhole_route_that_another_one_has_replaced_is_an_obstacle_until_that_goes(h1: Host) -> None:
    h1.stop_agent()
    h1.start_agent("--ip-blackhole-route")
    h1.wait_ready()
    subnet = subnet_of(h1)
    try:
        h1.configure(f"route replace {subnet} dev eth9 metric 4294967295")
        wait_for("not ready", lambda: not h1.is_ready(), timeout_s=promised(SOON_S))
        assert "in place of our blackhole route" in (obstacle_of(h1) or "")
        h1.configure(f"route del {subnet} metric 4294967295")
        wait_for("ready", h1.is_ready, timeout_s=promised(SOON_S))
        assert repairs_of(h1) == {"blackhole": 1}
    finally:
        undo(h1)


def test_an_external_interface_that_visits_another_namespace_is_waited_for(duo: Lab, h1: Host) -> None:
    with empty_namespace() as other:
        h1.configure(f"link set eth0 netns {other}")
        wait_for("not ready", lambda: not h1.is_ready(), timeout_s=promised(SOON_S))
        assert obstacle_of(h1) == "interface eth0 is gone: waiting for it"
        subprocess.run(["ip", "-n", other, "link", "set", "eth0", "netns", h1.namespace], check=True)
    h1.configure(f"addr add {h1.underlay}/24 dev eth0", "link set eth0 up", "route add default via 192.0.2.254")
    wait_for("ready", h1.is_ready, timeout_s=promised(2 * SOON_S))
    wait_for("traffic", lambda: None not in ping_matrix(duo.pods(), timeout_s=0.5).values())


def test_an_external_interface_without_carrier_is_degraded(duo: Lab, h1: Host) -> None:
    duo.net.configure("link set h1 down")
    wait_for("it is said", lambda: any("eth0 has no carrier" in problem for problem in problems_of(h1)))
    assert h1.is_ready()
    duo.net.configure("link set h1 up")
    wait_for("nothing is wrong", lambda: problems_of(h1) == [])
