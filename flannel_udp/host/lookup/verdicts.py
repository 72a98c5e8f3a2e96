"""What is said of packets that go elsewhere: one sentence for each rule or route that leads them there. Pure."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from flannel_udp.host.family import family_of
from flannel_udp.host.lookup.diversions import Diversion, Overlay, Pods, Sender
from flannel_udp.host.lookup.question import (
    RT_TABLE_DEFAULT,
    RT_TABLE_LOCAL,
    RTN_ANYCAST,
    RTN_BROADCAST,
    RTN_LOCAL,
    Answer,
    Entry,
    Names,
)
from flannel_udp.host.rtnetlink import RT_TABLE_MAIN, RTN_UNICAST, RTPROT_KERNEL
from flannel_udp.model import Degradation, Prefix, lies_in

NAMED_MAX = 10
"""So many rules and routes are named."""
SUBNETS_MAX = 3
"""So many subnets are named with each."""
_WITH_AN_ADDRESS = (RTN_UNICAST, RTN_BROADCAST, RTN_ANYCAST)  # such a route of the kernel's comes and goes with one

_REFUSAL_NAMES = {
    errno.EINVAL: "refused (blackhole)",
    errno.EHOSTUNREACH: "refused (unreachable)",
    errno.EACCES: "refused (prohibit)",
    errno.ENETUNREACH: "no route",
}


def judge_diversions(found: Sequence[Diversion], overlay: Overlay, names: Names) -> list[Degradation]:
    """Return a sentence for each culprit, with what to do; the last one counts those that are not named."""
    by_culprit: dict[object, list[Diversion]] = {}
    for item in found:
        answer = item.answer if item.route is None else None
        by_culprit.setdefault((item.rule, item.route, answer), []).append(item)
    groups = list(by_culprit.values())
    texts = [_sentence(group, overlay, names) for group in groups[:NAMED_MAX]]
    if more := len(groups) - len(texts):
        texts.append(
            f"and {more} more rules or routes like these: "
            f"{_ip(overlay)} rule; {_ip(overlay)} route show table all root {overlay.network}"
        )
    return [Degradation("routes", text) for text in texts]


def judge_rivals(pods: Pods | None, names: Names) -> list[Degradation]:
    """Return a sentence for each device that has our pods' network beside the bridge that their packets go to."""
    if pods is None:
        return []
    bridge, ip = names[pods.bridge], family_of(pods.subnet).ip
    return [
        Degradation(
            "routes",
            f"{bridge} and {names[index]} both have our subnet {pods.subnet}: packets for pods go to {bridge} alone, "
            f"those behind {names[index]} get none: take the address off the one that no runtime uses: "
            f"{ip} addr del {address} dev {names[index]}, or of {bridge} likewise",
        )
        for index, address in pods.rivals
    ]


def _sentence(group: Sequence[Diversion], overlay: Overlay, names: Names) -> str:
    first = group[0]
    packets = f"{_senders(group, names)} for {_list(_subnets(group))}"
    fate = f"{_fate(first, names)}{_intended(group, names)}"
    ways = [item.trial.way for item in group if item.trial.sender is Sender.PODS]
    if ways and ways[0] is not None and overlay.is_strict(ways[0].device):
        fate += f", and what comes from there is dropped, as rp_filter of {names[ways[0].device]} is 1"
    return f"{packets} {fate}: {_because(first, names)}: {_remedy(first, overlay, names)}"


def _senders(group: Sequence[Diversion], names: Names) -> str:
    senders = {item.trial.sender for item in group}
    if senders == {Sender.PEER}:
        return f"packets that arrive at {names[group[0].trial.question.iif]}"
    if senders == {Sender.HOST}:
        sources = {item.trial.question.source for item in group}
        (source,) = sources if len(sources) == 1 else (None,)
        return "this host's packets" + ("" if source is None else f" from {source}")
    return "our pods' packets" if senders == {Sender.PODS} else "packets"


def _subnets(group: Sequence[Diversion]) -> list[Prefix]:
    return sorted({item.trial.subnet for item in group})


def _list(subnets: Sequence[Prefix]) -> str:
    more = f" and {len(subnets) - SUBNETS_MAX} more" if len(subnets) > SUBNETS_MAX else ""
    return ", ".join(map(str, subnets[:SUBNETS_MAX])) + more


def _fate(item: Diversion, names: Names) -> str:
    if isinstance(item.answer, int):
        return "are refused, not sent"
    if item.answer.type == RTN_LOCAL:
        return "are kept on this host, not sent"
    hops = [f"{names[hop.device]}{f' via {hop.gateway}' if hop.gateway else ''}" for hop in item.answer.hops]
    return f"are sent to {' and '.join(hops) or 'another next hop'}, not"


def _intended(group: Sequence[Diversion], names: Names) -> str:
    ways = {item.trial.way for item in group}
    if len(ways) > 1:
        return " where they have to go"
    way = group[0].trial.way
    if way is None:
        return " to a pod of this host"
    return f" to {names[way.device]}{f' via {way.gateway}' if way.gateway else ''}"


def _because(item: Diversion, names: Names) -> str:
    """Name the rule, unless it is the one that every host has, and the route."""
    reasons = []
    if item.rule is not None and (item.rule.refuses or not _usual(item.rule.table)):
        reasons.append(f'by the rule "{item.rule}"')
    if item.route is not None:
        reasons.append(f'by the route "{item.route.describe(names)}"')
    return " and ".join(reasons) or "no table has a route"


def _usual(table: int) -> bool:
    return table in (RT_TABLE_MAIN, RT_TABLE_DEFAULT, RT_TABLE_LOCAL)


def _remedy(item: Diversion, overlay: Overlay, names: Names) -> str:
    rule, route = item.rule, item.route
    if rule is not None and rule.refuses:
        return f"{_ip(overlay)} rule del pref {rule.priority} {rule.spelled}"
    if isinstance(route, Entry):
        if route.type == RTN_LOCAL or (route.protocol == RTPROT_KERNEL and route.type in _WITH_AN_ADDRESS):
            device = " and ".join(names[hop.device] for hop in route.hops)
            key = family_of(overlay.network).network
            return f"take the address that brought it off {device}, or choose another {key}"
        usual = rule is None or _usual(rule.table)
        if usual and (missing := _missing(item, route, overlay, names)) is not None:
            return missing
        if usual or route.destination.prefixlen >= overlay.network.prefixlen:
            return f"{_ip(overlay)} route del {route.spelled(names)}"
    if rule is not None and rule.priority > 1:
        command = f"{_ip(overlay)} rule add pref {rule.priority - 1} to {overlay.network} lookup main"
        return f"let the overlay go first: {command}"
    return f"{_ip(overlay)} route show table all root {overlay.network} shows what there is"


def _missing(item: Diversion, route: Entry, overlay: Overlay, names: Names) -> str | None:
    """Return which route is missing, so that a wider one is taken, which is right as it is; ``None``: none is."""
    pods, n_bits = overlay.pods, route.destination.prefixlen
    if pods is not None and lies_in(item.trial.subnet, pods.subnet):
        bridge = names[pods.bridge]
        text = f"the route to {pods.subnet} that {bridge} has while it is up is missing: ip link set {bridge} up"
        return text if n_bits < pods.subnet.prefixlen else None
    ours = _our_route(item, overlay)
    text = f"the overlay's own route to {ours} is missing: `ip -ts monitor route` shows what takes it away"
    return text if n_bits < ours.prefixlen else None


def _ip(overlay: Overlay) -> str:
    return family_of(overlay.network).ip


def _our_route(item: Diversion, overlay: Overlay) -> Prefix:
    """Return where the route leads to that the packet has to take: all of the overlay, or with gateways each peer's."""
    trial = item.trial
    if trial.way is None or trial.way.gateway is None:
        return overlay.network
    covering = [subnet for subnet in overlay.ways.gateways if lies_in(trial.subnet, subnet)]
    return max(covering, key=lambda subnet: subnet.prefixlen, default=overlay.network)


def describe(answer: Answer, names: Names) -> str:
    """Return what the kernel answers in `ip route`'s words."""
    if isinstance(answer, Entry):
        return answer.describe(names)
    return _REFUSAL_NAMES.get(answer, f"refused (errno {answer})")
