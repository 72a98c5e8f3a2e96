"""`capture`: packets as this host's data path sees them, as lines or as a pcapng file."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load what asks an agent)

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from flannel_udp.cli.arguments import Values, to_options
from flannel_udp.cli.command import Command, warn
from flannel_udp.cli.flags import CONTROL_SOCKET_FLAG, JSON_FLAG, Flag
from flannel_udp.cli.parsers import parse_bool, parse_listen_ip, parse_network, parse_wait, whole
from flannel_udp.errors import FlannelError, UsageError, did_you_mean

if TYPE_CHECKING:
    from flannel_udp.admin.captured import Captured, Counts, Head
    from flannel_udp.admin.client import CaptureStream
    from flannel_udp.model import CaptureWish

_PROTOCOLS = {"icmp": 1, "ipip": 4, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}
_PLACES = ("out-inner", "out-outer", "in-outer", "in-inner")
_AT = {"out": _PLACES[:2], "in": _PLACES[2:], "inner": _PLACES[::3], "outer": _PLACES[1:3]}
_SNAP_MIN_BYTES, _SNAP_MAX_BYTES = 64, 262_144


def parse_protocol(text: str) -> int:
    """Read an IP protocol: one of the usual names, or a number."""
    if text.lower() in _PROTOCOLS:
        return _PROTOCOLS[text.lower()]
    if re.fullmatch("[0-9]{1,3}", text) and int(text) < 256:
        return int(text)
    hint = did_you_mean(text.lower(), _PROTOCOLS)
    raise ValueError(f"{text!r} is not {', '.join(_PROTOCOLS)} or a number from 0 to 255{hint}")


def parse_reason(text: str) -> str:
    """Check the name of a reason to drop a packet, and return it as it is."""
    from flannel_udp.dataplane.drops import DROP_REASONS

    if text not in DROP_REASONS:
        hint = did_you_mean(text, DROP_REASONS)
        raise ValueError(f"{text!r} is no reason to drop a packet{hint or ': they are in docs/metrics.md'}")
    return text


def parse_at(text: str) -> tuple[str, ...]:
    """Return the places that a word stands for."""
    if text in _AT:
        return _AT[text]
    if text in _PLACES:
        return (text,)
    words = (*_AT, *_PLACES)
    raise ValueError(f"{text!r} is not one of {', '.join(words)}{did_you_mean(text, words)}")


def parse_sample(text: str) -> int:
    """Return N of ``1/N``."""
    match = re.fullmatch("1/([1-9][0-9]{0,8})", text)
    if match is None:
        raise ValueError(f"{text!r} is no share such as 1/100")
    return int(match[1])


def parse_seconds(text: str) -> float:
    """Return so many seconds: ``10``, ``90s``, ``5m``, ``1h``."""
    seconds = parse_wait(text)
    if not seconds or not text[0].isdigit():
        raise ValueError(f"{text!r} is no time such as 30s, 5m or 1h")
    return seconds


def _flag(name: str, help_: str, metavar: str, parse: Callable[[str], object], default: str = "") -> Flag:
    return Flag(name, help_, metavar, parse, default=default, in_environment=False)


_WHICH = (
    _flag("peer", "only what comes from or goes to the host with this public IP", "IP", parse_listen_ip),
    _flag("subnet", "only packets whose inner source or destination is in this network", "CIDR", parse_network),
    _flag("proto", f"only packets of this inner protocol: {', '.join(_PROTOCOLS)} or a number", "NAME", parse_protocol),
    Flag("dropped", "only what was dropped", "BOOL", parse_bool, switch=True, in_environment=False),
    Flag(
        "reason",
        "only what was dropped for this reason, a name of docs/metrics.md",
        "NAME",
        parse_reason,
        repeatable=True,
        in_environment=False,
    ),
    Flag(
        "at",
        f"only what is seen there: {', '.join((*_AT, *_PLACES))}",
        "PLACE",
        parse_at,
        repeatable=True,
        in_environment=False,
        words=(*_AT, *_PLACES),
    ),
    _flag("sample", "one in N of these packets, such as 1/100", "1/N", parse_sample, "1/1"),
)
_HOW = (
    _flag("w", "write pcapng to this file, which is replaced; - for standard output", "FILE", str),
    _flag(
        "snaplen",
        "bytes that are kept of each packet",
        "BYTES",
        whole(_SNAP_MIN_BYTES, _SNAP_MAX_BYTES),
        str(_SNAP_MAX_BYTES),
    ),
    _flag("count", "end after so many packets", "N", whole(1)),
    _flag("for", "end after this time: 10, 90s, 5m", "SECONDS", parse_seconds),
)


class _Sink(Protocol):
    """Where packets go."""

    def write(self, packet: Captured) -> None: ...

    def flush(self) -> None: ...

    def finish(self, counts: Counts) -> None: ...


class _Lines:
    """A line each, on standard output."""

    def __init__(self, line_of: Callable[[Captured], str]) -> None:
        self._line_of = line_of

    def write(self, packet: Captured) -> None:
        sys.stdout.write(f"{self._line_of(packet)}\n")

    def flush(self) -> None:
        sys.stdout.flush()

    def finish(self, counts: Counts) -> None:  # noqa: ARG002 - the protocol's
        self.flush()


def _capture(given: Values) -> int:
    from flannel_udp.admin import client
    from flannel_udp.admin.show_capture import summary

    if given.get("json") and "w" in given:
        raise UsageError("--json and -w: a file for Wireshark holds no JSON: give one of them")
    if given.get("w") == "-" and sys.stdout.isatty():
        raise UsageError("-w -: standard output is a terminal: give it to a reader (| tshark -r -), or name a file")
    wish, is_wanted, path = _wish(given), _filter(given), to_options(given).control_socket
    with client.open_capture(path, wish) as stream, ExitStack() as opened:
        opened.enter_context(_stopped_by_signals(stream))
        with _file_named(given):
            sink = _open_sink(given, stream.head, wish, opened)
            n_shown, over = _copy(stream, sink, is_wanted, given)
            sink.finish(stream.counts)
        sys.stderr.write(f"flannel-udp: {summary(n_shown, stream.counts)}\n")
    if not over and not stream.stopped:
        raise FlannelError(f"the agent on {path} has ended, and so has the capture")
    return 0


def _copy(stream: CaptureStream, sink: _Sink, is_wanted: Callable[[Captured], bool], given: Values) -> tuple[int, bool]:
    """Write what is wanted until that is enough; return how many packets that were, and whether it was."""
    n_shown, most = 0, given.get("count")
    end_s = time.monotonic() + given["for"] if "for" in given else None
    sink.flush()  # who reads a file or a pipe knows at once that it has begun
    sys.stderr.write("flannel-udp: capturing, until Ctrl-C\n")
    sys.stderr.flush()
    for packets in stream.parts():
        for packet in filter(is_wanted, packets):
            sink.write(packet)
            n_shown += 1
            if n_shown == most:
                return n_shown, True
        sink.flush()
        if end_s is not None and time.monotonic() >= end_s:
            return n_shown, True
    return n_shown, False


def _wish(given: Values) -> CaptureWish:
    from flannel_udp.model import CaptureWish

    default = CaptureWish()
    places = {place.replace("-", " ") for chosen in given.get("at", ()) for place in chosen}
    return CaptureWish(
        places=tuple(place for place in default.places if place in places) or default.places,
        dropped=bool(given.get("dropped")),
        reasons=given.get("reason", ()),
        every=given.get("sample", default.every),
        snap_bytes=given.get("snaplen", default.snap_bytes),
    )


def _filter(given: Values) -> Callable[[Captured], bool]:
    """Return what tells which packets are wanted of those that the agent sends."""
    peer = ip_address(given["peer"]) if "peer" in given else None
    subnet, protocol = given.get("subnet"), given.get("proto")

    def is_wanted(packet: Captured) -> bool:
        if peer is not None and packet.peer != peer:
            return False
        if subnet is None and protocol is None:
            return True
        inner = packet.inner()
        return (
            inner is not None
            and (subnet is None or inner.source in subnet or inner.destination in subnet)
            and (protocol is None or inner.protocol == protocol)
        )

    return is_wanted


def _open_sink(given: Values, head: Head, wish: CaptureWish, opened: ExitStack) -> _Sink:
    """Open what packets are written to; only now, so that no file is replaced where nothing can be captured."""
    from flannel_udp.admin.pcapng import PcapngWriter
    from flannel_udp.admin.show_capture import packet_document, packet_line

    if given.get("json"):
        return _Lines(lambda packet: json.dumps(packet_document(packet, head)))
    if "w" not in given:
        return _Lines(lambda packet: packet_line(packet, head))

    fd = sys.stdout.fileno()
    if given["w"] != "-":
        fd = os.open(given["w"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        opened.callback(os.close, fd)
    if wish.every > 1:
        warn(f"one packet in {wish.every} is captured")
    return PcapngWriter(fd, head, wish.snap_bytes, _how_it_was_made(given, wish))


def _how_it_was_made(given: Values, wish: CaptureWish) -> str:
    """Return the command line, as far as it says what a file does not hold."""
    words = [f"--{name}={given[name]}" for name in ("peer", "subnet", "proto") if name in given]
    words += ["--dropped"] if wish.dropped else []
    words += [f"--reason={reason}" for reason in wish.reasons]
    words += [f"--at={place.replace(' ', '-')}" for place in wish.places if "at" in given]
    words += [f"--sample=1/{wish.every}"] if wish.every > 1 else []
    return " ".join(["flannel-udp capture", *words])


@contextmanager
def _file_named(given: Values) -> Iterator[None]:
    """Raise as a `FlannelError` why the file cannot be written; of a reader that has gone `main` knows what to do."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if "w" not in given:
            raise
        place = "standard output" if given["w"] == "-" else given["w"]
        raise FlannelError(f"cannot write {place}: {error.strerror}") from error


@contextmanager
def _stopped_by_signals(stream: CaptureStream) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the packets, and what was captured be written; a second one ends that, too."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if stream.stopped:
            raise KeyboardInterrupt
        stream.stop()

    former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


CAPTURE_COMMANDS: Mapping[str, Command] = {
    "capture": Command(
        "show packets as this host's data path sees them, inner and outer, and what became of each",
        "A line a packet, or with -w a pcapng file for Wireshark, whose comments say what became of it: forwarded,\n"
        "or dropped and why; the peer; of a super-packet how long its segments are. Each packet is seen twice: on its\n"
        "way out (out-inner, then out-outer) or in (in-outer, in-inner). It ends with Ctrl-C, --count or --for, and\n"
        "says how many packets were lost: the data path never waits for a reader. One capture at a time. Where the\n"
        "kernel carries packets (host-gw, the kernel's vxlan and ipip) it names the tcpdump that shows them.\n"
        "With --json a document a line.\n\n"
        "example: flannel-udp capture --dropped\n"
        "         flannel-udp capture -w - --peer=192.0.2.2 | tshark -r - -T fields -e frame.interface_name",
        _capture,
        {"which packets": _WHICH, "how": _HOW, "agent": (CONTROL_SOCKET_FLAG, JSON_FLAG)},
    ),
}
