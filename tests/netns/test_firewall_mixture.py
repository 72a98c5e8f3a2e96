"""Rules in the variant of iptables that is not ours: named while they are there, since ours cannot overrule them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import Agent, wait_for
from tests.support.firewall import look_s
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = [
    *NEEDS_NETNS,
    pytest.mark.skipif(shutil.which("iptables-legacy") is None, reason="needs iptables-legacy"),
]

RESYNC = "--iptables-resync=1"


def hosts(nftables: bool) -> Lab:
    config = {"Network": str(OVERLAY), "EnableNFTables": nftables}
    return Lab(Plan(fresh_name(), hosts=1, pods=0, agents=(), config=config))


@pytest.fixture
def host() -> Iterator[Host]:
    with hosts(nftables=False) as lab:
        if lab.hosts[0].run(["iptables-legacy", "-w", "-S"], check=False).returncode != 0:
            pytest.skip("iptables-legacy does not work here")
        yield lab.hosts[0]


def degraded(host: Host) -> list[str]:
    return [text for text in host.control("/v1/status")["problems"] if "iptables" in text]


def appears(host: Host, part: str) -> None:
    wait_for(part, lambda: any(part in text for text in degraded(host)), look_s())


def goes(host: Host) -> None:
    wait_for("nothing is wrong", lambda: degraded(host) == [], look_s())


def test_the_other_variants_policy_and_flannels_rules_in_it_are_named(host: Host) -> None:
    with Agent(host, "--ip-masq", RESYNC) as agent:
        agent.wait_ready()
        assert degraded(host) == []
        host.run(["iptables-legacy", "-w", "-P", "FORWARD", "DROP"])
        appears(host, "the policy of FORWARD in iptables-legacy is to drop, and our rules are in iptables-nft")
        assert host.is_ready()
        # What the line says mends it.
        for side in ("-s", "-d"):
            host.run(["iptables-legacy", "-w", "-I", "FORWARD", side, str(OVERLAY), "-j", "ACCEPT"])
        goes(host)
        host.run(["iptables-legacy", "-w", "-t", "nat", "-N", "FLANNEL-POSTRTG"])
        host.run(["iptables-legacy", "-w", "-t", "nat", "-A", "FLANNEL-POSTRTG", "-j", "MASQUERADE"])
        appears(host, "iptables-legacy has rules of flannel's, too (FLANNEL-POSTRTG), and ours are in iptables-nft")
        host.run(["iptables-legacy", "-w", "-t", "nat", "-F", "FLANNEL-POSTRTG"])
        goes(host)


def test_rules_of_flannels_in_the_other_variant_hide_no_policy(host: Host) -> None:
    with Agent(host, "--iptables-forward-rules=false", RESYNC) as agent:
        agent.wait_ready()
        host.run(["iptables-legacy", "-w", "-t", "nat", "-N", "FLANNEL-POSTRTG"])
        host.run(["iptables-legacy", "-w", "-t", "nat", "-A", "FLANNEL-POSTRTG", "-j", "MASQUERADE"])
        host.run(["iptables-legacy", "-w", "-t", "mangle", "-P", "FORWARD", "DROP"])
        appears(host, "iptables-legacy has rules of flannel's, too (FLANNEL-POSTRTG)")
        appears(host, "what other hosts send to our pods: iptables-legacy -t mangle: the policy of FORWARD: ")
        host.run(["iptables-legacy", "-w", "-t", "mangle", "-P", "FORWARD", "ACCEPT"])
        host.run(["iptables-nft", "-P", "FORWARD", "DROP"])
        appears(host, "what other hosts send to our pods: iptables-nft: the policy of FORWARD: ")
        host.run(["iptables-legacy", "-w", "-P", "FORWARD", "DROP"])
        host.run(["iptables-nft", "-P", "FORWARD", "ACCEPT"])
        # In the mixture's words alone.
        appears(host, "the policy of FORWARD in iptables-legacy is to drop")
        wait_for("it is told once", lambda: not any("send to our pods" in text for text in degraded(host)), look_s())


def test_ours_in_legacy_and_the_policy_in_nft(host: Host, tmp_path: Path) -> None:
    for name in ("iptables", "iptables-restore"):
        (tmp_path / name).symlink_to(shutil.which(name.replace("iptables", "iptables-legacy")) or "")
    (tmp_path / "iptables-nft").symlink_to(shutil.which("iptables-nft") or "")
    with Agent(host, RESYNC, wrapper=("env", f"PATH={tmp_path}")) as agent:
        agent.wait_ready()
        host.run(["iptables-nft", "-P", "FORWARD", "DROP"])
        appears(host, "the policy of FORWARD in iptables-nft is to drop, and our rules are in iptables-legacy")
        host.run(["iptables-nft", "-P", "FORWARD", "ACCEPT"])
        goes(host)


def test_nftables_beside_dockers_policy() -> None:
    with hosts(nftables=True) as lab, Agent(host := lab.hosts[0], RESYNC) as agent:
        agent.wait_ready()
        host.run(["iptables-nft", "-P", "FORWARD", "DROP"])
        appears(host, "the policy of FORWARD in iptables-nft is to drop, and our rules are in nftables")
        host.run(["iptables-nft", "-P", "FORWARD", "ACCEPT"])
        goes(host)
