"""What of IPv6 is left on a host: by a lease's end, by another backend, by a family that was switched off."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from flannel_udp.backend.lease_end import LATENESS_S
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, OVERLAY_V6, Plan
from flannel_udp.lab.probe import ping
from tests.support.agents import Log, pid_of, restart_agents, wait_for, wait_for_pings
from tests.support.by_hand import EtcdByHand, by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import promised

pytestmark = NEEDS_NETNS

BOTH = {"Network": str(OVERLAY), "EnableIPv6": True, "IPv6Network": str(OVERLAY_V6)}
LIFE_S = 20
"""Of a lease: given up a quarter of its life before the end."""


def lines(host: Host, command: str) -> set[str]:
    return {line.strip() for line in host.run(command.split()).stdout.splitlines()}


def state_of(host: Host) -> set[str]:
    """Return what a host's kernel has of both families by way of links, addresses, routes and neighbours."""
    links = {f"link {line.split()[0].partition('@')[0]}" for line in lines(host, "ip -br link")}
    addresses = {" ".join(line.split()[1:4]) for line in lines(host, "ip -o address")}
    routes = {
        f"route {line.partition(' expires')[0]}"
        for version in (4, 6)
        for line in lines(host, f"ip -{version} route show table main")
    }
    return links | addresses | routes | lines(host, "ip neighbour show nud permanent")


def routes_of(host: Host) -> set[str]:
    return lines(host, "ip -6 route show proto 82")


def choose(lab: Lab, kind: str, *, network: dict[str, object], **options: object) -> None:
    by_hand(lab).configure({**network, "Backend": {"Type": kind, **options}})


@pytest.fixture(scope="module")
def duo() -> Iterator[Lab]:
    """Two hosts of both families that ran alloc, which leaves nothing."""
    with Lab(Plan(fresh_name(), hosts=2, families="46", config={**BOTH, "Backend": {"Type": "alloc"}})) as lab:
        yield lab


def test_each_change_of_the_backend_leaves_nothing_of_the_former_in_either_family(duo: Lab) -> None:
    host = duo.hosts[0]
    # A bridge's own address by IPv6 comes some time after its first port has a carrier.
    wait_for("nothing changes", lambda: state_of(host) == state_of(host))
    bare = state_of(host)
    for kind in ("vxlan", "host-gw", "vxlan", "alloc"):
        choose(duo, kind, network=dict(BOTH))
        restart_agents(duo.hosts, "--datapath=kernel")
        if kind != "alloc":
            wait_for_pings(duo, (4, 6))
        way = {"vxlan": "dev flannel-v6.1", "host-gw": "dev eth0", "alloc": ""}[kind]
        wait_for("its routes", lambda w=way: all(w in line for line in routes_of(host)))  # type: ignore[misc]
        devices = {"link flannel.1", "link flannel-v6.1"} if kind == "vxlan" else set()
        wait_for("what was left is gone", lambda d=devices: links_of(host) == d)  # type: ignore[misc]
    wait_for("nothing is left", lambda: state_of(host) == bare)


def links_of(host: Host) -> set[str]:
    return {line for line in state_of(host) if line.startswith("link flannel")}


def test_a_change_to_another_backend_without_ipv6_leaves_nothing_of_it(duo: Lab) -> None:
    host = duo.hosts[0]
    choose(duo, "host-gw", network=dict(BOTH))
    restart_agents(duo.hosts)
    wait_for("its routes", lambda: len(routes_of(host)) == 1)
    choose(duo, "vxlan", network={"Network": str(OVERLAY)})
    for each in duo.hosts:
        each.stop_agent()
    host.start_agent("--datapath=kernel")
    host.wait_ready()
    wait_for("no IPv6 route of ours", lambda: routes_of(host) == set())
    wait_for("nor a device", lambda: links_of(host) == {"link flannel.1"})
    host.stop_agent()


@pytest.mark.parametrize("kind", ["vxlan", "host-gw"])
def test_a_family_that_is_switched_off_leaves_nothing_and_the_other_stays(duo: Lab, kind: str) -> None:
    host = duo.hosts[0]
    choose(duo, kind, network=dict(BOTH))
    for each in duo.hosts:
        if each.agent_pid() is not None:
            each.stop_agent()
    restart_agents(duo.hosts, "--datapath=kernel")
    wait_for("its routes", lambda: len(routes_of(host)) == 1)
    choose(duo, kind, network={"Network": str(OVERLAY)})
    for each in duo.hosts:
        each.stop_agent()
    for each in duo.hosts:
        each.start_agent("--datapath=kernel")
    for each in duo.hosts:
        each.wait_ready()
    wait_for("no IPv6 route of ours", lambda: routes_of(host) == set())
    wait_for("nor a device", lambda: "link flannel-v6.1" not in state_of(host))
    target = duo.hosts[1].pods[0].address(4)
    wait_for("traffic", lambda: None not in ping(host.pods[0], [target], 0.5))


@pytest.mark.usefixtures("needs_etcd")
@pytest.mark.parametrize("kind", ["vxlan", "host-gw"])
def test_a_killed_agents_routes_end_with_the_lease_in_both_families(kind: str) -> None:
    config = {**BOTH, "Backend": {"Type": kind}}
    arguments = ("--datapath=kernel",)
    plan = Plan(*(fresh_name(), 2), registry="etcd", families="46", config=config, agents=(), agent_args=arguments)
    with Lab(plan) as lab:
        host, far = lab.hosts
        hand = EtcdByHand(lab)
        value = f'{{"PublicIP":"{host.underlay}","PublicIPv6":"{host.underlay_of(6)}","BackendType":"{kind}"}}'
        with hand.short_leases({"10.244.1.0-24&fd00:10:244:1::-64": value}, LIFE_S):
            restart_agents(lab.hosts)
        wait_for("routes with an end", lambda: any("expires" in line for line in routes_of(host)))
        seconds = {int(line.split("expires ")[1].split("sec")[0]) for line in routes_of(host)}
        assert max(seconds) <= LIFE_S
        os.kill(pid_of(host), signal.SIGKILL)
        wait_for("no way by IPv6", lambda: way_of(host, far) is None, timeout_s=LIFE_S + 10)
        # Not at the same moment: an address, on which those of IPv4 hang, may outlive its time by some two seconds.
        wait_for("nor by IPv4", lambda: lines(host, "ip -4 route show proto 82") == set(), promised(LATENESS_S))


def way_of(host: Host, far: Host) -> str | None:
    """Return how a packet for the other host's subnet would leave, ``None`` where no route of ours leads there."""
    target = str(far.subnet_of(6)).replace("::/64", "::9")
    done = host.run(["ip", "-6", "route", "get", target], check=False)
    return None if "proto 82" not in done.stdout else done.stdout


def test_a_deleted_key_takes_the_routes_along_until_the_subnet_is_held_again(duo: Lab) -> None:
    host = duo.hosts[0]
    choose(duo, "host-gw", network=dict(BOTH))
    restart_agents(duo.hosts)
    (key,) = [key for key in by_hand(duo).subnets() if str(host.subnet).replace("/", "-") in key]
    wait_for("its route", lambda: len(routes_of(host)) == 1)
    log = Log(host)
    by_hand(duo).delete(key)
    wait_for("the loss is noticed", lambda: bool(log.lines("lost our subnet")))
    wait_for("ready again", host.is_ready)
    wait_for("its routes", lambda: len(routes_of(host)) == 1)
