"""The kernel sends overlay traffic elsewhere, or forwards none of it: the agent is ready, and names the cause."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping_matrix
from tests.support.agents import Agent, Log, command_json, command_line, subnet_of, up_with_peers, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS


@pytest.fixture(scope="module", params=["udp", "host-gw"])
def duo(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two hosts, of which the first has a device `other` that leads nowhere; tests leave them as they were."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": request.param}}
    with Lab(Plan(fresh_name(), hosts=2, config=config)) as lab:
        lab.hosts[0].configure("link add other type veth peer name far", "link set other up", "link set far up")
        lab.hosts[0].configure("route add default dev other table 77")
        yield up_with_peers(lab)


@pytest.fixture
def h1(duo: Lab) -> Host:
    """The host that is disturbed; all is well there."""
    (host, _) = duo.hosts
    wait_for("all is well", lambda: status_of(host)["problems"] == [])
    return host


def status_of(host: Host) -> dict[str, Any]:
    status: dict[str, Any] = host.control("/v1/status")
    return status


def names(host: Host, duo: Lab) -> dict[str, str]:
    """Return what the commands and texts of this module are about."""
    device = "flannel0" if host.backend == "udp" else "eth0"
    own, peer = subnet_of(host), subnet_of(duo.hosts[1])
    intended = "flannel0" if host.backend == "udp" else f"eth0 via {duo.hosts[1].underlay}"
    named = {"own": own, "own1": own[1], "own9": own[9], "peer": peer, "peer2": peer[2], "peer7": peer[7]}
    named |= {"address": host.underlay}
    texts = {name: str(value) for name, value in named.items()} | {"half": str(IPv4Network((peer[128], 25)))}
    both = ", ".join(map(str, sorted([own, peer])))
    return {**texts, "both": both, "device": device, "intended": intended}


def disturb(host: Host, lines: list[str]) -> None:
    for line in lines:
        host.run(line.split() if line.startswith("sysctl") else ["ip", *line.split()])


DIVERSIONS: dict[str, tuple[list[str], list[str], str]] = {
    "a route to a part of the subnet": (
        ["route add {half} dev other"],
        ["route del {half}"],
        (
            'packets for {half} are sent to other, not to {intended}: by the route "{half} dev other proto boot": '
            "ip route del {half} dev other"
        ),
    ),
    "the same beside the rule for VRFs": (
        ["rule add pref 1000 l3mdev", "route add {half} dev other"],
        ["route del {half}", "rule del pref 1000"],
        (
            'packets for {half} are sent to other, not to {intended}: by the route "{half} dev other proto boot": '
            "ip route del {half} dev other"
        ),
    ),
    "a blackhole for one pod": (
        ["route add blackhole {peer2}"],
        ["route del blackhole {peer2}"],
        (
            'packets for {peer2}/32 are refused, not sent to {intended}: by the route "blackhole {peer2} proto boot": '
            "ip route del blackhole {peer2}"
        ),
    ),
    "a second bridge with our subnet": (
        ["link add other0 type bridge", "addr add {own1}/24 dev other0", "link set other0 up"],
        ["link del other0"],
        (
            "cni0 and other0 both have our subnet {own}: packets for pods go to cni0 alone, those behind other0 get "
            "none: take the address off the one that no runtime uses: ip addr del {own1}/24 dev other0, or of cni0 "
            "likewise"
        ),
    ),
    "an unreachable part": (
        ["route add unreachable {half}"],
        ["route del unreachable {half}"],
        (
            'packets for {half} are refused, not sent to {intended}: by the route "unreachable {half} proto boot": '
            "ip route del unreachable {half}"
        ),
    ),
    "a prohibited part": (
        ["route add prohibit {half}"],
        ["route del prohibit {half}"],
        (
            'packets for {half} are refused, not sent to {intended}: by the route "prohibit {half} proto boot": '
            "ip route del prohibit {half}"
        ),
    ),
    "a part thrown out of main": (
        ["route add throw {half}"],
        ["route del throw {half}"],
        (
            'packets for {half} are refused, not sent to {intended}: by the route "throw {half} proto boot": '
            "ip route del throw {half}"
        ),
    ),
    "next hops of which one is right": (
        ["route add {half} nexthop dev {device} nexthop dev other"],
        ["route del {half}"],
        "packets for {half} are sent to {device} and other, not to {intended}: by the route",
    ),
    "a peer's address on this host": (
        ["address add {peer7}/32 dev lo"],
        ["address del {peer7}/32 dev lo"],
        (
            "packets for {peer7}/32 are kept on this host, not sent to {intended}: by the route "
            '"local {peer7} dev lo proto kernel": take the address that brought it off lo'
        ),
    ),
    "a rule for the overlay": (
        ["rule add pref 100 to {overlay} lookup 77"],
        ["rule del pref 100"],
        (
            "packets for {both} are sent to other, not where they have to go: "
            'by the rule "100: from all to {overlay} lookup 77" '
            'and by the route "default dev other table 77 proto boot": let the overlay go first: '
            "ip rule add pref 99 to {overlay} lookup main"
        ),
    ),
    "a rule for one pod of the peer": (
        ["rule add pref 100 to {peer7} lookup 77"],
        ["rule del pref 100"],
        'packets for {peer7}/32 are sent to other, not to {intended}: by the rule "100: from all to {peer7}/32 ',
    ),
    "a rule for our pods": (
        ["rule add pref 100 from {own} lookup 77"],
        ["rule del pref 100"],
        (
            "our pods' packets for {peer} are sent to other, not to {intended}: "
            'by the rule "100: from {own} lookup 77" and by the route'
        ),
    ),
    "a rule for one of our pods": (
        ["rule add pref 100 from {own9} lookup 77"],
        ["rule del pref 100"],
        "our pods' packets for {peer} are sent to other, not to {intended}: by the rule \"100: from {own9}/32 ",
    ),
    "a rule for this host's address, as a cloud's network manager sets it": (
        [
            "route add 192.0.2.0/24 dev eth0 table 79",
            "route add default dev other table 79",
            "rule add pref 100 from {address} lookup 79",
        ],
        ["rule del pref 100", "route flush table 79"],
        (
            "this host's packets from {address} for {both} are sent to other, not where they have to go: by the rule "
            '"100: from {address}/32 lookup 79" and by the route "default dev other table 79 proto boot": '
            "let the overlay go first: ip rule add pref 99 to {overlay} lookup main"
        ),
    ),
    "a rule for what comes from the bridge": (
        ["rule add pref 100 iif cni0 blackhole"],
        ["rule del pref 100"],
        (
            "our pods' packets for {peer} are refused, not sent to {intended}: by the rule "
            '"100: from all iif cni0 blackhole": ip rule del pref 100 from all iif cni0 blackhole'
        ),
    ),
    "a rule for what arrives": (
        ["rule add pref 100 iif {device} unreachable"],
        ["rule del pref 100"],
        (
            "packets that arrive at {device} for {own} are refused, not sent to cni0: by the rule "
            '"100: from all iif {device} unreachable": ip rule del pref 100 from all iif {device} unreachable'
        ),
    ),
    "a rule for our pods under a strict reverse path filter": (
        ["sysctl -qw net.ipv4.conf.{device}.rp_filter=1", "rule add pref 100 from {own} lookup 77"],
        ["rule del pref 100", "sysctl -qw net.ipv4.conf.{device}.rp_filter=0"],
        (
            "our pods' packets for {peer} are sent to other, not to {intended}, and what comes from there is dropped, "
            "as rp_filter of {device} is 1: by the rule"
        ),
    ),
    "our own subnet led elsewhere": (
        ["route replace {own} dev other"],
        ["route replace {own} dev cni0 proto kernel scope link src {own1}"],
        (
            'packets for {own} are sent to other, not to cni0: by the route "{own} dev other proto boot": '
            "ip route del {own} dev other"
        ),
    ),
    "one of our pods led elsewhere": (
        ["route add {own9} via 192.0.2.254"],
        ["route del {own9}"],
        "this host's packets for {own9}/32 are sent to eth0 via 192.0.2.254, not to a pod of this host: by the route",
    ),
    "the device does not forward": (
        ["sysctl -qw net.ipv4.conf.{device}.forwarding=0"],
        ["sysctl -qw net.ipv4.conf.{device}.forwarding=1"],
        (
            "{device} does not forward: dropped is what other hosts send to our pods: "
            "sysctl -w net.ipv4.conf.{device}.forwarding=1"
        ),
    ),
    "the bridge does not forward": (
        ["sysctl -qw net.ipv4.conf.cni0.forwarding=0"],
        ["sysctl -qw net.ipv4.conf.cni0.forwarding=1"],
        "cni0 does not forward: dropped is what our pods send to other hosts: sysctl -w net.ipv4.conf.cni0.forward",
    ),
    "the host does not forward": (
        ["sysctl -qw net.ipv4.ip_forward=0"],
        ["sysctl -qw net.ipv4.ip_forward=1"],
        (
            "this host does not forward, net.ipv4.ip_forward is 0: dropped is what other hosts send to our pods "
            "({device}) and what our pods send to other hosts (cni0): sysctl -w net.ipv4.ip_forward=1"
        ),
    ),
}


@pytest.mark.parametrize("what", DIVERSIONS)
def test_what_stands_in_the_way_is_named_while_it_does(duo: Lab, h1: Host, what: str) -> None:
    known = {**names(h1, duo), "overlay": str(OVERLAY)}
    do, undo = ([line.format(**known) for line in lines] for lines in DIVERSIONS[what][:2])
    text = DIVERSIONS[what][2].format(**known)
    log = Log(h1)
    disturb(h1, do)
    try:
        wait_for(what, lambda: status_of(h1)["problems"] != [])
        status = status_of(h1)
        assert (status["ready"], len(status["problems"])) == (True, 1), status["problems"]
        assert status["problems"][0].startswith(text)
        assert status["degraded"] == ["forwarding" if "forward" in what else "routes"]
    finally:
        disturb(h1, undo)
    wait_for("all is well again", lambda: status_of(h1)["problems"] == [])
    wait_for("traffic", lambda: None not in ping_matrix(duo.pods(), timeout_s=0.5).values())
    assert len(log.lines("degraded: ")) == 2, log.lines()  # once when it came, once when it went


def test_for_a_bridge_that_is_down_nobody_is_told_to_delete_a_route(h1: Host) -> None:
    h1.configure("link set cni0 down")
    try:
        wait_for("it is named", lambda: status_of(h1)["problems"] != [])
        (problem,) = status_of(h1)["problems"]
        own = subnet_of(h1)
        assert problem.startswith(f"packets for {own}")
        assert problem.endswith(f": the route to {own} that cni0 has while it is up is missing: ip link set cni0 up")
    finally:
        h1.configure("link set cni0 up")
    wait_for("all is well again", lambda: status_of(h1)["problems"] == [])


def test_a_bridge_that_is_removed_under_living_pods_is_named_until_they_have_one(duo: Lab, h1: Host) -> None:
    (pod,), own = h1.pods, subnet_of(h1)
    forwarding = f"sysctl -qw net.ipv4.conf.{names(h1, duo)['device']}.forwarding"
    disturb(h1, [f"{forwarding}=0"])
    wait_for("a look, at the bridge, too", lambda: status_of(h1)["problems"] != [])
    disturb(h1, [f"{forwarding}=1", "link del cni0"])
    text = "cni0, which our pods were behind, was removed: those that ran then are cut off (IPv4): start them anew"
    wait_for("it is named", lambda: status_of(h1)["problems"] == [text])
    assert (status_of(h1)["ready"], status_of(h1)["degraded"]) == (True, ["routes"])
    h1.configure("link add cni0 type bridge", f"addr add {own[1]}/24 dev cni0", "link set cni0 up")
    disturb(h1, [f"{forwarding}=0"])
    wait_for("a look after that", lambda: len(status_of(h1)["problems"]) > 1)
    assert text in status_of(h1)["problems"]
    disturb(h1, [f"{forwarding}=1", f"link set {pod.name} master cni0"])
    wait_for("all is well again", lambda: status_of(h1)["problems"] == [])
    wait_for("traffic", lambda: None not in ping_matrix(duo.pods(), timeout_s=0.5).values())


def test_a_route_for_all_of_the_subnet_is_named(duo: Lab, h1: Host) -> None:
    peer = subnet_of(duo.hosts[1])
    if h1.backend == "host-gw":
        pytest.skip("there that is a fault of our own route to exactly this subnet, which `peers` shows")
    h1.configure(f"route add {peer} dev other")
    try:
        text = f'packets for {peer} are sent to other, not to flannel0: by the route "{peer} dev other proto boot"'
        wait_for("it is named", lambda: status_of(h1)["problems"] == [f"{text}: ip route del {peer} dev other"])
    finally:
        h1.configure(f"route del {peer} dev other")


def test_it_comes_and_goes_ten_times(duo: Lab, h1: Host) -> None:
    pod, log = subnet_of(duo.hosts[1])[7], Log(h1)
    for _ in range(10):
        h1.configure(f"route add blackhole {pod}")
        wait_for("it is named", lambda: status_of(h1)["problems"] != [])
        h1.configure(f"route del blackhole {pod}")
        wait_for("it is gone", lambda: status_of(h1)["problems"] == [])
    assert len(log.lines("no longer degraded: ")) == 10
    assert status_of(h1)["ready"] is True


def test_route_get_says_what_the_kernel_does(duo: Lab, h1: Host) -> None:
    pod = subnet_of(duo.hosts[1])[2]
    ours = str(OVERLAY) if h1.backend == "udp" else str(subnet_of(duo.hosts[1]))
    route = command_json(h1, "route", "get", str(pod))
    assert route["kernel"].startswith(ours)
    assert {"diverted", "kernel_for_pods"}.isdisjoint(route)
    h1.configure(f"rule add pref 100 iif cni0 to {pod} lookup 77")
    try:
        route = command_json(h1, "route", "get", str(pod))
        assert route["kernel"].startswith(ours)
        assert route["kernel_for_pods"] == "default dev other table 77 proto boot"
        assert route["diverted"].startswith(f"our pods' packets for {pod}/32 are sent to other, not to")
        shown = command_line(h1, "route", "get", str(pod)).stdout
        assert "the kernel, for our pods: default dev other table 77 proto boot" in shown
        # Else the agent may be about to name it when the rule, and this test, is over.
        wait_for("it is named", lambda: status_of(h1)["problems"] != [])
    finally:
        h1.configure("rule del pref 100")


def test_a_host_with_more_rules_and_networks_of_its_own_is_well(duo: Lab, h1: Host) -> None:
    """Two default routes, rules for other packets or to an empty table, another bridge, a pod's own route: no fault."""
    own = subnet_of(h1)
    lines = [
        "route add default dev other metric 500",
        f"rule add pref 90 from {h1.underlay} lookup 78",
        "rule add pref 91 to 203.0.113.0/24 blackhole",
        "rule add pref 92 iif other blackhole",
        "rule add pref 93 fwmark 0x7 lookup 77",
        "rule add pref 94 to 10.244.0.0/16 ipproto tcp dport 25 blackhole",
        "rule add pref 95 from all lookup main suppress_prefixlength 0",
        "rule add pref 96 not fwmark 0x7 lookup 77",
        "link add docker0 type bridge",
        "address add 172.17.0.1/16 dev docker0",
        "link set docker0 up",
        f"route add {own[9]} dev cni0",
        "route add 10.0.0.0/8 via 192.0.2.254",
        "route add blackhole 10.240.0.0/12",
    ]
    undo = ["link del docker0", f"route del {own[9]}", "route del 10.0.0.0/8", "route del blackhole 10.240.0.0/12"]
    # The last rule goes first: without the one before it all of our packets would be sent elsewhere, indeed.
    undo += ["route del default dev other metric 500", *(f"rule del pref {pref}" for pref in reversed(range(90, 97)))]
    log = Log(h1)
    h1.configure(*lines)
    try:
        # The last thing that is found tells that all before it was looked at.
        h1.configure(f"address add {subnet_of(duo.hosts[1])[7]}/32 dev lo")
        wait_for("a look", lambda: len(status_of(h1)["problems"]) == 1)
        assert "are kept on this host" in status_of(h1)["problems"][0]
    finally:
        h1.configure(f"address del {subnet_of(duo.hosts[1])[7]}/32 dev lo", *undo)
    wait_for("all is well", lambda: status_of(h1)["problems"] == [])
    assert len(log.lines("degraded: ")) == 2, log.lines()


def test_a_host_that_does_not_forward_at_start_is_ready_and_degraded_with_subnet_env() -> None:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        (host,) = lab.hosts
        host.run(["sysctl", "-qw", "net.ipv4.ip_forward=0"])
        with Agent(host) as agent:
            agent.wait_ready()
            assert host.subnet_file.exists()
            line = agent.wait_for_line("degraded: this host does not forward")
            assert re.search(r"what other hosts send to our pods \(flannel0\): sysctl -w net.ipv4.ip_forward=1$", line)
            host.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
            agent.wait_for_line("no longer degraded: this host does not forward")
            assert status_of(host)["degraded"] == []
