"""Whether this host's clock is that of the registry, and whether anything keeps it."""

from __future__ import annotations

import ctypes
import http.client
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

from flannel_udp.doctor.finding import Finding, fault, note, ok
from flannel_udp.errors import FlannelError
from flannel_udp.model import LEASE_TTL_S
from flannel_udp.options import Options
from flannel_udp.registry.file.clock import describe_span, folder_ahead_s
from flannel_udp.registry.urls import parse_endpoint, split_url

ANSWER_S = 2.0
"""How long one server may take, and all of them."""
_OFF_S = 60.0
_STA_UNSYNC = 0x40  # linux/timex.h
_TIMEX_BYTES, _TIMEX_STATUS = 256, 40  # more than struct timex has; offset of its `status` where a long has 8 bytes


class Ahead(NamedTuple):
    """How far ahead of ours a clock is, whose it is, and what goes wrong by it."""

    seconds: float
    whose: str
    lost: str


def ask_clock(options: Options) -> Finding:
    """Ask whether something keeps the clock, and how it compares with the registry's."""
    return judge_clock(synchronised=_is_synchronised(), ahead=_ask_registry(options))


def judge_clock(*, synchronised: bool | None, ahead: Ahead | None) -> Finding:
    """Judge; `ahead` is ``None`` where the registry tells no time, `synchronised` if nobody says."""
    if ahead is not None and abs(ahead.seconds) > _OFF_S:
        what = f"the clock of this host is {describe_span(-ahead.seconds)} from that of {ahead.whose}: {ahead.lost}"
        return fault("clock", what, "timedatectl set-ntp true")
    same = "" if ahead is None else f", and as that of {ahead.whose}"
    if synchronised is False:
        what = f"the kernel does not know it as synchronised by a time service{same}"
        return note("clock", what, "timedatectl set-ntp true")
    return ok("clock", ("synchronised" if synchronised else "nobody says that it is wrong") + same)


def _ask_registry(options: Options) -> Ahead | None:
    kind, _, path = options.registry.partition(":")
    if kind == "file" and path and not options.kube.subnet_mgr:
        ahead_s = folder_ahead_s(Path(path).parent)
        if ahead_s is None:
            return None
        lost = "no lease can be taken" if abs(ahead_s) > LEASE_TTL_S else "leases end at the wrong time"
        return Ahead(ahead_s, "the registry file's folder", lost)
    until_s = time.monotonic() + ANSWER_S
    for url in _urls(options):
        left_s = until_s - time.monotonic()
        ahead_s = _ask_server(url, options, left_s) if left_s > 0 else None
        if ahead_s is not None:
            return Ahead(ahead_s, url, "certificates and tokens that are valid may be refused, and others taken")
    return None


def _urls(options: Options) -> Iterator[str]:
    """Yield where the registry's servers are; none where the flags do not say."""
    if not options.kube.subnet_mgr:
        for url in options.etcd.urls:
            yield parse_endpoint(url).url
        return
    from flannel_udp.registry.kube.options import api_server  # noqa: PLC0415 - an extra, not installed everywhere

    try:
        server = api_server(options.kube)
    except FlannelError:  # a fault of the flags, which is named for itself
        return
    if server is not None:
        yield server


def _ask_server(url: str, options: Options, timeout_s: float) -> float | None:
    """Return how far ahead of ours a server's clock is, by the date of its answer; ``None`` where it gives none.

    Whoever it is and whatever it answers: an API server that refuses us tells the time, too, and so does etcd, which
    speaks HTTP/1.1 beside gRPC.
    """
    parts = split_url(url)
    connection: http.client.HTTPConnection
    try:
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(parts.netloc, timeout=timeout_s, context=_context(options))
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
        try:
            sent_s = time.time()
            connection.request("GET", "/version", headers={"Connection": "close"})
            date = connection.getresponse().headers.get("Date")
            came_s = time.time()
        finally:
            connection.close()
        if date is None:
            return None
        # A date tells whole seconds: half of one later is nearest.
        return parsedate_to_datetime(date).timestamp() + 0.5 - (sent_s + came_s) / 2
    except (OSError, http.client.HTTPException, ValueError):
        return None


def _context(options: Options) -> ssl.SSLContext:
    """Return how to speak TLS with a server whose certificate a wrong clock would refuse. Raises `OSError`."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is believed of it but the time
    if not options.kube.subnet_mgr and options.etcd.certfile is not None:
        # The empty password keeps OpenSSL from asking a terminal for one.
        context.load_cert_chain(options.etcd.certfile, options.etcd.keyfile, password="")
    return context


def _is_synchronised() -> bool | None:
    """Return what adjtimex(2) says, which timedatectl shows, too."""
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes 0: nothing is set
    if ctypes.sizeof(ctypes.c_long) != 8 or ctypes.CDLL(None).adjtimex(timex) < 0:
        return None
    return not int.from_bytes(timex.raw[_TIMEX_STATUS : _TIMEX_STATUS + 4], "little") & _STA_UNSYNC
