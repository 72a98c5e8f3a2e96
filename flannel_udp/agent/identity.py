"""Who else has our address or our subnet, and which subnets are of several hosts: packets may go to the wrong one."""

from __future__ import annotations

from collections.abc import Container, Sequence

from flannel_udp.control.entries import read_lease
from flannel_udp.control.peers import SharedSubnet
from flannel_udp.model import Address, Degradation, Entry

NAMED_MAX = 3
"""So many other hosts, or subnets, are named."""
_STALE_NODE = "kubectl get nodes, and delete the stale one"
_STALE_LEASE = "flannel-udp lease list, and release the stale one"


def degradations_of_claims(claims: Sequence[Entry], ours: Container[Address], mark: int) -> list[Degradation]:
    """Return what is said of other hosts' leases under one of `ours`, our addresses; `mark` is ours.

    Kubernetes' nodes have names, and no marks.
    """

    def describe(entry: Entry) -> str:
        lease = read_lease(entry)
        attrs = lease.attrs
        shared = " and ".join(str(at) for at in (attrs.public_ip, attrs.public_ipv6) if at in ours)
        flag = "--public-ip" if attrs.public_ip in ours else "--public-ipv6"
        if entry.host is not None:
            return (
                f"node {entry.host} has {lease.subnet} under our address {shared}, so that its pods get nothing from "
                f"this host: give each node an address of its own, by --iface or {flag}; if there is no such node any "
                f"more, kubectl delete node {entry.host}"
            )
        who = "a copy of this host" if entry.mark == mark else "another host"
        marks = f"its mark is {entry.mark:08x}, ours {mark:08x}"
        return f"{who} has {entry.key} under our address {shared} ({marks}): give each host its own, see {flag}"

    found = [Degradation("identity", describe(entry)) for entry in claims[:NAMED_MAX]]
    if more := len(claims) - len(found):
        hosts = "hosts" if claims[0].host is None else "nodes"
        found.append(Degradation("identity", f"and {more} more {hosts} have"))
    return found


def degradations_of_shared(shared: Sequence[SharedSubnet], *, kubernetes: bool) -> list[Degradation]:
    """Return what is said of subnets that several hosts hold."""
    hosts, subnet, mend = ("nodes", "podCIDR", _STALE_NODE) if kubernetes else ("hosts", "subnet", _STALE_LEASE)

    def describe(each: SharedSubnet) -> Degradation:
        first, *others = each.hosts
        if each.ours:
            have = f"{hosts.removesuffix('s')} {others[0]} has" if len(others) == 1 else f"{hosts} {_all(others)} have"
            text = f"{have} our {subnet} {each.subnet}, too: what is meant for our pods may go there: {mend}"
            return Degradation("identity", text)
        one = f"{hosts} {_all(each.hosts)} have one {subnet}, {each.subnet}"
        return Degradation("peers", f"{one}: packets for it go to {first} alone: {mend}")

    found = [describe(each) for each in shared[:NAMED_MAX]]
    if more := len(shared) - len(found):
        found.append(Degradation("peers", f"and {more} more subnets are of several hosts: flannel-udp lease list"))
    return found


def _all(names: Sequence[str]) -> str:
    return " and ".join(names)
