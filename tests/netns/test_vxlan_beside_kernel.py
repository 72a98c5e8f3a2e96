"""Our VXLAN in user space beside a host with the kernel's, set up by hand: neither side notices."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Network

import pytest

from flannel_udp.lab.kernel_vxlan import random_mac
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping
from tests.support.agents import Log, command_json, drops_of, peers_of, subnet_of, unanswered, wait_for
from tests.support.by_hand_vxlan import LeasedVxlan, join_by_hand, vxlan_value
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.transfer import Transfer

pytestmark = NEEDS_NETNS

THEIRS = IPv4Network("10.244.200.0/24")
"""Beyond the first 100, of which our agent picks one."""
MTU = 1450
TRANSFER_BYTES = 20_000_000
ONCE = "-W20"
"""For `ping`: the one packet must not be lost, and its answer may take as long as a busy machine needs."""


@contextmanager
def mixed(cards: str, *, udpcsum: bool = True) -> Iterator[tuple[Lab, LeasedVxlan]]:
    """Yield a lab with our agent on h1 and the kernel's VXLAN on h2, which know each other."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    plan = Plan(
        fresh_name(),
        hosts=2,
        registry="etcd",
        config=config,
        agents=("h1",),
        agent_args=("--datapath=userspace",),
        offload=cards,
    )
    with Lab(plan) as lab:
        h1, h2 = lab.hosts
        theirs = join_by_hand(h2, THEIRS, udpcsum=udpcsum)
        wait_for("h1 knows h2", lambda: peers_of(h1) == {str(THEIRS): str(h2.underlay)})
        theirs.learn()
        yield lab, theirs


@pytest.fixture(scope="module")
def shared(needs_etcd: None) -> Iterator[tuple[Lab, LeasedVxlan]]:
    with mixed("whole") as both:
        yield both


def is_peer_of(host: Host, subnet: str) -> bool:
    return subnet in peers_of(host)


def set_mac(theirs: LeasedVxlan, mac: str) -> None:
    """Change the device's address; the kernel forgets its neighbours, the permanent ones too."""
    theirs.host.configure(f"link set {theirs.device} address {mac}")
    for peer in theirs.peers.values():
        neighbour = f"{peer.subnet.network_address} lladdr {peer.mac} dev {theirs.device} nud permanent"
        theirs.host.configure(f"neigh replace {neighbour}")


@pytest.mark.parametrize("udpcsum", [True, False], ids=["checksums", "none"])
@pytest.mark.parametrize("cards", ["whole", "wire"])
def test_pods_talk_both_ways(needs_etcd: None, cards: str, udpcsum: bool) -> None:
    with mixed(cards, udpcsum=udpcsum) as (lab, _):
        p1, p2 = lab.pods()
        assert unanswered(lab.pods()) == []
        with Transfer(p1, p2, TRANSFER_BYTES), Transfer(p2, p1, TRANSFER_BYTES):
            pass
        h1 = lab.hosts[0]
        assert sum(drops_of(h1, "in").values()) == 0, drops_of(h1, "in")
        assert {name: n for name, n in drops_of(h1, "out").items() if n and name != "not_ipv4"} == {}


def test_full_packets_fit_and_longer_ones_do_not(shared: tuple[Lab, LeasedVxlan]) -> None:
    lab, _ = shared
    for source, target in (lab.pods(), reversed(lab.pods())):
        ping_of = ["ping", "-c1", "-M", "do", str(target.ip), "-s"]
        source.run([*ping_of, str(MTU - 28), ONCE])
        assert source.run([*ping_of, str(MTU - 27), "-W2"], check=False).returncode != 0


def test_hosts_reach_the_others_pods_and_device(shared: tuple[Lab, LeasedVxlan]) -> None:
    lab, _ = shared
    h1, h2 = lab.hosts
    for source, target in ((h1, h2), (h2, h1)):
        source.run(["ping", "-c1", ONCE, str(target.pods[0].ip)])
        source.run(["ping", "-c1", ONCE, str(subnet_of(h1).network_address if target is h1 else THEIRS[0])])


def test_a_peer_that_gets_another_mac_is_followed(shared: tuple[Lab, LeasedVxlan]) -> None:
    lab, theirs = shared
    p1, p2 = lab.pods()
    theirs.mac = random_mac()
    set_mac(theirs, theirs.mac)
    theirs.register()
    wait_for("packets travel", lambda: ping(p1, [p2.ip], timeout_s=0.2) != [None])


def test_a_lease_that_a_peer_left_with_a_former_mac_takes_nothing_from_it(shared: tuple[Lab, LeasedVxlan]) -> None:
    lab, theirs = shared
    h1, h2 = lab.hosts
    for key in ("10.244.199.0-24", "10.244.201.0-24"):  # before and after the one that it has, whichever counts
        theirs.registry.put(key, vxlan_value(h2.underlay, random_mac()))
        try:
            wait_for("h1 has heard of it", partial(is_peer_of, h1, key.replace("-", "/")))
            assert unanswered(lab.pods()) == []
        finally:
            theirs.registry.delete(key)


def test_who_sends_with_another_mac_is_dropped_and_counted(shared: tuple[Lab, LeasedVxlan]) -> None:
    lab, theirs = shared
    h1 = lab.hosts[0]
    p1, p2 = lab.pods()
    log = Log(h1)
    right = theirs.mac
    set_mac(theirs, random_mac())
    try:
        assert ping(p2, [p1.ip], timeout_s=0.5) == [None]
        wait_for("it is counted", lambda: drops_of(h1, "in").get("spoofed_mac", 0) >= 1)
        wait_for("the log says so", lambda: log.lines("(spoofed_mac)") != [])
    finally:
        set_mac(theirs, right)
    wait_for("packets travel", lambda: ping(p2, [p1.ip], timeout_s=0.2) != [None])


def test_status_asks_a_peer_by_its_first_address(shared: tuple[Lab, LeasedVxlan]) -> None:
    lab, _ = shared
    h1 = lab.hosts[0]
    wait_for("it answers", lambda: [row["echo"]["answered"] for row in command_json(h1, "peers", "--probe")] == [True])


def test_nothing_of_theirs_is_touched(shared: tuple[Lab, LeasedVxlan]) -> None:
    _, theirs = shared
    shown: subprocess.CompletedProcess[str] = theirs.host.run(["ip", "-d", "link", "show", theirs.device])
    assert "vxlan id 1" in shown.stdout
    assert theirs.registry.subnets()[theirs.key] == theirs.value
