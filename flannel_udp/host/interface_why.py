"""Why the choice of the external interface falls as it does: one sentence for each address of the host."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from typing import TextIO

from flannel_udp.host.interface import Address, Choice, HostNetwork, Link
from flannel_udp.model import Interface


@dataclass(frozen=True, slots=True)
class Candidate:
    """One address of the host, or an interface without one, and why it is taken or not."""

    interface: str
    address: str | None
    chosen: bool
    reason: str


def explain(choice: Choice, host: HostNetwork) -> list[Candidate]:
    """Return every candidate: the chosen one, then interface by interface, best address first, then bare interfaces."""
    found = [
        _candidate(choice, host, link, item) for link in host.links for item in sorted(link.addresses, key=Address.rank)
    ]
    found += [Candidate(link.name, None, False, str(link.why_unusable())) for link in host.links if not link.addresses]
    return sorted(found, key=lambda candidate: not candidate.chosen)


def _candidate(choice: Choice, host: HostNetwork, link: Link, item: Address) -> Candidate:
    taken = choice.interface
    chosen = taken is not None and (link.index, item.address) == (taken.index, taken.address)
    reason = _why(choice, host, link) if chosen else link.why_unusable() or _why_not(choice, host, link, item)
    return Candidate(link.name, str(item.address), chosen, reason)


def _why(choice: Choice, host: HostNetwork, link: Link) -> str:
    match choice.made.rule:
        case "iface":
            return f"{choice.made} names it"
        case "iface-regex":
            return f"the first that {choice.made} matches"
        case "iface-can-reach":
            return f"the route to {choice.made.text} leaves from here"
        case "default route":
            return f"the default route leads over it, with metric {_metric(host, link)}"


def _why_not(choice: Choice, host: HostNetwork, link: Link, item: Address) -> str:
    """Say why a usable address was not taken."""
    taken, made = choice.interface, choice.made
    if taken is None:
        return "no default route leads over it" if made.rule == "default route" else "no option leads to it"
    same_link = link.index == taken.index
    match made.rule:
        case "iface":
            by_name = same_link and made.text == link.name
            return _why_worse(link, item, taken.address) if by_name else f"{made} names another"
        case "iface-regex":
            return _why_not_matched(made.text, taken, link, item)
        case "iface-can-reach":
            return f"the route to {made.text} leaves from {taken.address} of {taken.name}"
        case "default route":
            return _why_worse(link, item, taken.address) if same_link else _why_not_default(host, taken, link)


def _why_not_default(host: HostNetwork, taken: Interface, link: Link) -> str:
    metric = _metric(host, link)
    if metric is None:
        return "no default route leads over it"
    return f"its default route has metric {metric}, and that over {taken.name} goes first"


def _why_not_matched(pattern: str, taken: Interface, link: Link, item: Address) -> str:
    if re.search(pattern, str(item.address)):
        return f"it matches too, and {taken.address} of {taken.name} goes first"
    if not re.search(pattern, link.name):
        return f"--iface-regex={pattern} matches neither the address nor {link.name}"
    if re.search(pattern, str(taken.address)):
        return f"the name {link.name} matches, but addresses go before names"
    if link.index == taken.index:
        return _why_worse(link, item, taken.address)
    return f"the name {link.name} matches too, and {taken.name} goes first"


def _why_worse(link: Link, item: Address, best_address: IPv4Address) -> str:
    """Say what puts one address of an interface behind the best one."""
    best = next(other for other in link.addresses if other.address == best_address)
    if item.scope > best.scope:
        return f"its scope is narrower than that of {best.address}: a global address goes before a link-local one"
    if item.deprecated > best.deprecated:
        return f"it is deprecated, {best.address} is not"
    if item.permanent < best.permanent:
        return f"it is temporary, {best.address} is permanent"
    return f"{best.address} goes first in the kernel's list"


def _metric(host: HostNetwork, link: Link) -> int | None:
    """Return the lowest metric of a default route over the interface."""
    return min((route.metric for route in host.default_routes if route.link_index == link.index), default=None)


def show_json(choice: Choice, host: HostNetwork, stream: TextIO) -> None:
    """Write the choice as a document; "chosen" is null where nothing was."""
    taken = choice.interface
    document = {
        "chosen": None
        if taken is None
        else {
            "interface": taken.name,
            "address": str(taken.address),
            "public_ip": str(taken.public_ip),
            "mtu": taken.mtu,
            "by": str(choice.made),
        },
        "refused": list(choice.refusals),
        "candidates": [asdict(candidate) for candidate in explain(choice, host)],
    }
    stream.write(json.dumps(document, indent=2) + "\n")


def show(choice: Choice, host: HostNetwork, stream: TextIO) -> None:
    """Write the choice for people: a line a candidate, then what the agent would do with it."""
    stream.writelines(f"{line}\n" for line in _lines(choice, host))


def _lines(choice: Choice, host: HostNetwork) -> Iterator[str]:
    candidates = explain(choice, host)
    width = max((len(candidate.interface) for candidate in candidates), default=0)
    for candidate in candidates:
        verdict = "chosen" if candidate.chosen else "not"
        yield f"{candidate.interface:<{width}}  {candidate.address or '-':<15}  {verdict:<6}  {candidate.reason}"
    taken = choice.interface
    if taken is None:
        return
    for refusal in choice.refusals:
        yield f"passed over: {refusal}"
    other = f"{taken.public_ip} (--public-ip)" if taken.public_ip != taken.address else "the same"
    yield f"the agent binds to {taken.address} of {taken.name}, MTU {taken.mtu}; other hosts dial {other}"
