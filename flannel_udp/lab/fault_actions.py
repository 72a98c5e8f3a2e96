"""What the commands do that break something in a lab, and `lab heal`: a line for each thing that was done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict

from flannel_udp.errors import FlannelError
from flannel_udp.lab import faults
from flannel_udp.lab.actions import Given, attached, print_json, tell
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.links import heal_links, link_of
from flannel_udp.lab.node import Host
from flannel_udp.lab.poison import heal_poison, poison
from flannel_udp.lab.registry import Etcd
from flannel_udp.lab.spoof import spoof

NOTHING = "nothing to heal"

_ON_HOST: Mapping[str, Callable[[Host], str]] = {
    "kill": faults.kill,
    "start": faults.start,
    "restart": faults.restart,
    "takeover": faults.take_over,
}
_ON_ETCD: Mapping[str, Callable[[Etcd], str]] = {
    "stop": faults.stop_etcd,
    "start": faults.start_etcd,
    "compact": faults.compact_etcd,
}


def cut(given: Given) -> int:
    """Cut a link."""
    link = link_of(attached(given), given["LINK"])
    link.cut()
    return tell(given, [f"{link.name}: the link is cut"])


def narrow(given: Given) -> int:
    """Let a link carry so many bytes."""
    link = link_of(attached(given), given["LINK"])
    link.carry(given["BYTES"])
    return tell(given, [f"{link.name}: the link carries {given['BYTES']} bytes, otherwise {link.mtu}"])


def on_host(given: Given, what: str) -> int:
    """Do something to a host's agent."""
    return tell(given, [_ON_HOST[what](faults.host_with_agent(attached(given), given["HOST"]))])


def on_etcd(given: Given) -> int:
    """Do something to the lab's etcd."""
    return tell(given, [_ON_ETCD[given["ACTION"]](faults.etcd_of(attached(given)))])


def poison_key(given: Given) -> int:
    """Make nonsense of a key."""
    return tell(given, [poison(attached(given), given["KEY"])])


def spoof_packets(given: Given) -> int:
    """Send what nobody may send."""
    attempts = spoof(attached(given))
    if given.get("json"):
        print_json([asdict(attempt) for attempt in attempts])
        return 0
    return tell(given, [attempt.line for attempt in attempts])


def heal(given: Given) -> int:
    """Undo all of these, or what was done to one link."""
    lab = attached(given)
    if given["LINK"] is not None:
        return tell(given, list(heal_links(lab, given["LINK"])), NOTHING)
    steps: tuple[Callable[[Lab], Iterable[str]], ...] = (
        faults.heal_etcd,
        heal_links,
        heal_poison,
        faults.heal_agents,
    )
    done: list[str] = []
    try:
        for step in steps:
            for line in step(lab):
                done.append(line)  # one by one: those before a failure are told, too
    except FlannelError:
        if done:
            tell(given, done)
        raise
    return tell(given, done, NOTHING)
