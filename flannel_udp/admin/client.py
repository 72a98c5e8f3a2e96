"""Asking a running agent over its control socket: for ``status``, ``peers``, ``route``, ``monitor`` and others.

Synchronous and light: these commands are typed by people who wait for them.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from flannel_udp.admin.capture_wish import write_wish
from flannel_udp.admin.captured import Captured, Counts, Head, read_records
from flannel_udp.admin.shapes import CloudRoutes, Event, PeerRow, Route, RouteRow, Status
from flannel_udp.admin.trace_request import TraceRequest
from flannel_udp.admin.trace_shapes import Trace, TraceArrival, TraceDatagram
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.model import Address, CaptureWish
from flannel_udp.netconf.addresses import parse_address

TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 30.0
"""Without any news: the agent asks for a minute at most, and tells what it has as it comes."""
_PART_BYTES = 64 * 1024
_LONGEST_LINE = 64 * 1024
_LONGEST_ANSWER = 64 * 1024 * 1024
"""Bytes; some 400,000 peers. Whatever is longer does not come from an agent."""


def fetch_status(path: Path, timeout_s: float = TIMEOUT_S) -> Status:
    """Return the agent's status. Raises `FlannelError` when it does not run, may not be asked or answers nonsense."""
    return cast(Status, _expect(dict, _get(path, "/v1/status", timeout_s), path))


def fetch_peers(path: Path, timeout_s: float = TIMEOUT_S) -> list[PeerRow]:
    """Return one row a peer. Raises as `fetch_status` does."""
    return cast(list[PeerRow], _expect(list, _get(path, "/v1/peers", timeout_s), path))


def fetch_probed_peers(
    path: Path,
    progress: Callable[[int], object],
    timeout_s: float = PROBE_TIMEOUT_S,
    within_s: int | None = None,
) -> list[PeerRow]:
    """Return one row a peer, after each was asked by an echo. Raises as `fetch_status` does.

    `progress(n)` is called now and then with the number of rows that have come. Who has not had their turn after
    `within_s` seconds is not asked; by default the agent takes a minute.
    """
    target = "/v1/peers?probe" if within_s is None else f"/v1/peers?probe={within_s}"
    return cast(list[PeerRow], _expect(list, _get(path, target, timeout_s, progress), path))


def fetch_busiest_peers(path: Path, n: int, by: str, timeout_s: float = TIMEOUT_S) -> list[PeerRow]:
    """Return so many rows if there are, those with the highest rates first; `by` is one of `model.RATE_KEYS`.

    An agent of an older version gives all of its peers. Raises as `fetch_status` does.
    """
    return cast(list[PeerRow], _expect(list, _get(path, f"/v1/peers?busiest={n}&by={by}", timeout_s), path))


def read_addresses(texts: Sequence[str]) -> list[Address]:
    """Return the addresses that somebody typed. Raises `UsageError` for what is none."""
    addresses = []
    for text in texts:
        try:
            addresses.append(parse_address(text))
        except ValueError as error:
            raise UsageError(f"{text!r} is not an IP address") from error
    return addresses


def fetch_route(path: Path, address: Address, timeout_s: float = TIMEOUT_S) -> Route:
    """Return where a packet for `address` would go. Raises as `fetch_status` does."""
    return cast(Route, _expect(dict, _get(path, f"/v1/route?address={address}", timeout_s), path))


def fetch_routes(path: Path, timeout_s: float = TIMEOUT_S) -> list[RouteRow]:
    """Return one row a subnet that packets have a route to. Raises as `fetch_status` does."""
    return cast(list[RouteRow], _expect(list, _get(path, "/v1/routes", timeout_s), path))


def fetch_cloud_routes(path: Path, timeout_s: float = TIMEOUT_S) -> CloudRoutes:
    """Return what is in the provider's route tables. Raises as `fetch_status` does."""
    return cast(CloudRoutes, _expect(dict, _get(path, "/v1/cloud/routes", timeout_s), path))


def fetch_trace(path: Path, asked: TraceRequest, timeout_s: float = TIMEOUT_S) -> Trace:
    """Return what would become of a packet that this agent's host sends. Raises as `fetch_status` does."""
    return cast(Trace, _expect(dict, _get(path, "/v1/trace", timeout_s, body=asked.asked()), path))


def fetch_arrival(path: Path, sender: str, sent: TraceDatagram, timeout_s: float = TIMEOUT_S) -> TraceArrival:
    """Return what this agent's host would do with a packet from that underlay address. Likewise."""
    body = {"sender": sender, "tos": sent["tos"], "payload": sent["payload"], "inner": sent["inner"]}
    return cast(TraceArrival, _expect(dict, _get(path, "/v1/arrival", timeout_s, body=body), path))


def fetch_metrics(path: Path, timeout_s: float = TIMEOUT_S) -> str:
    """Return the agent's figures in Prometheus' text format. Raises as `fetch_status` does."""
    with _asked(path, "/metrics", timeout_s) as (response, _), _explained(path, timeout_s):
        text = _read(response, lambda _n: None).decode()
    if "\nflannel_udp_build_info" not in text:
        raise _nonsense(path)
    return text


class AgentAway(FlannelError):
    """There is no agent, or the one that was asked has just ended: soon there may be one."""


class AgentSlow(FlannelError):
    """What answers there has not done so in time: soon it may."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP to a unix socket; `host` only fills the Host header."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _get(
    path: Path,
    target: str,
    timeout_s: float,
    progress: Callable[[int], object] = lambda _n: None,
    body: Mapping[str, object] | None = None,
) -> Any:
    with _asked(path, target, timeout_s, body) as (response, _), _explained(path, timeout_s):
        return json.loads(_read(response, progress))


def follow_events(path: Path) -> Iterator[Event]:
    """Yield what happens from now on until the agent ends. Raises as `fetch_status` does, `AgentAway` for no agent."""
    with _asked(path, "/v1/monitor", TIMEOUT_S) as (response, connected):
        connected.settimeout(None)  # nothing may happen for days
        while True:
            try:
                line = response.readline(_LONGEST_LINE)
            except (http.client.HTTPException, OSError):  # how the answer of an agent that was killed ends
                return
            if not line.endswith(b"\n"):
                return
            with _explained(path, TIMEOUT_S):
                event = json.loads(line)
            yield cast(Event, _expect(dict, event, path))


class CaptureStream:
    """Packets as they come from an agent, from `open_capture` on."""

    def __init__(self, response: http.client.HTTPResponse, connected: socket.socket, path: Path) -> None:
        self._response, self._connected, self._path = response, connected, path
        self.head = cast(Head, self._read_line())
        self.counts = Counts(bytes=0, taken=[0] * len(self.head["places"]), lost=[0] * len(self.head["places"]))
        """Those of the last part."""
        self.stopped = False

    def stop(self) -> None:
        """Let the parts end: from another thread, or a signal's handler."""
        self.stopped = True
        with suppress(OSError):  # it has ended
            self._connected.shutdown(socket.SHUT_RDWR)

    def parts(self) -> Iterator[list[Captured]]:
        """Yield the packets of each part in the order of their times, until the agent ends or `stop` was called.

        Raises `FlannelError` where the agent says nothing any more, or nonsense.
        """
        while not self.stopped:
            try:
                counts = cast(Counts, self._read_line())
                records = self._response.read(counts["bytes"]) if counts["bytes"] else b""
                if len(records) < counts["bytes"]:
                    return
                packets = list(read_records(self.head, records))
            except (http.client.HTTPException, ConnectionError, _Ended):
                return  # how the answer of an agent that was killed ends
            except TimeoutError as error:
                raise FlannelError(f"the agent on {self._path} says nothing any more, {TIMEOUT_S:g} s long") from error
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise _nonsense(self._path) from error
            self.counts = counts
            yield sorted(packets, key=lambda packet: packet.time_ns)

    def _read_line(self) -> dict[str, Any]:
        line = self._response.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise _Ended
        return cast(dict[str, Any], _expect(dict, json.loads(line), self._path))


class _Ended(Exception):
    """The agent has ended."""


@contextmanager
def open_capture(path: Path, wish: CaptureWish) -> Iterator[CaptureStream]:
    """Have packets captured; the agent ends that with the block. Raises as `fetch_status` does."""
    with _asked(path, f"/v1/capture?{write_wish(wish)}", TIMEOUT_S) as (response, connected):
        with _explained(path, TIMEOUT_S):
            try:
                stream = CaptureStream(response, connected, path)
            except (KeyError, _Ended) as error:
                raise _nonsense(path) from error
        yield stream


@contextmanager
def _asked(
    path: Path, target: str, timeout_s: float, body: Mapping[str, object] | None = None
) -> Iterator[tuple[http.client.HTTPResponse, socket.socket]]:
    """Ask, and give the answer, its body yet to be read, and the socket it comes by; with a `body` it is a POST."""
    connection = _UnixConnection(path, timeout_s)
    try:
        with _explained(path, timeout_s):
            connection.request(*(("GET", target) if body is None else ("POST", target, json.dumps(body))))
            connected = connection.sock
            response = connection.getresponse()
            refusal = None if response.status == http.client.OK else json.loads(_read(response, lambda _n: None))
        if response.status != http.client.OK:
            message = refusal.get("error") if isinstance(refusal, dict) else None
            if not isinstance(message, str):
                raise _nonsense(path)
            raise _too_old(path, target) if response.status == http.client.NOT_FOUND else FlannelError(message)
        yield response, connected
    finally:
        connection.close()


@contextmanager
def _explained(path: Path, timeout_s: float) -> Iterator[None]:
    """Raise what goes wrong with an agent's answer as a `FlannelError`."""
    try:
        yield
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise AgentAway(
            f"flannel-udp is not running: nothing answers on {path} (start it, or name its --control-socket)"
        ) from error
    except PermissionError as error:
        raise FlannelError(f"permission denied on {path}: ask as the user that runs flannel-udp (root)") from error
    except TimeoutError as error:
        raise AgentSlow(f"the agent on {path} did not answer within {timeout_s:g} s") from error
    except BlockingIOError as error:
        raise AgentSlow(f"the agent on {path} does not answer: its queue is full") from error
    except (ConnectionResetError, BrokenPipeError, http.client.IncompleteRead) as error:  # how one ends
        raise AgentAway(str(_nonsense(path))) from error
    except (http.client.HTTPException, ValueError, RecursionError) as error:
        raise _nonsense(path) from error
    except OSError as error:
        raise FlannelError(f"cannot ask the agent on {path}: {error.strerror or error}") from error


def _read(response: http.client.HTTPResponse, progress: Callable[[int], object]) -> bytes:
    """Return an answer's body, or the start of one that is too long to be an agent's.

    Raises `IncompleteRead` for one that ends before its length.
    """
    whole = response.length or 0  # none where it comes in chunks, of which the last one is known
    body = bytearray()
    n_rows = 0
    while len(body) < _LONGEST_ANSWER and (part := response.read1(_PART_BYTES)):
        body += part
        n_rows += part.count(b'"subnet"')  # but for one that was cut in two
        progress(n_rows)
    if len(body) < min(whole, _LONGEST_ANSWER):
        raise http.client.IncompleteRead(bytes(body), whole - len(body))
    return bytes(body)


def _expect(kind: type[dict[str, Any]] | type[list[Any]], answer: Any, path: Path) -> Any:
    if not isinstance(answer, kind):
        raise _nonsense(path)
    return answer


def _too_old(path: Path, target: str) -> FlannelError:
    return FlannelError(
        f"the agent on {path} is of an older version, which does not know {target.partition('?')[0]}: "
        "start the installed one in its place (flannel-udp --takeover)"
    )


def _nonsense(path: Path) -> FlannelError:
    return FlannelError(f"what answers on {path} is not a flannel-udp agent (or not of this version)")
