"""Asking a running agent over its control socket: what the commands ``status``, ``peers`` and ``route get`` stand on.

Synchronous and light: these commands are typed by people who wait for them.
"""

from __future__ import annotations

import http.client
import json
import socket
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Any, cast

from flannel_udp.admin.shapes import PeerRow, Route, Status
from flannel_udp.errors import FlannelError, UsageError

TIMEOUT_S = 5.0
_LONGEST_ANSWER = 64 * 1024 * 1024
"""Bytes; some 400,000 peers. Whatever is longer does not come from an agent."""


def fetch_status(path: Path, timeout_s: float = TIMEOUT_S) -> Status:
    """Return the agent's status. Raises `FlannelError` when it does not run, may not be asked or answers nonsense."""
    return cast(Status, _expect(dict, _get(path, "/v1/status", timeout_s), path))


def fetch_peers(path: Path, timeout_s: float = TIMEOUT_S) -> list[PeerRow]:
    """Return one row a peer. Raises as `fetch_status` does."""
    return cast(list[PeerRow], _expect(list, _get(path, "/v1/peers", timeout_s), path))


def fetch_route(path: Path, address: str, timeout_s: float = TIMEOUT_S) -> Route:
    """Return where a packet for `address` would go. Raises `UsageError` if it is none, else as `fetch_status` does."""
    try:
        parsed = IPv4Address(address)
    except AddressValueError as error:
        raise UsageError(f"{address!r} is not an IPv4 address") from error
    return cast(Route, _expect(dict, _get(path, f"/v1/route?address={parsed}", timeout_s), path))


class _UnixConnection(http.client.HTTPConnection):
    """HTTP to a unix socket; `host` only fills the Host header."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _get(path: Path, target: str, timeout_s: float) -> Any:
    connection = _UnixConnection(path, timeout_s)
    try:
        connection.request("GET", target)
        response = connection.getresponse()
        answer = json.loads(response.read(_LONGEST_ANSWER))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise FlannelError(
            f"flannel-udp is not running: nothing answers on {path} (start it, or name its --control-socket)"
        ) from error
    except PermissionError as error:
        raise FlannelError(f"permission denied on {path}: ask as the user that runs flannel-udp (root)") from error
    except TimeoutError as error:
        raise FlannelError(f"the agent on {path} did not answer within {timeout_s:g} s") from error
    # A connection that breaks off is both an OSError and an HTTPException.
    except (http.client.HTTPException, ValueError, RecursionError) as error:
        raise _nonsense(path) from error
    except OSError as error:
        raise FlannelError(f"cannot ask the agent on {path}: {error.strerror or error}") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        message = answer.get("error") if isinstance(answer, dict) else None
        raise FlannelError(message) if isinstance(message, str) else _nonsense(path)
    return answer


def _expect(kind: type[dict[str, Any]] | type[list[Any]], answer: Any, path: Path) -> Any:
    if not isinstance(answer, kind):
        raise _nonsense(path)
    return answer


def _nonsense(path: Path) -> FlannelError:
    return FlannelError(f"what answers on {path} is not a flannel-udp agent (or not of this version)")
