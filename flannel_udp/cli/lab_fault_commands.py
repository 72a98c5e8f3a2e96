"""`lab cut`, `lab kill` and the like, and `lab heal`: what they take; what they do is in `lab.fault_actions`."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load the lab)

from __future__ import annotations

from collections.abc import Mapping

from flannel_udp.cli.arguments import Values
from flannel_udp.cli.command import Argument, Command
from flannel_udp.cli.flags import JSON_FLAG
from flannel_udp.cli.lab_commands import LAB_NAME_FLAG
from flannel_udp.cli.parsers import choice, whole
from flannel_udp.errors import UsageError

_ACTIONS = ("stop", "start", "compact")
_FLAGS = {"lab": (LAB_NAME_FLAG,), "output": (JSON_FLAG,)}
_LINK = "h1 for that of a host, h1/p1 for that of a pod"
_HOST = Argument("HOST", "h1, h2, …")


def _cut(given: Values) -> int:
    from flannel_udp.lab import fault_actions

    return fault_actions.cut(given)


def _mtu(given: Values) -> int:
    try:
        n_bytes = whole(0)(given["BYTES"])
    except ValueError as error:
        raise UsageError(f"lab mtu: {error}") from None
    from flannel_udp.lab import fault_actions

    return fault_actions.narrow({**given, "BYTES": n_bytes})


def _kill(given: Values) -> int:
    return _on_host(given, "kill")


def _start(given: Values) -> int:
    return _on_host(given, "start")


def _restart(given: Values) -> int:
    return _on_host(given, "restart")


def _takeover(given: Values) -> int:
    return _on_host(given, "takeover")


def _on_host(given: Values, what: str) -> int:
    from flannel_udp.lab import fault_actions

    return fault_actions.on_host(given, what)


def _etcd(given: Values) -> int:
    try:
        choice(*_ACTIONS)(given["ACTION"])
    except ValueError as error:
        raise UsageError(f"lab etcd: {error}") from None
    from flannel_udp.lab import fault_actions

    return fault_actions.on_etcd(given)


def _poison(given: Values) -> int:
    from flannel_udp.lab import fault_actions

    return fault_actions.poison_key(given)


def _spoof(given: Values) -> int:
    from flannel_udp.lab import fault_actions

    return fault_actions.spoof_packets(given)


def _heal(given: Values) -> int:
    from flannel_udp.lab import fault_actions

    return fault_actions.heal(given)


LAB_FAULT_COMMANDS: Mapping[str, Command] = {
    "lab cut": Command(
        "cut a link: the node at its end has no carrier any more",
        "Its addresses and routes stay.\n\nexample: flannel-udp lab cut h2",
        _cut,
        _FLAGS,
        (Argument("LINK", _LINK),),
    ),
    "lab mtu": Command(
        "let a link carry so many bytes only, or more",
        "At both ends; what is larger and comes from the underlay's bridge is lost without a word, as in a switch,\n"
        "parts of super-packets too.\n\n"
        "example: flannel-udp lab mtu h2 1400",
        _mtu,
        _FLAGS,
        (Argument("LINK", _LINK), Argument("BYTES", "of an IP packet")),
    ),
    "lab kill": Command(
        "end a host's agent as a crash does",
        "example: flannel-udp lab kill h2",
        _kill,
        _FLAGS,
        (_HOST,),
    ),
    "lab start": Command(
        "start a host's agent, and wait until it is ready",
        "example: flannel-udp lab start h2",
        _start,
        _FLAGS,
        (_HOST,),
    ),
    "lab restart": Command(
        "stop a host's agent as a service manager does, and start it again",
        "example: flannel-udp lab restart h2",
        _restart,
        _FLAGS,
        (_HOST,),
    ),
    "lab takeover": Command(
        "let another agent take over from a host's, without losing a packet",
        "example: flannel-udp lab takeover h2",
        _takeover,
        _FLAGS,
        (_HOST,),
    ),
    "lab etcd": Command(
        "stop or start the lab's etcd, or let it forget its history",
        "example: flannel-udp lab etcd stop",
        _etcd,
        _FLAGS,
        (Argument("ACTION", "|".join(_ACTIONS), words=_ACTIONS),),
    ),
    "lab poison": Command(
        "make nonsense of a key in the registry, as somebody's mistake would",
        "KEY is `config`, a host, for its lease, or a subnet, which may be nobody's.\n\n"
        "example: flannel-udp lab poison h2\n"
        "         flannel-udp lab poison 10.244.200.0/24",
        _poison,
        _FLAGS,
        (Argument("KEY", "config, h2, 10.244.200.0/24"),),
    ),
    "lab spoof": Command(
        "send what nobody may send, and tell what became of it",
        "A stranger and a peer each send h1 a ping inside a datagram, as if from somebody else's pod. Nothing is left\n"
        "that had to be healed.\n\n"
        "example: flannel-udp lab spoof",
        _spoof,
        _FLAGS,
    ),
    "lab heal": Command(
        "undo all of these, or what was done to one link",
        "Links, etcd, keys and agents are again as the lab was built; pods follow a host that has another subnet.\n\n"
        "example: flannel-udp lab heal",
        _heal,
        _FLAGS,
        (Argument("LINK", f"{_LINK}; without one: all", "?"),),
    ),
}
