"""Why the choice of the external interface falls as it does: one sentence for each address of the host."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TextIO

from flannel_udp.host.family import family_of
from flannel_udp.host.interface import Choice
from flannel_udp.host.interface_facts import Address, HostNetwork, Link
from flannel_udp.model import Address as IpAddress
from flannel_udp.model import Interface


@dataclass(frozen=True, slots=True)
class Candidate:
    """One address of the host, or an interface without one, and why it is taken or not."""

    interface: str
    address: str | None
    chosen: bool
    reason: str


def explain(choice: Choice, host: HostNetwork, versions: Sequence[int] = (4,)) -> list[Candidate]:
    """Return every candidate: the chosen ones, then interface by interface, best address first, then bare interfaces.

    IPv6's link-local addresses are none: every interface has some, and others cannot dial them.
    """
    found = [
        _candidate(choice, host, link, item)
        for link in host.links
        for item in sorted(link.addresses, key=Address.rank)
        if item.address.version in versions and not (item.address.version == 6 and item.address.is_link_local)
    ]
    bare = [link for link in host.links if link.name not in {candidate.interface for candidate in found}]
    found += [Candidate(link.name, None, False, str(link.why_unusable(versions[0]))) for link in bare]
    return sorted(found, key=lambda candidate: not candidate.chosen)


def _candidate(choice: Choice, host: HostNetwork, link: Link, item: Address) -> Candidate:
    taken, version = choice.interface, item.address.version
    ends = None if taken is None or taken.index != link.index else taken.of(version)
    chosen = ends is not None and ends.address == item.address
    if chosen:
        leads = version == choice.version
        reason = _why(choice, host, link) if leads else f"the {family_of(version).name} address of that interface"
    else:
        unusable = item.why_unusable() if link.up else None
        reason = (unusable and f"it {unusable}") or link.why_unusable(version) or _why_not(choice, host, link, item)
    return Candidate(link.name, str(item.address), chosen, reason)


def _why(choice: Choice, host: HostNetwork, link: Link) -> str:
    match choice.made.rule:
        case "iface":
            return f"{choice.made} names it"
        case "iface-regex":
            return f"the first that {choice.made} matches"
        case "iface-can-reach":
            return f"the route to {choice.made.text} leaves from here"
        case "public-ip" | "public-ipv6":
            return f"{choice.made} is its address"
        case "default route":
            return f"the default route leads over it, with metric {_metric(choice, host, link)}"


def _why_not(choice: Choice, host: HostNetwork, link: Link, item: Address) -> str:
    """Say why a usable address was not taken."""
    taken, made = choice.interface, choice.made
    if taken is None:
        return "no default route leads over it" if made.rule == "default route" else "no option leads to it"
    ends = taken.of(item.address.version)
    same_link = link.index == taken.index
    if ends is None or (item.address.version != choice.version and not same_link):
        return f"{taken.name} is the interface"
    if item.address.version != choice.version:
        return _why_worse(link, item, ends.address)
    return _why_not_best(choice, host, ends.address, link, item)


def _why_not_best(choice: Choice, host: HostNetwork, best: IpAddress, link: Link, item: Address) -> str:
    """Say why the family that chose took its `best` address, and not this one."""
    taken, made = choice.interface, choice.made
    assert taken is not None  # noqa: S101 - it has the best one
    same_link = link.index == taken.index
    match made.rule:
        case "iface":
            by_name = same_link and link.goes_by(made.text)
            return _why_worse(link, item, best) if by_name else f"{made} names another"
        case "iface-regex":
            return _why_not_matched(made.text, taken, best, link, item)
        case "iface-can-reach":
            return f"the route to {made.text} leaves from {best} of {taken.name}"
        case "public-ip" | "public-ipv6":
            return f"{made} names another"
        case "default route":
            return _why_worse(link, item, best) if same_link else _why_not_default(choice, host, best, link, item)


def _why_not_default(choice: Choice, host: HostNetwork, best: IpAddress, link: Link, item: Address) -> str:
    taken, metric = choice.interface, _metric(choice, host, link)
    assert taken is not None  # noqa: S101 - it has the best one
    if metric is None:
        return "no default route leads over it"
    if item.address.is_link_local and not best.is_link_local:
        return f"it is link-local, and a default route leads over {taken.name}, too"
    return f"its default route has metric {metric}, and that over {taken.name} goes first"


def _why_not_matched(pattern: str, taken: Interface, best: IpAddress, link: Link, item: Address) -> str:
    if re.search(pattern, str(item.address)):
        return f"it matches too, and {best} of {taken.name} goes first"
    if not re.search(pattern, link.name):
        return f"--iface-regex={pattern} matches neither the address nor {link.name}"
    if re.search(pattern, str(best)):
        return f"the name {link.name} matches, but addresses go before names"
    if link.index == taken.index:
        return _why_worse(link, item, best)
    return f"the name {link.name} matches too, and {taken.name} goes first"


def _why_worse(link: Link, item: Address, best_address: IpAddress) -> str:
    """Say what puts one address of an interface behind the best one."""
    best = next(other for other in link.addresses if other.address == best_address)
    ranked = link.ranked(best_address.version)
    if ranked.index(item.address) < ranked.index(best_address):
        return f"{best.address} is the one that an option names"
    if item.scope > best.scope:
        return f"its scope is narrower than that of {best.address}: a global address goes before a link-local one"
    if item.deprecated > best.deprecated:
        return f"it is deprecated, {best.address} is not"
    if item.temporary > best.temporary:
        return f"it is one of those that change (RFC 8981), {best.address} is not"
    return f"{best.address} was there before it"


def _metric(choice: Choice, host: HostNetwork, link: Link) -> int | None:
    """Return the lowest metric of a default route, of the family that chose, over the interface."""
    routes = (route for route in host.default_routes if route.version == choice.version)
    return min((route.metric for route in routes if route.link_index == link.index), default=None)


def show_json(choice: Choice, host: HostNetwork, stream: TextIO, versions: Sequence[int] = (4,)) -> None:
    """Write the choice as a document; "chosen" is null where nothing was, what is of a family is there if that is."""
    document = {
        "chosen": None if choice.interface is None else _chosen(choice, choice.interface),
        "refused": list(choice.refusals),
        "candidates": [asdict(candidate) for candidate in explain(choice, host, versions)],
    }
    if choice.lacks:
        document["lacks"] = list(choice.lacks)
    stream.write(json.dumps(document, indent=2) + "\n")


def _chosen(choice: Choice, taken: Interface) -> dict[str, str | int]:
    found: dict[str, str | int] = {"interface": taken.name}
    for ends, address, public in ((taken.v4, "address", "public_ip"), (taken.v6, "address_v6", "public_ipv6")):
        if ends is not None:
            found |= {address: str(ends.address), public: str(ends.public_ip)}
    return found | {"mtu": taken.mtu, "by": str(choice.made)}


def show(choice: Choice, host: HostNetwork, stream: TextIO, versions: Sequence[int] = (4,)) -> None:
    """Write the choice for people: a line a candidate, then what the agent would do with it."""
    stream.writelines(f"{line}\n" for line in _lines(choice, host, versions))


def _lines(choice: Choice, host: HostNetwork, versions: Sequence[int]) -> Iterator[str]:
    candidates = explain(choice, host, versions)
    width = max((len(candidate.interface) for candidate in candidates), default=0)
    for candidate in candidates:
        verdict = "chosen" if candidate.chosen else "not"
        yield f"{candidate.interface:<{width}}  {candidate.address or '-':<15}  {verdict:<6}  {candidate.reason}"
    taken = choice.interface
    if taken is None:
        return
    for refusal in choice.refusals:
        yield f"passed over: {refusal}"
    for why in choice.lacks:
        yield f"one family is missing: {why}"
    for ends, flag in ((taken.v4, "--public-ip"), (taken.v6, "--public-ipv6")):
        if ends is not None:
            other = f"{ends.public_ip} ({flag})" if ends.public_ip != ends.address else "the same"
            yield f"the agent binds to {ends.address} of {taken.name}, MTU {taken.mtu}; other hosts dial {other}"
