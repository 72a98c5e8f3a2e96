"""Rules that our own cannot overrule: a packet passes every dialect's, and both variants of iptables at once.

iptables has a variant that nftables carries (iptables-nft) and an older one (iptables-legacy), each with tables of its
own. What one accepts, the other may still drop: Docker makes the policy of FORWARD "drop" in the variant that it finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flannel_udp.errors import FlannelError
from flannel_udp.host.family import family_of
from flannel_udp.host.firewall.tool import LOCK_WAIT_S, run_tool
from flannel_udp.model import Degradation, Prefix

KIND = "firewall"
# Of this network namespace, by IP version; to list one by iptables-legacy makes it.
_NET = Path("/proc/thread-self/net")  # is there where /proc shows processes only (subset=pid), too
_LEGACY_TABLES = {4: _NET / "ip_tables_names", 6: _NET / "ip6_tables_names"}


class Mixture(NamedTuple):
    """What other rules than those of our own dialect do to the overlay's packets."""

    faults: Sequence[Degradation] = ()
    policies: Sequence[str] = ()
    """The variants of iptables whose policy of FORWARD is among these."""


async def find_mixture(network: Prefix, *, nftables: bool) -> Mixture:
    """Return what other rules than those of our own dialect do to the overlay's packets; `nftables`: that is ours.

    Raises `LockHeld` where they cannot be listed now, `FlannelError` where our own tool does not work.
    """
    tool = family_of(network).iptables
    ours = "nftables" if nftables else await _variant(tool)
    others = [variant for variant in (f"{tool}-nft", f"{tool}-legacy") if variant != ours]
    policies = {variant: fault for variant in others if (fault := await _policy_fault(variant, ours, network))}
    left = [fault for variant in others if (fault := await _left_over(variant, ours, network))]
    return Mixture([Degradation(KIND, fault) for fault in (*policies.values(), *left)], [*policies])


async def _variant(tool: str) -> str:
    """Return which variant `iptables`, or `ip6tables`, is here. Raises `FlannelError`."""
    version = await run_tool(tool, "--version")
    return f"{tool}-legacy" if "legacy" in version.output else f"{tool}-nft"


async def _policy_fault(variant: str, ours: str, network: Prefix) -> str | None:
    forward = await _list(variant, "filter", "FORWARD", network.version)
    if "-P FORWARD DROP" not in forward or _accepts(forward, network):
        return None
    accept = " and ".join(f"{variant} -I FORWARD {side} {network} -j ACCEPT" for side in ("-s", "-d"))
    return (
        f"the policy of FORWARD in {variant} is to drop, and our rules are in {ours}, which cannot help: "
        f"pods may reach nobody: {accept}"
    )


async def _left_over(variant: str, ours: str, network: Prefix) -> str | None:
    masquerade = await _list(variant, "nat", "FLANNEL-POSTRTG", network.version)
    if not any(line.startswith("-A") for line in masquerade):
        return None
    return (
        f"{variant} has rules of flannel's, too (FLANNEL-POSTRTG), and ours are in {ours}: an older subnet's may "
        f"masquerade packets: {variant} -t nat -F FLANNEL-POSTRTG"
    )


def legacy_tables(version: int) -> set[str]:
    """Return the tables that iptables-legacy has of one IP version in this network namespace."""
    try:
        return set(_LEGACY_TABLES[version].read_text().split())
    except OSError:
        return set()


def _accepts(forward: Sequence[str], network: Prefix) -> bool:
    """Tell whether some rule of FORWARD is for the overlay, or for everybody."""
    return any(
        line == "-A FORWARD -j ACCEPT" or "-j FLANNEL-FWD" in line or (str(network) in line and "-j ACCEPT" in line)
        for line in forward
    )


async def _list(variant: str, table: str, chain: str, version: int) -> list[str]:
    """Return the chain's rules; none where the tool is missing or does not work. Raises `LockHeld`."""
    if variant.endswith("-legacy") and table not in legacy_tables(version):
        return []
    try:
        done = await run_tool(variant, "--wait", str(LOCK_WAIT_S), "--table", table, "--list-rules", chain)
    except FlannelError:
        return []
    done.check_lock()
    return done.output.splitlines() if done.status == 0 else []
