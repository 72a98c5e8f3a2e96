"""The firewall's IPv6 half in both dialects: applied, put back, removed; what others' rules drop is named."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network

import pytest

from flannel_udp.host.firewall import iptables
from flannel_udp.host.firewall.applier import Applier
from flannel_udp.host.firewall.iptables import Iptables
from flannel_udp.host.firewall.nftables import Nftables
from flannel_udp.host.firewall.owner import Owner
from flannel_udp.host.firewall.passages import (
    DISCOVERY,
    find_closed,
    outer_passages,
    pods_passages,
    udp_opening,
)
from flannel_udp.host.firewall.rules import Rules, rules_for
from flannel_udp.host.firewall.tool import Finished, run_tool
from flannel_udp.lab.netns import call_inside
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

NETWORK, SUBNET = IPv6Network("fd00:1::/48"), IPv6Network("fd00:1:0:15::/64")
RULES = rules_for(NETWORK, SUBNET, masquerade=True, forward=True, random_fully=False)
OWN = IPv6Address("2001:db8::1")
TABLE = """\
table ip6 flannel-ipv6 {
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip6 saddr fd00:1::/48 accept comment "flanneld forward"
		ip6 daddr fd00:1::/48 accept comment "flanneld forward"
	}

	chain postrtg {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return comment "flanneld masq"
		ip6 saddr fd00:1:0:15::/64 ip6 daddr fd00:1::/48 return comment "flanneld masq"
		ip6 saddr fd00:1::/48 ip6 daddr fd00:1:0:15::/64 return comment "flanneld masq"
		ip6 saddr != fd00:1::/48 ip6 daddr fd00:1:0:15::/64 return comment "flanneld masq"
		ip6 saddr fd00:1::/48 ip6 daddr != ff00::/8 masquerade comment "flanneld masq"
		ip6 saddr != fd00:1::/48 ip6 daddr fd00:1::/48 masquerade comment "flanneld masq"
	}
}
"""


@pytest.fixture
def host() -> Iterator[str]:
    name = fresh_name()
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=PATIENCE_S)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=PATIENCE_S)


def run(host: str, command: str) -> str:
    whole = ["ip", "netns", "exec", host, "sh", "-c", command]
    return subprocess.run(whole, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout


@pytest.mark.parametrize("dialect", [Nftables, Iptables])
def test_rules_stand_are_put_back_and_go(host: str, dialect: type[Applier]) -> None:
    async def life() -> list[bool]:
        applier = dialect(Owner(NETWORK))
        await applier.locate(RULES)
        stood = [await applier.stands(RULES)]
        await applier.put(RULES)
        stood.append(await applier.stands(RULES))
        flush = ["nft", "flush", "ruleset"] if dialect is Nftables else ["ip6tables", "-w", "-F", "FLANNEL-FWD"]
        subprocess.run(flush, check=True, timeout=PATIENCE_S)
        await applier.locate(RULES)
        stood.append(await applier.stands(RULES))
        await applier.put(RULES)
        stood.append(await applier.stands(RULES))
        await applier.put(Rules(6))
        return [*stood, await applier.listing(6) == ""]

    assert call_inside(host, lambda: asyncio.run(life())) == [False, True, False, True, True]


def test_iptables_is_run_once_for_each_chain_that_is_looked_at(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To put rules, see that they stand, and remove them: a busy host has little time for each run."""
    commands: list[str] = []

    async def counted(*command: str, stdin: str = "") -> Finished:
        commands.append(command[-1])
        return await run_tool(*command, stdin=stdin)

    monkeypatch.setattr(iptables, "run_tool", counted)

    async def life() -> list[int]:
        applier = Iptables(Owner(NETWORK))
        counts = []
        for rules in (RULES, RULES, Rules(6)):
            await applier.locate(rules)
            if not await applier.stands(rules):
                await applier.put(rules)
            await applier.sweep(6)
            counts.append(len(commands))
            commands.clear()
        return counts

    # Our two chains, and the two that jump to them; after a transaction again; two chains of ours with other names.
    assert call_inside(host, lambda: asyncio.run(life())) == [4 + 1 + 4 + 2, 4 + 2, 4 + 1 + 4 + 2]


def test_nftables_has_a_table_of_its_own_and_iptables_the_same_chains(host: str) -> None:
    async def put() -> None:
        for applier in (Nftables(Owner(NETWORK)), Iptables(Owner(NETWORK))):
            await applier.put(RULES)

    call_inside(host, lambda: asyncio.run(put()))
    assert run(host, "nft list table ip6 flannel-ipv6") == TABLE
    masquerade = run(host, "ip6tables -t nat -S FLANNEL-POSTRTG").splitlines()
    assert (
        masquerade[1]
        == '-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN'
    )
    assert "! -d ff00::/8" in masquerade[5]
    assert "FLANNEL-FWD" in run(host, "ip6tables -S FORWARD")
    assert "FLANNEL-FWD" not in run(host, "iptables -S FORWARD")


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        ("ip6tables -P INPUT DROP", ["UDP port 8285", "ip6tables-nft -I INPUT -p udp --dport 8285 -j ACCEPT"]),
        ("ip6tables -A INPUT -p ipv6-icmp -j DROP", ["ICMPv6", "ip6tables-nft -I INPUT -p ipv6-icmp -j ACCEPT"]),
        ("ip6tables -P FORWARD DROP", ["our pods", "ip6tables-nft -I FORWARD -s fd00:1::/48 -j ACCEPT"]),
        (
            "nft 'add table inet f; add chain inet f i { type filter hook input priority 0; policy drop; }'",
            ["UDP port 8285", "nft insert rule inet f i udp dport 8285 accept"],
        ),
        (
            "nft 'add table ip6 f; add chain ip6 f o { type filter hook forward priority 0; policy drop; }'",
            ["our pods", "nft insert rule ip6 f o ip6 saddr fd00:1::/48 accept"],
        ),
        (
            (
                "nft 'add table inet f; add chain inet f i { type filter hook input priority 0; policy accept; };"
                " add rule inet f i meta nfproto ipv6 udp dport 8285 drop'"
            ),
            ["UDP port 8285", "a rule of chain i"],
        ),
    ],
)
def test_what_others_drop_of_ipv6_is_named_with_what_opens_it(host: str, drop: str, said: list[str]) -> None:
    if drop.startswith("ip6tables") and shutil.which("ip6tables-nft") is None:
        pytest.skip("no ip6tables-nft")
    run(host, drop)
    assert any(all(word in text for word in said) for text in closed(host)), closed(host)


@pytest.mark.parametrize(
    "drop",
    [
        "iptables -P INPUT DROP; iptables -P FORWARD DROP",
        "nft 'add table ip f; add chain ip f i { type filter hook input priority 0; policy drop; }'",
        (
            "nft 'add table inet f; add chain inet f i { type filter hook input priority 0; policy accept; };"
            " add rule inet f i meta nfproto ipv4 drop; add rule inet f i ip saddr 10.0.0.0/8 drop'"
        ),
    ],
)
def test_what_others_drop_of_ipv4_is_no_matter_of_ipv6(host: str, drop: str) -> None:
    run(host, drop)
    assert closed(host) == []


def closed(host: str) -> list[str]:
    questions = [
        outer_passages(udp_opening(8285), "eth0", OWN, None, version=6, overlay=NETWORK),
        outer_passages(DISCOVERY, "eth0", OWN, None, version=6, overlay=NETWORK)[:1],
        pods_passages("flannel0", NETWORK, IPv6Address("fd00:1:0:16::2"), [SUBNET[-2]]),
    ]
    return [item.text for item in call_inside(host, lambda: asyncio.run(find_closed(questions)))]
