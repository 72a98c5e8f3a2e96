"""Rules of others that our own cannot overrule, wherever they are: degraded, with the command that mends it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping_matrix
from tests.support.agents import unanswered, up_with_peers, wait_for
from tests.support.firewall import look_s
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = [*NEEDS_NETNS, pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft")]


@pytest.fixture(scope="module", params=["udp", "host-gw"])
def duo(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two hosts; tests leave them as they were."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": request.param}}
    with Lab(Plan(fresh_name(), hosts=2, config=config)) as lab:
        yield up_with_peers(lab)


@pytest.fixture
def h1(duo: Lab) -> Host:
    wait_for("all is well", lambda: problems(duo.hosts[0]) == [], look_s())
    return duo.hosts[0]


def problems(host: Host) -> list[str]:
    found: list[str] = host.control("/v1/status")["problems"]
    return found


OWN = "nft add table inet own"
CLOSED: dict[str, tuple[Sequence[str], Sequence[str], str]] = {
    "a policy before everything else": (
        [OWN, "nft add chain inet own through { type filter hook forward priority -200; policy drop; }"],
        ["nft delete table inet own"],
        "what other hosts send to our pods: nftables: table own: the policy of through",
    ),
    "a rejection at the end, as firewalld has it": (
        [
            OWN,
            "nft add chain inet own through { type filter hook forward priority 10; policy accept; }",
            "nft add rule inet own through ct state vmap { established : accept, related : accept, invalid : drop }",
            "nft add rule inet own through iifname lo accept",
            "nft add rule inet own through reject with icmpx type admin-prohibited",
        ],
        ["nft delete table inet own"],
        "what other hosts send to our pods: nftables: table own: a rule of chain through (handle",
    ),
    "one direction only": (
        [
            OWN,
            "nft add chain inet own through { type filter hook forward priority 0; }",
            "nft add rule inet own through iifname cni0 drop",
        ],
        ["nft delete table inet own"],
        "what our pods send to other hosts: nftables: table own: a rule of chain through (handle",
    ),
    "another table of iptables": (
        ["iptables -t mangle -A PREROUTING -i {device} -s {overlay} -j DROP"],
        ["iptables -t mangle -D PREROUTING -i {device} -s {overlay} -j DROP"],
        "what other hosts send to our pods: iptables-nft -t mangle: -A PREROUTING",
    ),
    "the pods' bridge, in": (
        [
            "nft add table bridge own",
            "nft add chain bridge own in { type filter hook input priority 0; policy drop; }",
        ],
        ["nft delete table bridge own"],
        "what our pods send to other hosts: nftables: table own: the policy of in",
    ),
    "the pods' bridge, out": (
        [
            "nft add table bridge own",
            "nft add chain bridge own out { type filter hook postrouting priority 0; policy drop; }",
        ],
        ["nft delete table bridge own"],
        "what other hosts send to our pods: nftables: table own: the policy of out",
    ),
    "after everything else": (
        [
            "nft add table netdev own",
            "nft add chain netdev own out { type filter hook egress device {device} priority 0; }",
            "nft add rule netdev own out ip saddr {overlay} drop",
        ],
        ["nft delete table netdev own"],
        "what our pods send to other hosts: nftables: table own: a rule of chain out (handle",
    ),
    "a rule for each container, as Docker 28 has it": (
        ["iptables -t raw -A PREROUTING -d {pod} ! -i cni0 -j DROP"],
        ["iptables -t raw -D PREROUTING -d {pod} ! -i cni0 -j DROP"],
        "what other hosts send to our pod {pod}: iptables-nft -t raw: -A PREROUTING -d {pod}/32 ! -i cni0 -j DROP",
    ),
    "a bridge with a name of its own, as Docker has it": (
        [
            "ip link set cni0 down",
            "ip link set cni0 name docker0",
            "ip link set docker0 up",
            "iptables -I FORWARD ! -i docker0 -o docker0 -j DROP",
        ],
        [
            "iptables -D FORWARD ! -i docker0 -o docker0 -j DROP",
            "ip link set docker0 down",
            "ip link set docker0 name cni0",
            "ip link set cni0 up",
        ],
        "what other hosts send to our pods: iptables-nft: -A FORWARD ! -i docker0 -o docker0 -j DROP",
    ),
}


def passes(duo: Lab) -> bool:
    return None not in ping_matrix([host.pods[0] for host in duo.hosts]).values()


@pytest.mark.parametrize("what", CLOSED)
def test_what_drops_pods_packets_is_named_and_mended_by_its_command(duo: Lab, h1: Host, what: str) -> None:
    device = "flannel0" if h1.backend == "udp" else "eth0"
    known = {"device": device, "overlay": str(OVERLAY), "pod": str(h1.pods[0].ip)}
    do, undo, text = CLOSED[what]
    text = text.format(**known)
    h1.run(["ping", "-c1", "-W60", known["pod"]])  # the kernel knows those pods that somebody has spoken to
    try:
        for line in do:
            h1.run([word.format(**known) if "{" in word and "}" in word else word for word in line.split()])
        wait_for("it is named", lambda: any(text in problem for problem in problems(h1)), look_s())
        assert h1.is_ready()
        assert not passes(duo)
        (problem,) = (problem for problem in problems(h1) if text in problem)
        h1.run(["sh", "-c", problem.rpartition(": ")[2]])
        assert unanswered([host.pods[0] for host in duo.hosts]) == []
        wait_for("it is well", lambda: problems(h1) == [], look_s())
    finally:
        for line in undo:
            h1.run([word.format(**known) for word in line.split()])


@pytest.mark.parametrize("duo", ["udp"], indirect=True)
@pytest.mark.parametrize(
    ("rule", "lost"),
    [
        ("INPUT -p udp -i eth0 -j REJECT", "drops UDP port 8285: nothing of other hosts reaches pods"),
        ("OUTPUT -p udp -m udp --dport 8285 -j DROP", "drops what leaves for UDP port 8285: nothing of pods reaches"),
    ],
)
def test_a_closed_port_is_named_and_opened_by_its_command(duo: Lab, h1: Host, rule: str, lost: str) -> None:
    chain = rule.split(maxsplit=1)[0]
    h1.run(["iptables", "-w", "-A", *rule.split()])
    try:
        wait_for("it is named", lambda: any(lost in problem for problem in problems(h1)), look_s())
        (problem,) = (problem for problem in problems(h1) if lost in problem)
        h1.run(["sh", "-c", problem.rpartition(": ")[2]])
        assert unanswered([host.pods[0] for host in duo.hosts]) == []
        wait_for("it is well", lambda: problems(h1) == [], look_s())
    finally:
        h1.run(["iptables", "-w", "-F", chain])


def test_what_cannot_be_judged_or_concerns_others_is_not_a_word(duo: Lab, h1: Host) -> None:
    own = ["nft", "add", "rule", "inet", "own", "through"]
    h1.run(["nft", "add", "table", "inet", "own"])
    try:
        chain = "{ type filter hook forward priority -5; policy accept; }"
        h1.run(["nft", "add", "chain", "inet", "own", "through", *chain.split()])
        for rule in ("meta mark 5 drop", "tcp dport 22 drop", "iifname docker0 drop", "ip daddr 198.51.100.0/24 drop"):
            h1.run([*own, *rule.split()])
        h1.run(
            ["nft", "add", "rule", "inet", "own", "through", "ip", "daddr", str(OVERLAY), "udp", "sport", "9", "drop"]
        )
        looked = h1.control("/v1/status")["uptime_s"]
        wait_for("it has looked", lambda: h1.control("/v1/status")["uptime_s"] > looked + 11)
        assert problems(h1) == []
    finally:
        h1.run(["nft", "delete", "table", "inet", "own"])


@pytest.mark.parametrize("duo", ["udp"], indirect=True)
def test_a_filter_of_false_addresses_at_the_external_interface_is_no_matter_of_the_tunnels(duo: Lab, h1: Host) -> None:
    h1.run(["nft", "add", "table", "netdev", "own"])
    try:
        h1.run(["nft", 'add chain netdev own in { type filter hook ingress device "eth0" priority -500; }'])
        h1.run(["nft", "add", "rule", "netdev", "own", "in", "ip", "saddr", "10.0.0.0/8", "counter", "drop"])
        looked = h1.control("/v1/status")["uptime_s"]
        wait_for("it has looked", lambda: h1.control("/v1/status")["uptime_s"] > looked + 11)
        assert unanswered([host.pods[0] for host in duo.hosts]) == []
        assert problems(h1) == []
    finally:
        h1.run(["nft", "delete", "table", "netdev", "own"])


@pytest.mark.parametrize("duo", ["udp"], indirect=True)
def test_a_queue_that_a_program_judges_is_no_fault(duo: Lab, h1: Host) -> None:
    if h1.run(["iptables", "-w", "-A", "INPUT", "-j", "NFQUEUE", "--queue-bypass"], check=False).returncode != 0:
        pytest.skip("this kernel, or its iptables, has no NFQUEUE")
    try:
        h1.run(["iptables", "-w", "-P", "INPUT", "DROP"])
        looked = h1.control("/v1/status")["uptime_s"]
        wait_for("it has looked", lambda: h1.control("/v1/status")["uptime_s"] > looked + 11)
        assert unanswered([host.pods[0] for host in duo.hosts]) == []
        assert problems(h1) == []
    finally:
        h1.run(["iptables", "-w", "-P", "INPUT", "ACCEPT"])
        h1.run(["iptables", "-w", "-F", "INPUT"])
