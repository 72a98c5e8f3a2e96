"""What `nft -j list ruleset` says of one packet. Pure.

iptables' variant that nftables carries has tables in there, too, with conditions that nft cannot spell: those are left
to `iptables -S`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flannel_udp.host.family import family_of
from flannel_udp.host.firewall.nft_chains import Chain
from flannel_udp.host.firewall.ruleset import (
    ACCEPTED,
    ANYTHING,
    GOES_ON,
    HANDED_OVER,
    RETURNS,
    Fate,
    Packet,
    Rule,
    both,
    fate_in,
    is_device,
    is_inside,
    is_port,
    is_protocol,
)

_IPTABLES_PRIORITIES = {"raw": (-300,), "mangle": (-150,), "nat": (-100, 100), "filter": (0,), "security": (50,)}
_IPTABLES_CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
BRIDGE_FAMILY = "bridge"
_GO_ON = {"counter", "last", "log", "mangle", "notrack", "secmark", "dup", "flow", "reset", "optstrip"}
_GO_ON |= {"ct helper", "ct timeout", "ct expectation"}
"""Statements that do something on the way, always."""
_VERDICTS = {"accept": ACCEPTED, "drop": "drop", "return": RETURNS, "continue": GOES_ON}


class Meeting(NamedTuple):
    """A base chain that the packet meets, and what becomes of it there."""

    family: str
    table: str
    chain: str
    fate: Fate


def meetings(document: Mapping[str, Any], hook: str, packet: Packet) -> Iterator[Meeting]:
    """Yield what becomes of the packet in every base chain of the hook: ``input``, ``forward``, or another."""
    items: Sequence[Mapping[str, Any]] = document.get("nftables", [])
    bases = [base for item in items if (base := item.get("chain")) is not None and _is_met(base, hook, packet)]
    rules: dict[tuple[str, str], dict[str, list[Rule]]] = {}
    for rule in (item["rule"] for item in items if bases and "rule" in item):
        chains = rules.setdefault((rule["family"], rule["table"]), {})
        chains.setdefault(rule["chain"], []).extend(_rules(rule, packet))
    by = {"ingress": packet.iif, "egress": packet.oif}.get(hook)
    for base in bases:
        family, table, name = base["family"], base["table"], base["name"]
        concerned = by is None or _is_for(base.get("dev"), by)
        if concerned is not False:
            fate = fate_in(rules.get((family, table), {}), name, base.get("policy", "accept"))
            yield Meeting(family, table, name, fate if concerned else fate.doubted())


def _is_met(chain: Mapping[str, Any], hook: str, packet: Packet) -> bool:
    """Tell whether it is a base chain of the hook that judges packets of this kind."""
    if chain.get("hook") != hook or chain.get("type") not in ("filter", "route"):
        return False
    family = chain["family"]
    if (family == BRIDGE_FAMILY) is not packet.bridged or family not in families_of(packet.version):
        return False
    return not is_iptables(Chain(family, chain["table"], chain["name"], chain["prio"]))


def _is_for(devices: Any, name: str) -> bool | None:
    """Tell whether a chain of these devices meets what comes, or goes, by that one; ``None``: nobody says."""
    if devices is None:
        return None
    held = {is_device(pattern, name) for pattern in _values(devices)}
    return True in held or (None if None in held else False)


def families_of(version: int) -> tuple[str, ...]:
    """Return the families of tables that packets of an IP version may meet."""
    return "inet", family_of(version).nft, "netdev", BRIDGE_FAMILY


def is_iptables(chain: Chain) -> bool:
    """Tell whether a base chain is one that iptables-nft makes, and lists: another priority is "incompatible"."""
    priorities = _IPTABLES_PRIORITIES.get(chain.table, ())
    return chain.family in ("ip", "ip6") and chain.name in _IPTABLES_CHAINS and chain.priority in priorities


def _rules(rule: Mapping[str, Any], packet: Packet) -> list[Rule]:
    """Return a rule as the packet meets it; one for each verdict of a map. What is not understood may do anything."""
    text = f"a rule of chain {rule['chain']} (handle {rule['handle']})"
    try:
        return list(_understood(rule["expr"], text, packet))
    except (AttributeError, KeyError, TypeError, ValueError):  # of a later nft, say
        return [Rule(None, ANYTHING, "", text)]


def _understood(statements: Sequence[Any], text: str, packet: Packet) -> Iterator[Rule]:
    conditions: list[bool | None] = []
    does, target = GOES_ON, ""
    for statement in statements:
        ((kind, content),) = statement.items()
        match kind:
            case "match":
                conditions.append(_match(content["left"], content["op"], content["right"], packet))
            case "vmap":
                for holds, verdict in _verdicts(content, packet):
                    yield Rule(both([*conditions, holds]), *verdict, text)
            case "xt":  # of iptables, whose words nft has not
                raise ValueError(kind)
            case "queue" | "fwd" | "synproxy":
                does = HANDED_OVER
            case "reject":
                does = "drop"
            case "jump" | "goto":
                does, target = kind, content["target"]
            case _ if kind in _VERDICTS:
                does = _VERDICTS[kind]
            case "set" | "map" if "stmt" not in content:
                pass
            case _ if kind not in _GO_ON:  # a limit, a quota, or of a later nft: what comes next may not be done
                conditions.append(None)
    yield Rule(both(conditions), does, target, text)


def _verdicts(content: Mapping[str, Any], packet: Packet) -> Iterator[tuple[bool | None, tuple[str, str]]]:
    """Yield each element of a verdict map: whether it is for the packet, what it does and where to."""
    data = content.get("data")
    pairs = data.get("set") if isinstance(data, dict) else None
    if not isinstance(pairs, list):  # a named map: anything may be in there
        yield None, (ANYTHING, "")
        return
    for value, verdict in pairs:
        ((kind, where),) = verdict.items()
        does = (kind, where["target"]) if kind in ("jump", "goto") else (_VERDICTS.get(kind, GOES_ON), "")
        yield _match(content["key"], "==", value, packet), does


def _match(left: Any, operator: str, right: Any, packet: Packet) -> bool | None:
    subject, values = _subject(left), _values(right)
    if subject is None or not values:
        return None
    holds = _holds(subject, values, packet)
    if holds is not None and operator == "!=":
        holds = not holds
    return both([_has_header(subject, packet), holds])


def _has_header(subject: tuple[str, str, str], packet: Packet) -> bool | None:
    """Tell whether the packet has what is looked at: nothing holds of a header that is not there, nor its opposite."""
    kind, protocol, _ = subject
    if kind != "payload" or protocol in ("th", "ether"):
        return True
    if protocol in ("ip", "ip6", "arp"):
        return protocol == family_of(packet.version).nft
    return is_protocol([protocol], packet)


def _subject(left: Any) -> tuple[str, str, str] | None:
    """Return what is looked at: its kind, a header's protocol, and the field; ``None``: several at once, say."""
    if not isinstance(left, dict):
        return None
    ((kind, content),) = left.items()
    if not isinstance(content, dict):
        return None
    return kind, content.get("protocol", ""), content.get("key") or content.get("field") or ""


def _holds(subject: tuple[str, str, str], values: Sequence[Any], packet: Packet) -> bool | None:
    texts = [value if isinstance(value, str) else "" for value in values]
    holds: bool | None = None
    match subject:
        case ("meta", _, "iifname" | "iif"):
            holds = any(is_device(text, packet.iif) for text in texts) if packet.iif else None
        case ("meta", _, "oifname" | "oif"):
            holds = any(is_device(text, packet.oif) for text in texts) if packet.oif else None
        case ("meta", _, "ibrname"):
            holds = any(is_device(text, packet.from_bridge) for text in texts) if packet.from_bridge else None
        case ("meta", _, "obrname"):
            holds = any(is_device(text, packet.to_bridge) for text in texts) if packet.to_bridge else None
        case ("meta", _, "l4proto") | ("payload", "ip", "protocol") | ("payload", "ip6", "nexthdr"):
            holds = is_protocol([str(value) for value in values], packet)
        case ("meta", _, "nfproto"):
            holds = f"ipv{packet.version}" in texts
        case ("meta", _, "protocol") | ("payload", "ether", "type"):
            holds = family_of(packet.version).nft in texts
        case ("payload", "ip" | "ip6", "saddr"):
            holds = is_inside([_network(value) for value in values], packet.source, packet.outside)
        case ("payload", "ip" | "ip6", "daddr"):
            holds = is_inside([_network(value) for value in values], packet.destination, packet.outside)
        case ("payload", "tcp" | "udp" | "th", "dport"):
            holds = is_port([_range(value) for value in values], packet)
        case ("ct", _, "status"):
            holds = False if set(texts) <= {"dnat", "snat"} else None
        case ("ct", _, "state"):
            holds = "new" in texts
    return holds


def _values(right: Any) -> list[Any]:
    """Return the values of a set, or the one there is; none for what is not understood (a named set, say)."""
    if isinstance(right, dict) and isinstance(right.get("set"), list):
        return list(right["set"])
    if isinstance(right, list):
        return right
    return [] if isinstance(right, str) and right.startswith("@") else [right]


def _network(value: Any) -> str:
    """Return a network's text; what is none (a range of addresses, say) becomes none, too, and so a doubt."""
    if isinstance(value, dict) and "prefix" in value:
        return f"{value['prefix']['addr']}/{value['prefix']['len']}"
    return str(value)


def _range(value: Any) -> tuple[int, int] | None:
    if isinstance(value, dict) and "range" in value:
        first, last = value["range"]
        return (first, last) if isinstance(first, int) and isinstance(last, int) else None
    return (value, value) if isinstance(value, int) else None
