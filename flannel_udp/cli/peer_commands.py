"""`peers` and `top`: the other hosts and what is exchanged with them, once or again and again."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load what asks an agent)

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from flannel_udp.cli.arguments import Values, to_options
from flannel_udp.cli.command import Argument, Command, progress
from flannel_udp.cli.flags import CONTROL_SOCKET_FLAG, JSON_FLAG, PROBE_FLAG, Flag, choice_flag
from flannel_udp.cli.parsers import parse_bool, parse_delay, parse_watch, whole
from flannel_udp.errors import FlannelError, UsageError

if TYPE_CHECKING:
    from flannel_udp.admin.shapes import PeerRow
    from flannel_udp.admin.top import Top, TopDocument

T = TypeVar("T")

_RATE_KEYS = ("bytes", "bytes-out", "bytes-in", "packets", "packets-out", "packets-in")
_SORT_KEYS = ("subnet", "host", "public-ip", "heard", *_RATE_KEYS, "total", "path-mtu", "drops", "error")

FIRST_S = 1.0
"""Nobody waits longer for the first rates."""

_ONELINE_FLAG = Flag(
    "oneline", "a line a peer for scripts, fields between tabs", "BOOL", parse_bool, switch=True, in_environment=False
)
_PEERS_FLAGS = (
    choice_flag("sort", "what comes first", _SORT_KEYS, default="subnet", in_environment=False),
    Flag(
        "watch",
        "again and again: --watch=5s; --watch alone is each 2s",
        "TIME",
        parse_watch,
        switch=True,
        in_environment=False,
    ),
    _ONELINE_FLAG,
    replace(_ONELINE_FLAG, name="o", help="the same as --oneline"),
    PROBE_FLAG,
)
_DELAY_FLAG = Flag("delay", "time between two looks", "TIME", parse_delay, default="1s", in_environment=False)
_TOP_FLAGS = (
    _DELAY_FLAG,
    replace(_DELAY_FLAG, name="d", help="the same as --delay", default=""),
    choice_flag("sort", "the rates that peers are sorted by", _RATE_KEYS, default="bytes", in_environment=False),
    Flag(
        "peers",
        "so many peers at most, where it is no terminal",
        "N",
        whole(1, 9999),
        default="20",
        in_environment=False,
    ),
    Flag("once", "two looks, and no more", "BOOL", parse_bool, switch=True, in_environment=False),
)


# peers


def _peers(given: Values) -> int:
    if given.get("json") and (given.get("oneline") or given.get("o")):
        raise UsageError("--json and --oneline are both given: give one")
    every_s = given.get("watch")
    if every_s is None:
        _show_peers(given, _fetch_peers(given))
    else:
        _watch_peers(given, every_s)
    return 0


def _fetch_peers(given: Values) -> list[PeerRow]:
    from flannel_udp.admin import client
    from flannel_udp.admin.show import show_json
    from flannel_udp.admin.show_peers import select_peers, sort_peers

    path = to_options(given).control_socket
    if given.get("probe"):
        n_peers = client.fetch_status(path)["peers"]
        told = progress(f"of {n_peers:,} peers asked") if given.get("watch") is None else _quiet
        peers = client.fetch_probed_peers(path, told)
    else:
        peers = client.fetch_peers(path)
    try:
        found = select_peers(peers, given["WHICH"])
    except FlannelError:
        if given.get("json") and given.get("watch") is None:
            show_json([], sys.stdout)
        raise
    return sort_peers(found, given.get("sort", "subnet"))


def _quiet(n: int) -> None:
    """Say nothing on a screen that something else is drawn on."""


def _show_peers(given: Values, peers: Sequence[PeerRow]) -> None:
    from flannel_udp.admin.show import show_json
    from flannel_udp.admin.show_peers import show_peers, show_peers_oneline

    if given.get("json"):
        show_json(peers, sys.stdout)
    elif given.get("oneline") or given.get("o"):
        show_peers_oneline(peers, sys.stdout)
    else:
        width = os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else 0
        show_peers(peers, sys.stdout, width or None)


def _watch_peers(given: Values, every_s: float) -> None:
    """Show them until interrupted. Raises `FlannelError` for what goes wrong at first; later it is said."""
    from flannel_udp.admin.screen import QUIT, Screen, can_draw
    from flannel_udp.admin.show_peers import peers_lines
    from flannel_udp.admin.table import wrapped

    programs = given.get("json") or given.get("oneline") or given.get("o")
    peers = _fetch_peers(given)
    if programs or not can_draw(sys.stdout):
        while True:
            if given.get("json"):
                sys.stdout.write(f"{json.dumps(peers)}\n")
            else:
                _show_peers(given, peers)
                sys.stdout.write("\n")
            sys.stdout.flush()
            peers = _again(lambda: _fetch_peers(given), every_s)
    said = ""
    with Screen(sys.stdout) as screen:
        while True:
            columns = screen.size.columns
            lines = [*(wrapped(said, columns) if said else []), *peers_lines(peers, columns)]
            screen.draw([line[:columns] for line in lines])
            key = screen.wait(every_s)
            if key == QUIT:
                return
            if key is None:
                try:
                    peers, said = _fetch_peers(given), ""
                except FlannelError as error:
                    said = f"{error}; trying again"


# top


def _top(given: Values) -> int:
    from flannel_udp.admin.screen import can_draw
    from flannel_udp.admin.show import show_json
    from flannel_udp.admin.top import Top

    delay_s: float = given.get("d", given.get("delay", 1.0))
    top = Top(to_options(given).control_socket, given.get("sort", "bytes"))
    n_peers: int = given.get("peers", 20)
    if not given.get("once") and not given.get("json") and can_draw(sys.stdout):
        _draw_top(top, delay_s)
        return 0
    top.look(n_peers)
    while True:
        document = _again(lambda: top.look(n_peers), delay_s, patient=not given.get("once"))
        if not given.get("json"):
            _write_frame(top, document)
        elif given.get("once"):
            show_json(document, sys.stdout)
        else:
            sys.stdout.write(f"{json.dumps(document)}\n")
        sys.stdout.flush()
        if given.get("once"):
            return 0


def _write_frame(top: Top, document: TopDocument) -> None:
    from flannel_udp.admin.show_top import PLAIN_WIDTH, frame
    from flannel_udp.admin.table import write_lines

    write_lines([*(line.text for line in frame(document, top, PLAIN_WIDTH, sparklines=False)), ""], sys.stdout)


def _draw_top(top: Top, delay_s: float) -> None:
    """Draw until somebody ends it. Raises `FlannelError` where there is no agent at first; later that is said."""
    from flannel_udp.admin.screen import QUIT, Screen
    from flannel_udp.admin.show_top import frame, styled

    document, trouble = top.look(os.get_terminal_size(sys.stdout.fileno()).lines or 24), ""
    due_s = time.monotonic() + min(delay_s, FIRST_S)
    with Screen(sys.stdout) as screen:
        while True:
            columns, n_lines = screen.size
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + delay_s
                try:
                    document, trouble = top.look(n_lines), ""
                except FlannelError as error:
                    trouble = f"{error}; trying again"
            encoding = sys.stdout.encoding
            lines = frame(document, top, columns, sparklines=True, encoding=encoding, trouble=trouble)
            screen.draw(styled(lines[:n_lines], columns))
            if screen.wait(max(due_s - time.monotonic(), 0.01)) == QUIT:
                return


# Both


def _again(look: Callable[[], T], pause_s: float, *, patient: bool = True) -> T:
    """Return what a look gives after a pause; who is `patient` is told what goes wrong, and goes on until it works."""
    said = ""
    while True:
        time.sleep(pause_s)
        try:
            return look()
        except FlannelError as error:
            if not patient:
                raise
            if str(error) != said:
                said = str(error)
                sys.stderr.write(f"flannel-udp: {said}; trying again\n")


_AGENT = (CONTROL_SOCKET_FLAG, JSON_FLAG)

PEER_COMMANDS: Mapping[str, Command] = {
    "peers": Command(
        "list the other hosts: subnet, address, when heard last, rates, what was exchanged with them, what is wrong",
        "With WHICH those that it means. heard: when a packet of it came last, or the answer to an echo; B/s and p/s:\n"
        "inner bytes and packets in the last second; B and p: since the start of the agent; drops: packets to it that\n"
        "the kernel would not send (other drops are no peer's: see status); - where nobody counts, as with backends\n"
        "whose packets the kernel carries. datapath: kernel, userspace (our packet path) or direct (past the tunnel).\n"
        "Where there is something to say, columns tell the host's name (Kubernetes: the node's), what the path there\n"
        "carries, the last ICMP error about packets to a peer, and what keeps packets from it. With --probe the agent\n"
        "asks each peer by an ICMP echo. --watch draws anew on a terminal, until q or Ctrl-C ends it; with --json\n"
        "it writes a document a line.\n"
        "--oneline: subnet, public IP, host, datapath, health, seconds since heard, packets out, bytes out, packets\n"
        "in, bytes in, the same four a second, path MTU, drops, error, problem; - for what is not known. What more\n"
        "there may be one day stands behind.\n"
        "exit codes: 0 shown, 1 no peer is WHICH, or there is no agent.\n\n"
        "example: flannel-udp peers 10.1.16.0/24 192.0.2.7 --sort=bytes --watch",
        _peers,
        {"which and how": _PEERS_FLAGS, "agent": _AGENT},
        (Argument("WHICH", "a subnet, an address in one (a pod's), a public IP, a host's name; none: all", "*"),),
    ),
    "top": Command(
        "show what passes between this host and its peers, each second: rates, drops, lease, registry, readiness",
        "The busiest peers come first. On a terminal it is drawn anew until q or Ctrl-C ends it; elsewhere it is\n"
        "written as lines, without --once until it is interrupted; with --json as documents (without --once one a\n"
        "line).\n"
        "Rates are those between two looks. It goes on where the agent ends and another one comes. It only reads what\n"
        "is counted anyway. - where nobody counts: what the kernel carries is counted by tunnel device, not by peer.\n"
        "exit codes: 0 ended by q, or --once was shown, 1 there is no agent, 130 interrupted.\n\n"
        "example: flannel-udp top --sort=packets -d 5s",
        _top,
        {"what and how often": _TOP_FLAGS, "agent": _AGENT},
    ),
}
