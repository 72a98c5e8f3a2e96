"""The lab's registry: a file, or a real etcd beside the underlay's bridge; with the network configuration in it."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import shutil
from collections.abc import Mapping

from flannel_udp.errors import FlannelError
from flannel_udp.files.atomic import replace_file
from flannel_udp.lab import netns
from flannel_udp.lab.etcd_server import EtcdServer
from flannel_udp.lab.plan import ETCD_PORT, GATEWAY_NUMBER, UNDERLAY_GATEWAY, UNDERLAY_V6, Plan

logger = logging.getLogger(__name__)

_ETCD_PREFIX = "/coreos.com/network"
_ETCD_NEEDS_BYTES = 200_000_000  # it allocates two log segments of 64 MB beforehand
_HTTP_TIMEOUT_S = 5.0
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
    subnets = {key.replace("/", "-"): _value(addresses) for key, addresses in plan.reservations.items()}
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


def _value(addresses: str) -> dict[str, str]:
    """Return the value of a reservation for a host with these addresses, one a family, with an & between them."""
    return {"PublicIPv6" if ":" in address else "PublicIP": address for address in addresses.split("&")}


def _start_etcd(plan: Plan) -> EtcdServer:
    """Start it inside the namespace of the bridge, where every host reaches it; it ends with the lab."""
    server = EtcdServer(
        plan.state / "etcd",
        address=str(UNDERLAY_GATEWAY),
        further=[f"[{UNDERLAY_V6[GATEWAY_NUMBER]}]"] if 6 in plan.versions else [],
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


def _put(values: Mapping[str, Mapping[str, object]]) -> None:
    """Store JSON values by etcd's HTTP interface (its grpc-gateway), which asks for base64."""
    connection = http.client.HTTPConnection(str(UNDERLAY_GATEWAY), ETCD_PORT, timeout=_HTTP_TIMEOUT_S)
    try:
        for key, value in values.items():
            texts = {"key": key, "value": json.dumps(value, separators=(",", ":"))}
            body = {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}
            connection.request("POST", "/v3/kv/put", json.dumps(body))
            answer = connection.getresponse()
            said = answer.read().decode(errors="replace")
            if answer.status != http.HTTPStatus.OK:
                raise FlannelError(f"the lab's etcd refused {key}: {said}")
    finally:
        connection.close()
