"""Two overlays on one host: the rules of both stand, nobody undoes the other's, each takes away only its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannel_udp.host.firewall.owner import suffix_of
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import WITH_TIME_TO_CLEAN_UP, Agent, wait_for
from tests.support.firewall import kernel_listing
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

SECOND, THIRD = IPv4Network("10.99.0.0/16"), IPv4Network("10.77.0.0/16")
# What flanneld 0.28 writes into its chains: other words for the same rules, and in an order of its own.
FLANNELDS = """*filter
:FLANNEL-FWD - [0:0]
-A FLANNEL-FWD -s {network} -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d {network} -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
*nat
:FLANNEL-POSTRTG - [0:0]
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s {network} -d {network} -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
"""
FLANNELDS_TABLE = """table ip flannel-ipv4 {{
	chain forward {{
		type filter hook forward priority filter; policy accept;
		ip saddr {network} accept
		ip daddr {network} accept
	}}
	chain postrtg {{
		type nat hook postrouting priority srcnat; policy accept;
		meta mark 0x4000 return
		ip saddr != {network} ip daddr {network} masquerade fully-random
	}}
}}
"""


@pytest.fixture(params=["nftables", "iptables"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def host(dialect: str) -> Iterator[Host]:
    config = {"Network": str(OVERLAY), "EnableNFTables": dialect == "nftables"}
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=(), config=config)) as lab:
        yield lab.hosts[0]


class Other:
    """What another agent of the host has of its own: registry, subnet file, control socket."""

    def __init__(self, host: Host, folder: Path, network: IPv4Network, dialect: str) -> None:
        self.host = host
        self.subnet_file = folder / "subnet.env"
        self._registry = folder / "registry.json"
        self._socket = folder / "agent.sock"
        self._dialect = dialect
        self.choose(network)

    def choose(self, network: IPv4Network) -> None:
        backend = {"Type": "udp", "Port": 8299}
        config = {"Network": str(network), "Backend": backend, "EnableNFTables": self._dialect == "nftables"}
        self._registry.write_text(json.dumps({"config": config, "subnets": {}}))

    @contextmanager
    def agent(self, *arguments: str) -> Iterator[Agent]:
        flags = ("--registry", f"file:{self._registry}", "--subnet-file", str(self.subnet_file))
        more = ("--control-socket", str(self._socket), "--ip-masq", *arguments)
        with Agent(self.host, *flags, *more, program=WITH_TIME_TO_CLEAN_UP) as agent:
            agent.wait_for_line("applying firewall rules")
            wait_for(f"subnet.env; it said {agent.said()}", self.subnet_file.exists)
            yield agent


@pytest.fixture
def other(host: Host, tmp_path: Path, dialect: str) -> Other:
    return Other(host, tmp_path, SECOND, dialect)


def listing(host: Host, dialect: str, network: IPv4Network | None) -> str:
    """Return what stands under flannel's names (``None``), or under those with an overlay's suffix."""
    suffix = "" if network is None else suffix_of(network)
    if dialect == "nftables":
        return host.run(["nft", "list", "table", "ip", f"flannel-ipv4{suffix}"], check=False).stdout
    lines = kernel_listing(host, dialect).splitlines()
    names = [f"FLANNEL-{name}{suffix}" for name in ("FWD", "POSTRTG")]
    ours = [line for line in lines if any(word.lstrip(":") in names for word in line.split())]
    tables = ["*filter" if "FWD" in line else "*nat" for line in ours]
    text = ""
    for table in dict.fromkeys(tables):
        rules = [line for line, its in zip(ours, tables, strict=True) if its == table]
        text += "\n".join([table, *rules, "COMMIT", ""])
    return text


def shown(subnet_file: Path, dialect: str, *flags: str) -> str:
    command = [sys.executable, "-m", "flannel_udp", "firewall", "show", "--dialect", dialect]
    options = ["--subnet-file", str(subnet_file), *flags]
    return subprocess.run([*command, *options], check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout


def both_stand(host: Host, other: Other, dialect: str) -> bool:
    """Tell whether the first agent's rules have flannel's names, and the other's those with its suffix."""
    return listing(host, dialect, None) == shown(host.subnet_file, dialect) and (
        listing(host, dialect, SECOND) == shown(other.subnet_file, dialect, "--suffix")
    )


def test_both_stand_and_neither_touches_the_others(host: Host, other: Other, dialect: str) -> None:
    flags = ("--ip-masq", "--iptables-resync=1", "--clean-on-exit")
    with Agent(host, *flags, program=WITH_TIME_TO_CLEAN_UP) as first:
        first.wait_ready()
        for _ in range(2):
            with other.agent("--iptables-resync=1") as second:
                said = second.wait_for_line("holds the rules of another overlay, 10.244.0.0/16: ours are in")
                assert suffix_of(SECOND) in said
                wait_for("both stand", lambda: both_stand(host, other, dialect))
                assert not any("changed our firewall rules" in line for line in second.said())
                host.run(["nft", "flush", "ruleset"])
                # Whoever is later has the suffix now: which one is all the same.
                wait_for("both stand again", lambda: stand_somehow(host, other, dialect))
                wait_for("ready", host.is_ready)  # the kernel has the rules a moment before the agent knows
                assert second.stop() == 0
            assert listing(host, dialect, SECOND) or listing(
                host, dialect, OVERLAY
            )  # without --clean-on-exit they stay
            host.run(["nft", "flush", "ruleset"])
            wait_for("the first one's", lambda: listing(host, dialect, None) == shown(host.subnet_file, dialect))
        with other.agent("--clean-on-exit") as second:
            wait_for("both stand", lambda: both_stand(host, other, dialect))
            assert second.stop() == 0
        assert listing(host, dialect, SECOND) == ""
        assert listing(host, dialect, None) == shown(host.subnet_file, dialect)
        with other.agent() as second:
            wait_for("both stand", lambda: both_stand(host, other, dialect))
            assert first.stop() == 0  # with --clean-on-exit: the other may have flannel's names now
            wait_for("the other's", lambda: listing(host, dialect, None) == shown(other.subnet_file, dialect))
            wait_for("once", lambda: listing(host, dialect, SECOND) == "")


def stand_somehow(host: Host, other: Other, dialect: str) -> bool:
    mine, its = shown(host.subnet_file, dialect), shown(other.subnet_file, dialect)
    plain = listing(host, dialect, None)
    if plain == mine:
        return listing(host, dialect, SECOND) == shown(other.subnet_file, dialect, "--suffix")
    if plain == its:
        return listing(host, dialect, OVERLAY) == shown(host.subnet_file, dialect, "--suffix")
    # iptables' two chains are named each by itself.
    return dialect == "iptables" and len(listing(host, dialect, SECOND) + listing(host, dialect, OVERLAY)) > 0


def test_what_flanneld_left_for_our_network_is_taken_over(host: Host, dialect: str) -> None:
    put_flannelds(host, dialect, OVERLAY)
    with Agent(host, "--ip-masq") as agent:
        agent.wait_ready()
        assert listing(host, dialect, None) == shown(host.subnet_file, dialect)
        assert listing(host, dialect, OVERLAY) == ""


def test_a_flanneld_of_another_network_that_starts_later_is_given_way(host: Host, dialect: str) -> None:
    with Agent(host, "--ip-masq", "--iptables-resync=1") as agent:
        agent.wait_ready()
        wait_for("ours beside", partial(stand_beside_flannelds, host, dialect))
        theirs = listing(host, dialect, None)
        assert str(THIRD) in theirs
        assert str(OVERLAY) not in theirs
        wait_for("ready", host.is_ready)
        # It puts its own right every few seconds: no quarrel.
        put_flannelds(host, dialect, THIRD)
        wait_for("ready", host.is_ready)
        assert agent.stop() == 0


def put_flannelds(host: Host, dialect: str, network: IPv4Network) -> None:
    """Do as flanneld does at start and every few seconds."""
    if dialect == "nftables":
        table = "ip flannel-ipv4"
        text = f"add table {table}\ndelete table {table}\n{FLANNELDS_TABLE.format(network=network)}"
        host.run(["nft", "-f", "-"], stdin=text)
        return
    host.run(["iptables-restore", "--noflush"], stdin=FLANNELDS.format(network=network))
    for table, base, name, comment in (
        ("filter", "FORWARD", "FLANNEL-FWD", "flanneld forward"),
        ("nat", "POSTROUTING", "FLANNEL-POSTRTG", "flanneld masq"),
    ):
        jump = ["-m", "comment", "--comment", comment, "-j", name]
        if host.run(["iptables", "-w", "-t", table, "-S", base]).stdout.count(f"-j {name}\n") == 0:
            host.run(["iptables", "-w", "-t", table, "-A", base, *jump])


def stand_beside_flannelds(host: Host, dialect: str) -> bool:
    """Tell whether our rules have a suffix, once flanneld has put its own.

    It puts them again where they are not: we may have looked just before it came, and put ours just after.
    """
    if str(OVERLAY) in (plain := listing(host, dialect, None)) or str(THIRD) not in plain:
        put_flannelds(host, dialect, THIRD)
    return listing(host, dialect, OVERLAY) == shown(host.subnet_file, dialect, "--suffix")


def stands_beside(host: Host, other: Other, dialect: str, network: IPv4Network) -> bool:
    if f"FLANNEL_NETWORK={network}" not in other.subnet_file.read_text():
        return False
    return listing(host, dialect, network) == shown(other.subnet_file, dialect, "--suffix")


def test_a_changed_network_leaves_nothing_of_the_former_one(host: Host, other: Other, dialect: str) -> None:
    with Agent(host, "--ip-masq") as first:
        first.wait_ready()
        for network in (SECOND, THIRD):
            other.choose(network)
            with other.agent() as second:
                wait_for("beside", partial(stands_beside, host, other, dialect, network))
                assert second.stop() == 0
        wait_for("the former one's are gone", lambda: listing(host, dialect, SECOND) == "")
        assert listing(host, dialect, None) == shown(host.subnet_file, dialect)
        assert first.stop() == 0
    document = json.loads(host.plan.registry_file.read_text())
    document["config"]["Network"], document["subnets"] = "10.55.0.0/16", {}
    host.plan.registry_file.write_text(json.dumps(document))
    with Agent(host, "--ip-masq") as first:
        first.wait_ready()
        text = shown(host.subnet_file, dialect)
        assert "10.55.0.0/16" in text
        assert listing(host, dialect, None) == text
