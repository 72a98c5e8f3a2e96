"""The lab's registry: a file, or a real etcd beside the underlay's bridge; with the network configuration in it."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import shutil
import signal
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from flannel_udp.errors import FlannelError
from flannel_udp.files.atomic import replace_file
from flannel_udp.lab import netns
from flannel_udp.lab.etcd_server import EtcdServer
from flannel_udp.lab.plan import ETCD_PORT, UNDERLAY_GATEWAY, Plan

logger = logging.getLogger(__name__)

_ETCD_PREFIX = "/coreos.com/network"
_ETCD_NEEDS_BYTES = 200_000_000  # it allocates two log segments of 64 MB beforehand
_HTTP_TIMEOUT_S, _STOP_TIMEOUT_S = 30.0, 30.0
"""For what takes a fraction of a second, on a machine that is busy with other things."""
_LOG_LINES = 5


def require_registry(plan: Plan) -> None:
    """Raise `FlannelError` with one clear line if this machine cannot run the plan's registry."""
    if plan.registry != "etcd":
        return
    if shutil.which("etcd") is None:
        raise FlannelError("etcd is not installed (on Debian and Ubuntu: apt-get install etcd-server); or use a file")
    free = shutil.disk_usage("/run").free
    if free < _ETCD_NEEDS_BYTES:
        needs = f"the lab's etcd needs {_ETCD_NEEDS_BYTES // 10**6} MB in /run and {free // 10**6} are free"
        raise FlannelError(f"{needs}: `mount -o remount,size=50% /run`, or use a file registry")


def start_registry(plan: Plan) -> EtcdServer | None:
    """Make the registry and write the configuration and the reservations into it, as the plan says.

    Returns the etcd, if the plan has one.
    """
    config = dict(plan.config)
    subnets = {key.replace("/", "-"): reservation(addresses) for key, addresses in plan.reservations.items()}
    if plan.registry == "file":
        text = json.dumps({"config": config, "subnets": subnets}, indent=2) + "\n"
        replace_file(plan.registry_file, text.encode())
        return None
    logger.info("starting etcd")
    server = _start_etcd(plan)
    values: dict[str, Mapping[str, object]] = {f"{_ETCD_PREFIX}/config": config}
    values |= {f"{_ETCD_PREFIX}/subnets/{key}": value for key, value in subnets.items()}
    netns.call_inside(plan.namespace("net"), lambda: _put(values))
    return server


def reservation(addresses: str) -> dict[str, str]:
    """Return the value of a reservation for a host with these addresses, one a family, with an & between them."""
    return {"PublicIPv6" if ":" in address else "PublicIP": address for address in addresses.split("&")}


def _start_etcd(plan: Plan) -> EtcdServer:
    """Start it inside the namespace of the bridge, where every host reaches it; it ends with the lab."""
    server = EtcdServer(
        plan.state / "etcd",
        address=str(UNDERLAY_GATEWAY),
        further=[f"[{plan.bridge(6)}]"] if 6 in plan.versions else [],
        client_port=ETCD_PORT,
        peer_port=ETCD_PORT + 1,
        command=("ip", "netns", "exec", plan.namespace("net"), "etcd"),
    )
    try:
        server.start()
    except FlannelError as error:
        lines = server.log_file.read_text(errors="replace").splitlines() if server.log_file.exists() else []
        # The log goes away with the lab, so its end is part of the message.
        last_words = "\n".join(f"  {line}" for line in lines[-_LOG_LINES:])
        raise FlannelError(f"{error}; it ends with:\n{last_words}") from None
    return server


class Etcd:
    """The etcd of a lab that is up, whichever process has started it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._namespace = plan.namespace("net")

    def pid(self) -> int | None:
        """Return its process id, ``None`` while it does not run."""
        for pid in netns.processes([self._namespace]):
            with suppress(OSError):  # it has just ended
                if Path(f"/proc/{pid}/comm").read_bytes() == b"etcd\n":  # another's may be no UTF-8
                    return pid
        return None

    def stop(self) -> None:
        """End it in good order. Raises `FlannelError` if it does not run, or does not end."""
        pid = self.pid()
        if pid is None:
            raise FlannelError("etcd does not run")
        if not netns.end_process(self._namespace, pid, signal.SIGTERM, _STOP_TIMEOUT_S):
            raise FlannelError(f"etcd (process {pid}) did not end within {_STOP_TIMEOUT_S:g} s")

    def start(self) -> int:
        """Start it again with what it held, wait until it serves, and return its process id. Raises `FlannelError`."""
        if (pid := self.pid()) is not None:
            raise FlannelError(f"etcd runs already (process {pid})")
        return _start_etcd(self._plan).pid

    def compact(self) -> int:
        """Let it forget every revision before the present one, which is returned. Raises `FlannelError`."""

        def ask() -> int:
            with _connection() as connection:
                held = _ask(connection, "kv/range", {"key": _encoded(_ETCD_PREFIX)})
                revision = int(held["header"]["revision"])
                _ask(connection, "kv/compaction", {"revision": revision, "physical": True})
                return revision

        return netns.call_inside(self._namespace, ask)

    def read(self) -> dict[str, str]:
        """Return what is below flannel's prefix, by the rest of the key. Raises `FlannelError`."""
        prefix = f"{_ETCD_PREFIX}/"
        wanted = {"key": _encoded(prefix), "range_end": _encoded(f"{_ETCD_PREFIX}0")}  # "0" follows "/"

        def ask() -> dict[str, Any]:
            with _connection() as connection:
                return _ask(connection, "kv/range", wanted)

        held = netns.call_inside(self._namespace, ask).get("kvs", [])
        pairs = ((base64.b64decode(each["key"]), base64.b64decode(each.get("value", ""))) for each in held)
        return {key.decode().removeprefix(prefix): value.decode(errors="replace") for key, value in pairs}

    def write(self, key: str, value: str | None) -> None:
        """Write a value below flannel's prefix; it expires as the one before did. ``None``: remove the key.

        Raises `FlannelError`.
        """
        path = {"key": _encoded(f"{_ETCD_PREFIX}/{key}")}

        def ask() -> None:
            with _connection() as connection:
                if value is None:
                    _ask(connection, "kv/deleterange", path)
                    return
                there = _ask(connection, "kv/range", {**path, "count_only": True}).get("count", "0") != "0"
                _ask(connection, "kv/put", {**path, "value": _encoded(value), "ignore_lease": there})

        netns.call_inside(self._namespace, ask)


def _connection() -> closing[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection(str(UNDERLAY_GATEWAY), ETCD_PORT, timeout=_HTTP_TIMEOUT_S))


def _ask(connection: http.client.HTTPConnection, path: str, what: Mapping[str, object]) -> dict[str, Any]:
    """Ask the lab's etcd by its HTTP interface (its grpc-gateway), which takes and gives base64."""
    status, said = _post(connection, f"/v3/{path}", what)
    if status == http.HTTPStatus.NOT_FOUND:  # etcd 3.3, as Ubuntu 22.04 has it
        status, said = _post(connection, f"/v3beta/{path}", what)
    if status != http.HTTPStatus.OK:
        raise FlannelError(f"the lab's etcd refused {path}: {_reason(said)}")
    return dict(json.loads(said))


def _post(connection: http.client.HTTPConnection, path: str, what: Mapping[str, object]) -> tuple[int, str]:
    try:
        connection.request("POST", path, json.dumps(what))
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise FlannelError(f"the lab's etcd does not answer: {error}") from None


def _reason(said: str) -> str:
    """Return what etcd complains of, without the object that is around it."""
    try:
        return str(json.loads(said)["message"])
    except (ValueError, LookupError, TypeError):
        return said.strip()


def _put(values: Mapping[str, Mapping[str, object]]) -> None:
    """Store JSON values."""
    with _connection() as connection:
        for key, value in values.items():
            text = json.dumps(value, separators=(",", ":"))
            _ask(connection, "kv/put", {"key": _encoded(key), "value": _encoded(text)})


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
