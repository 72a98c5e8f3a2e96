"""`trace` and `lab trace`: what would become of a packet, step by step; nothing is sent."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load what asks an agent)

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flannel_udp.cli.arguments import Values, to_options
from flannel_udp.cli.command import Argument, Command, show
from flannel_udp.cli.flags import CONTROL_SOCKET_FLAG, JSON_FLAG, Flag
from flannel_udp.cli.parsers import parse_bool, whole
from flannel_udp.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from flannel_udp.admin.trace_request import Said
    from flannel_udp.admin.trace_shapes import Trace

_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17}


def _parse_protocol(text: str) -> int:
    """Return the number of an IP protocol."""
    if text.lower() in _PROTOCOLS:
        return _PROTOCOLS[text.lower()]
    if text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 255:
        return int(text)
    names = ", ".join(_PROTOCOLS)
    raise ValueError(f"{text!r} is none of {names}, nor a number from 0 to 255{did_you_mean(text, _PROTOCOLS)}")


def _parse_byte(text: str) -> int:
    """Return a byte, also as 0xb8."""
    try:
        value = int(text, 0) if text.isascii() and len(text) <= 5 else -1
    except ValueError:
        value = -1
    if not 0 <= value <= 255:
        raise ValueError(f"{text!r} is not a byte: 0 to 255, or 0x00 to 0xff")
    return value


def _number(name: str, help_: str, low: int, high: int, default: str = "") -> Flag:
    return Flag(name, help_, "N", whole(low, high), default=default, in_environment=False)


PACKET_FLAGS = (
    Flag(
        "proto",
        "what it holds: icmp (an echo request), tcp (a SYN), udp, or an IP protocol's number",
        "NAME|N",
        _parse_protocol,
        default="icmp",
        in_environment=False,
        words=tuple(_PROTOCOLS),
    ),
    _number("size", "bytes of the whole IP packet", 20, 65_575, "a ping's: 84, IPv6 104; tcp: its headers'"),
    Flag("tos", "its TOS byte, or traffic class: DSCP and ECN", "BYTE", _parse_byte, default="0", in_environment=False),
    _number("ttl", "its TTL, or hop limit, as the sender sets it", 1, 255, "64"),
    Flag(
        "df",
        '"don\'t fragment" is set (IPv4)',
        "BOOL",
        parse_bool,
        default="for tcp, as Linux does",
        switch=True,
        in_environment=False,
    ),
    _number("sport", "source port, of tcp and udp", 1, 65_535, "40000"),
    _number("dport", "destination port, of tcp and udp", 1, 65_535, "tcp 80, udp 53"),
)


def said_of(given: Values) -> Said:
    """Return what the flags say of the packet."""
    from flannel_udp.admin.trace_request import Said

    return Said(
        protocol=given.get("proto"),
        size=given.get("size"),
        tos=given.get("tos"),
        ttl=given.get("ttl"),
        df=given.get("df"),
        source_port=given.get("sport"),
        destination_port=given.get("dport"),
    )


def show_and_judge(given: Values, trace: Trace) -> int:
    """Write the trace, and return the exit code."""
    from flannel_udp.admin.show_trace import show_trace

    show(given, trace, show_trace)
    return 0 if trace["verdict"] in ("sent", "delivered") else 1


def _trace(given: Values) -> int:
    from flannel_udp.admin import client
    from flannel_udp.admin.trace_request import make_request

    source, destination = client.read_addresses([given["SRC"], given["DST"]])
    asked = make_request(source, destination, said_of(given))
    return show_and_judge(given, client.fetch_trace(to_options(given).control_socket, asked))


def _lab_trace(given: Values) -> int:
    given = {**given, **_ports_of_lab(given)}
    from flannel_udp.cli.lab_trace import trace_in_lab

    return show_and_judge(given, trace_in_lab(given.get("name", "lab"), given["SRC"], given["DST"], said_of(given)))


def _ports_of_lab(given: Values) -> Values:
    """Return what --tcp=80 and --udp=53 stand for."""
    short = {name: given[name] for name in ("tcp", "udp") if name in given}
    if len(short) > 1 or (short and ("proto" in given or "dport" in given)):
        raise UsageError("--tcp and --udp each stand for --proto and --dport: give one of them")
    return {key: value for name, port in short.items() for key, value in (("proto", _PROTOCOLS[name]), ("dport", port))}


_STEPS = (
    "What becomes of a packet, step by step: each header byte by byte, the host's route, the checks of the data path\n"
    "in its order, the sizes, what goes out, and the verdict; a drop has the reason that the counters have. Kernel\n"
    "and data path are asked, with their own tables; nothing is sent."
)

TRACE_COMMANDS: Mapping[str, Command] = {
    "trace": Command(
        "tell what would become of a packet from SRC to DST, step by step, and send nothing",
        f"{_STEPS}\n"
        "exit codes: 0 it is sent or delivered, 1 it is dropped, or the host leads it elsewhere, 2 wrong usage.\n\n"
        "example: flannel-udp trace 10.1.15.7 10.1.16.5 --proto=tcp --dport=80 --size=1500",
        _trace,
        {"the packet": PACKET_FLAGS, "agent": (CONTROL_SOCKET_FLAG, JSON_FLAG)},
        (Argument("SRC", "whose packet: a pod's address, or one of this host"), Argument("DST", "whom it is for")),
    ),
}

_LAB_FLAG = Flag("name", "which lab", "NAME", default="lab", in_environment=False)
LAB_TRACE_COMMANDS: Mapping[str, Command] = {
    "lab trace": Command(
        "tell what would become of a packet from one pod or host to another, on both hosts",
        f"{_STEPS} The other host's agent is asked, too.\n\nexample: flannel-udp lab trace h1/p1 h2/p1 --tcp=80",
        _lab_trace,
        {
            "lab": (_LAB_FLAG,),
            "the packet": (
                _number("tcp", "a TCP SYN to this port", 1, 65_535),
                _number("udp", "a UDP datagram to this port", 1, 65_535),
                *PACKET_FLAGS,
            ),
            "output": (JSON_FLAG,),
        },
        (
            Argument("SRC", "h1/p1, h1 (its tunnel's address), or an address"),
            Argument("DST", "likewise"),
        ),
    ),
}
