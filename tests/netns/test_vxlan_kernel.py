"""VXLAN carried by the kernel: what there is of each peer, as flanneld has it, and beside a host set up by hand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from flannel_udp.files import subnet_env
from flannel_udp.lab import netns
from flannel_udp.lab.kernel_vxlan import KernelPeer
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping_matrix
from tests.support.agents import Log, command_json, command_line, subnet_of, unanswered, up_with_peers, wait_for
from tests.support.by_hand import by_hand
from tests.support.by_hand_vxlan import LeasedVxlan, join_by_hand, mac_of, vxlan_value
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.mixed import BY_HAND
from tests.support.transfer import Transfer
from tests.support.vxlan_state import DEVICE, addresses_of, entries_for, entries_of, life_of, link_of, peer

pytestmark = NEEDS_NETNS

MTU = 1450
TRANSFER_BYTES = 20_000_000
MAC_A, MAC_B = "0a:00:00:00:00:0a", "0a:00:00:00:00:0b"


@pytest.fixture(scope="module")
def trio() -> Iterator[tuple[Lab, LeasedVxlan]]:
    """Our agents on h1 and h2; h3 is set up by hand."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    plan = Plan(fresh_name(), hosts=3, config=config, agents=("h1", "h2"), agent_args=("--datapath=kernel",))
    with Lab(plan) as lab:
        up_with_peers(lab)
        theirs = join_by_hand(lab.hosts[2], BY_HAND)
        for host in lab.hosts[:2]:
            host.wait_peers({BY_HAND})
        yield lab, theirs


@pytest.fixture
def h1(trio: tuple[Lab, LeasedVxlan]) -> Host:
    """The host that is looked at, which has what its peers need and nothing else."""
    host = trio[0].hosts[0]
    wait_for("its entries", lambda: entries_of(host) == expected_of(trio))
    return host


def peers_of_h1(trio: tuple[Lab, LeasedVxlan]) -> list[KernelPeer]:
    h2 = trio[0].hosts[1]
    return [KernelPeer(subnet_of(h2), h2.underlay, mac_of(h2)), trio[1].as_peer]


def expected_of(trio: tuple[Lab, LeasedVxlan], *more: KernelPeer) -> list[str]:
    return sorted({line for each in (*peers_of_h1(trio), *more) for line in entries_for(each)})


def has_entries(host: Host, expected: list[str]) -> bool:
    return entries_of(host) == expected


def key_of(each: KernelPeer) -> str:
    return str(each.subnet).replace("/", "-")


def value_of(each: KernelPeer) -> str:
    return vxlan_value(each.public_ip, each.mac)


def test_the_device_is_flannelds(trio: tuple[Lab, LeasedVxlan], h1: Host) -> None:
    link, theirs = link_of(h1), link_of(trio[0].hosts[2])
    ours, wanted = (dict(each["linkinfo"]["info_data"]) for each in (link, theirs))
    assert (ours.pop("local"), wanted.pop("local")) == (str(h1.underlay), "192.0.2.3")
    assert ours == wanted
    assert (link["mtu"], "UP" in link["flags"], link["ifalias"]) == (MTU, True, "flannel-udp")
    assert int(link["address"].partition(":")[0], 16) & 3 == 2  # one host's, locally administered
    assert addresses_of(h1) == [f"{subnet_of(h1).network_address}/32"]
    accept_ra = Path(f"/proc/sys/net/ipv6/conf/{DEVICE}/accept_ra")
    assert netns.call_inside(h1.namespace, accept_ra.read_text).strip() == "0"
    assert subnet_env.require(h1.subnet_file).mtu == MTU


def test_the_lease_says_vni_and_mac_byte_for_byte(trio: tuple[Lab, LeasedVxlan], h1: Host) -> None:
    entry = json.loads(trio[0].plan.registry_file.read_text())["subnets"][str(subnet_of(h1)).replace("/", "-")]
    said = {name: value for name, value in entry.items() if name not in ("Expires", "Owner")}
    assert json.dumps(said, separators=(",", ":")) == vxlan_value(h1.underlay, mac_of(h1))


def test_all_pods_reach_all_and_large_transfers_pass_both_ways(trio: tuple[Lab, LeasedVxlan], h1: Host) -> None:
    lab, theirs = trio
    theirs.learn()
    assert unanswered(lab.pods()) == []
    p1, p2, p3 = lab.pods()
    with Transfer(p1, p3, TRANSFER_BYTES), Transfer(p3, p1, TRANSFER_BYTES), Transfer(p1, p2, TRANSFER_BYTES):
        pass


def test_the_address_lives_as_long_as_the_lease(h1: Host) -> None:
    assert 0 < int((life_of(h1) or "").removesuffix("sec")) <= 86_400


def test_status_peers_route_and_doctor_tell_of_it(trio: tuple[Lab, LeasedVxlan], h1: Host) -> None:
    wait_for("nothing is wrong", lambda: h1.control("/v1/status")["problems"] == [])  # an echo that came late, say
    status = command_json(h1, "status")
    assert status["tunnel"] == {"name": DEVICE, "address": f"{subnet_of(h1).network_address}/32", "mtu": MTU}
    assert status["backend"] == {
        "type": "vxlan",
        "port": 8472,
        "datapath": "kernel",
        "data": {"VNI": 1, "VtepMAC": mac_of(h1)},
    }
    assert set(status["kernel_drops"]) >= {"tunnel_in", "tunnel_out", "interface_in"}
    shown = command_line(h1, "status").stdout
    assert f"vxlan, port 8472, VNI 1, VtepMAC {mac_of(h1)}, kernel" in shown
    route = command_json(h1, "route", "get", str(trio[1].subnet[9]))
    assert (route["verdict"], route["public_ip"], route["tunnel"]) == ("peer", "192.0.2.3", DEVICE)
    assert route["kernel"].startswith(f"{BY_HAND} via {BY_HAND.network_address} dev {DEVICE}")
    assert "diverted" not in route
    assert [row["problem"] for row in command_json(h1, "peers")] == [None, None]

    def doctor_finds_the_routes_right() -> bool:  # it asks the agent, which has three seconds to answer
        return {row["question"]: row["ok"] for row in command_json(h1, "doctor")}["routes"] is True

    wait_for("doctor finds the routes right", doctor_finds_the_routes_right)


def test_a_peer_that_nobody_sends_to_is_not_asked_and_one_in_use_answers(trio: tuple[Lab, LeasedVxlan]) -> None:
    lab, theirs = trio
    theirs.learn()
    h1 = lab.hosts[0]
    ping_matrix(lab.pods())

    def all_answer() -> bool:
        return [row["echo"]["answered"] for row in command_json(h1, "peers", "--probe")] == [True, True]

    wait_for("both answer", all_answer)
    assert {row["health"] for row in command_json(h1, "peers")} <= {"heard", "idle", "silent"}


def test_of_a_peer_that_drops_echoes_it_is_not_said_that_nothing_comes_back(
    trio: tuple[Lab, LeasedVxlan], h1: Host
) -> None:
    h2 = trio[0].hosts[1]
    ignore = ["INPUT", "-p", "icmp", "--icmp-type", "echo-request", "-j", "DROP"]
    h2.run(["iptables", "-w", "-I", *ignore])
    ping = h1.pods[0].popen(["ping", "-i0.2", "-q", str(h2.pods[0].ip)], stdout=subprocess.DEVNULL)
    try:
        wait_for("it is named", lambda: h1.control("/v1/status")["problems"] != [])
        (problem,) = h1.control("/v1/status")["problems"]
        assert problem == (
            f"peer 192.0.2.2 ({subnet_of(h2)}): packets go there, and it answers no echo (what else comes back is not "
            "known): does its agent run, and is UDP 8472 open on the way? or does it drop echoes?"
        )
    finally:
        h2.run(["iptables", "-w", "-D", *ignore])
        wait_for("it is well again", lambda: h1.control("/v1/status")["problems"] == [])
        ping.kill()
        ping.wait()


def test_a_peer_that_comes_gets_its_entries_and_one_that_leaves_takes_them_along(
    trio: tuple[Lab, LeasedVxlan], h1: Host
) -> None:
    hand, stranger = by_hand(trio[0]), peer("10.244.240.0/24", "192.0.2.90", MAC_A)
    hand.put(key_of(stranger), value_of(stranger))
    wait_for("its entries", lambda: entries_of(h1) == expected_of(trio, stranger))
    hand.delete(key_of(stranger))
    wait_for("they are gone", lambda: entries_of(h1) == expected_of(trio))


def test_of_a_peer_with_another_mac_or_public_ip_nothing_former_stays(trio: tuple[Lab, LeasedVxlan], h1: Host) -> None:
    hand = by_hand(trio[0])
    for stranger in (
        peer("10.244.240.0/24", "192.0.2.90", MAC_A),
        peer("10.244.240.0/24", "192.0.2.90", MAC_B),
        peer("10.244.240.0/24", "192.0.2.91", MAC_B),
    ):
        hand.put(key_of(stranger), value_of(stranger))
        expected = expected_of(trio, stranger)
        wait_for(f"{stranger}", partial(has_entries, h1, expected))
    hand.delete("10.244.240.0-24")
    wait_for("they are gone", lambda: entries_of(h1) == expected_of(trio))


def test_subnets_of_one_host_share_its_entry_until_the_last_one_goes(trio: tuple[Lab, LeasedVxlan], h1: Host) -> None:
    hand = by_hand(trio[0])
    one, other = (peer(f"10.244.{n}.0/24", "192.0.2.90", MAC_A) for n in (240, 241))
    for each in (one, other):
        hand.put(key_of(each), value_of(each))
    wait_for("both", lambda: entries_of(h1) == expected_of(trio, one, other))
    hand.delete(key_of(one))
    wait_for("one", lambda: entries_of(h1) == expected_of(trio, other))
    hand.delete(key_of(other))
    wait_for("none", lambda: entries_of(h1) == expected_of(trio))


def test_of_two_hosts_with_one_mac_the_last_one_counts_and_the_other_is_named(
    trio: tuple[Lab, LeasedVxlan], h1: Host
) -> None:
    hand, log = by_hand(trio[0]), Log(h1)
    former, now = peer("10.244.240.0/24", "192.0.2.90", MAC_A), peer("10.244.241.0/24", "192.0.2.91", MAC_A)
    hand.put(key_of(former), value_of(former))
    wait_for("the first", lambda: entries_of(h1) == expected_of(trio, former))
    hand.put(key_of(now), value_of(now))
    wait_for("the last", lambda: entries_of(h1) == expected_of(trio, now))
    said = f"peer 192.0.2.90 (10.244.240.0/24) has the VtepMAC {MAC_A} of peer 192.0.2.91 (10.244.241.0/24), which"
    wait_for("it is named", lambda: any(said in line for line in h1.control("/v1/status")["problems"]))
    wait_for("it is logged", lambda: log.lines(said) != [])
    assert len(log.lines(said)) == 1
    assert said in command_line(h1, "route", "get", "10.244.240.9").stdout
    hand.delete(key_of(now))
    wait_for("the first again", lambda: entries_of(h1) == expected_of(trio, former))
    wait_for("nothing is wrong", lambda: h1.control("/v1/status")["problems"] == [])
    hand.delete(key_of(former))
    wait_for("none", lambda: entries_of(h1) == expected_of(trio))


def test_a_host_with_our_mac_is_no_peer(trio: tuple[Lab, LeasedVxlan], h1: Host) -> None:
    hand, log = by_hand(trio[0]), Log(h1)
    hand.put("10.244.240.0-24", vxlan_value("192.0.2.90", mac_of(h1)))
    wait_for("it is said", lambda: bool(log.lines(f"its VtepMAC {mac_of(h1)} is ours")))
    assert entries_of(h1) == expected_of(trio)
    hand.delete("10.244.240.0-24")
    wait_for("others know", lambda: entries_of(h1) == expected_of(trio))
