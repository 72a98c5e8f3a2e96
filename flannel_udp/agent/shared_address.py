"""Other hosts that have a subnet under our address: what is meant for us may go there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flannel_udp.control.entries import read_lease
from flannel_udp.model import Degradation, Entry, Interface

CLAIMS_MAX = 3
"""So many other hosts with our address are named."""


def degradations_of(claims: Sequence[Entry], external: Interface | None, mark: int) -> Iterator[Degradation]:
    """Yield who they are; `mark` is ours."""
    ours = {ends.public_ip for ends in (external.v4, external.v6) if ends} if external else set()

    def describe(entry: Entry) -> str:
        who = "a copy of this host" if entry.mark == mark else "another host"
        marks = f"its mark is {entry.mark:08x}, ours {mark:08x}"
        attrs = read_lease(entry).attrs
        shared = " and ".join(str(at) for at in (attrs.public_ip, attrs.public_ipv6) if at in ours)
        flag = "--public-ip" if attrs.public_ip in ours else "--public-ipv6"
        return f"{who} has {entry.key} under our address {shared} ({marks}): give each host its own, see {flag}"

    yield from (Degradation("identity", describe(entry)) for entry in claims[:CLAIMS_MAX])
    if (more := len(claims) - CLAIMS_MAX) > 0:
        yield Degradation("identity", f"and {more} more hosts have")
