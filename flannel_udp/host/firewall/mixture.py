"""Rules that our own cannot overrule: a packet passes every dialect's, and both variants of iptables at once.

iptables has a variant that nftables carries (iptables-nft) and an older one (iptables-legacy), each with tables of its
own. What one accepts, the other may still drop: Docker makes the policy of FORWARD "drop" in the variant that it finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flannel_udp.errors import FlannelError
from flannel_udp.host.family import family_of
from flannel_udp.host.firewall.tool import run_tool
from flannel_udp.model import Degradation, Prefix

KIND = "firewall"
# Of this network namespace, by IP version; to list one by iptables-legacy makes it.
_NET = Path("/proc/thread-self/net")  # is there where /proc shows processes only (subset=pid), too
_LEGACY_TABLES = {4: _NET / "ip_tables_names", 6: _NET / "ip6_tables_names"}


async def find_mixture(network: Prefix, *, nftables: bool) -> list[Degradation]:
    """Return what other rules than those of our own dialect do to the overlay's packets; `nftables`: that is ours."""
    tool = family_of(network).iptables
    ours = "nftables" if nftables else await _variant(tool)
    found = []
    for variant in (f"{tool}-nft", f"{tool}-legacy"):
        if variant != ours:
            found += await _faults(variant, ours, network)
    return [Degradation(KIND, fault) for fault in found]


async def _variant(tool: str) -> str:
    """Return which variant `iptables`, or `ip6tables`, is here. Raises `FlannelError`."""
    version = await run_tool(tool, "--version")
    return f"{tool}-legacy" if "legacy" in version.output else f"{tool}-nft"


async def _faults(variant: str, ours: str, network: Prefix) -> list[str]:
    if variant.endswith("-legacy") and not legacy_tables(network.version):
        return []
    faults = []
    forward = await _list(variant, "filter", "FORWARD")
    if "-P FORWARD DROP" in forward and not _accepts(forward, network):
        accept = " and ".join(f"{variant} -I FORWARD {side} {network} -j ACCEPT" for side in ("-s", "-d"))
        faults.append(
            f"the policy of FORWARD in {variant} is to drop, and our rules are in {ours}, which cannot help: "
            f"pods may reach nobody: {accept}"
        )
    masquerade = await _list(variant, "nat", "FLANNEL-POSTRTG")
    if any(line.startswith("-A") for line in masquerade):
        faults.append(
            f"{variant} has rules of flannel's, too (FLANNEL-POSTRTG), and ours are in {ours}: an older subnet's may "
            f"masquerade packets: {variant} -t nat -F FLANNEL-POSTRTG"
        )
    return faults


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


async def _list(variant: str, table: str, chain: str) -> list[str]:
    """Return the chain's rules; none where the tool is missing or does not work."""
    try:
        done = await run_tool(variant, "--table", table, "--list-rules", chain)
    except FlannelError:
        return []
    return done.output.splitlines() if done.status == 0 else []
