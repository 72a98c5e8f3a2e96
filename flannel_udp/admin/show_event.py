"""An event of ``monitor`` as a line for people, in the manner of `ip -timestamp monitor`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from flannel_udp.admin.shapes import Event
from flannel_udp.admin.show import duration
from flannel_udp.model import KERNEL_DROPS


def event_line(event: Event) -> str:
    """Return one line: when, what, and of what; of an event that only a newer agent knows what it says."""
    moment = datetime.fromtimestamp(event["time"]).astimezone()
    tell = _TELL.get(event["event"])
    facts = tell(event) if tell is not None else _facts(event)
    return f"{moment.isoformat(timespec='milliseconds')} {event['event']} {facts}"


def _agent(event: Event) -> str:
    subnet = "" if event.get("subnet") is None else f", subnet {event.get('subnet')}"
    return f"flannel-udp {event.get('version')}, pid {event.get('pid')}: {_state(event)}{subnet}"


def _state(event: Event) -> str:
    return f"{event.get('state')} ({'ready' if event.get('ready') else 'not ready'})"


def _lease(event: Event) -> str:
    left_s = event.get("expires_in_s")
    return f"{event.get('what')} {event.get('key')}" + ("" if left_s is None else f", expires in {duration(left_s)}")


def _drops(event: Event) -> str:
    reason, text = event.get("reason", ""), event.get("text")
    if event.get("direction") == "kernel":
        text = KERNEL_DROPS.get(reason)
    return f"{event.get('count', 0):,} {event.get('direction')} {reason}" + ("" if text is None else f": {text}")


def _facts(event: Event) -> str:
    return ", ".join(f"{name} {value}" for name, value in event.items() if name not in ("time", "event"))


_TELL: Mapping[str, Callable[[Event], str]] = {
    "agent": _agent,
    "state": _state,
    "problem": lambda event: f"{event.get('what')}: {event.get('text')}",
    "error": lambda event: f"{event.get('part')}: {event.get('text')}",
    "works": lambda event: f"{event.get('part')}",
    "lease": _lease,
    "peer": lambda event: f"{event.get('what')} {event.get('subnet')} via {event.get('public_ip')}",
    "peers": lambda event: f"{event.get('what')}: {event.get('count', 0):,}",
    "repair": lambda event: f"{event.get('what')}, {event.get('count', 0):,} times",
    "drops": _drops,
    "lost": lambda event: f"{event.get('count', 0):,} events: they were read too slowly",
}
