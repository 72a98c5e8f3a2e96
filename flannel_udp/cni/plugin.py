"""`flannel` in CNI_PATH: one command of the runtime, its answer on standard output, exit code 0 or 1.

ADD     subnet.env + configuration → the delegate's configuration → kept in dataDir → the delegate's ADD
DEL     the configuration that was kept → the delegate's DEL → forgotten
CHECK   the configuration that was kept, with the result of ADD → the delegate's CHECK
STATUS  would ADD find its subnet and its delegate?
GC      DEL for all that is kept and no longer valid; then the delegate's GC
VERSION the versions of the spec
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping

from flannel_udp import __version__
from flannel_udp.cni import invoke, state
from flannel_udp.cni.delegate import delegate_conf
from flannel_udp.cni.errors import (
    DECODING_FAILURE,
    INTERNAL,
    INVALID_CONFIG,
    NOT_AVAILABLE,
    TRY_AGAIN_LATER,
    UNKNOWN_CONTAINER,
    CniError,
)
from flannel_udp.cni.request import NEWEST, VERSIONS, Document, Request, parse_request, version_of
from flannel_udp.files import subnet_env
from flannel_udp.files.subnet_env import SubnetEnvError, SubnetEnvMissing

Environ = Mapping[str, str]

VALID_ATTACHMENTS = "cni.dev/valid-attachments"
_USUAL_IFNAME = "eth0"


def main() -> int:
    """Do what the environment says and return the exit code."""
    command = os.environ.get("CNI_COMMAND")
    if not command:  # somebody tries it by hand
        sys.stderr.write(
            f"flannel-udp's CNI plugin, version {__version__}, for CNI {', '.join(VERSIONS)}: container runtimes start "
            "it, with CNI_COMMAND in the environment\n"
        )
        return 0
    # None: whoever started us closed it.
    stdin = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
    if command == "VERSION":
        _print({"cniVersion": _version_to_speak(stdin), "supportedVersions": VERSIONS})
        return 0
    try:
        request = parse_request(os.environ, stdin)
        sys.stdout.buffer.write(_COMMANDS[command](request, os.environ))
    except CniError as error:
        _print(error.document(_version_to_speak(stdin)))
        return 1
    except Exception as error:  # the runtime reads standard output, and nobody a traceback
        _print(CniError(INTERNAL, f"internal error: {error!r}").document(_version_to_speak(stdin)))
        return 1
    return 0


def _print(document: Document) -> None:
    sys.stdout.write(json.dumps(document) + "\n")


def _version_to_speak(stdin: bytes) -> str:
    """Return the version of the input for the answer; the newest if there is none that we know."""
    try:
        version = version_of(json.loads(stdin))
    except (ValueError, RecursionError):
        return NEWEST
    return version if version in VERSIONS else NEWEST


def add(request: Request, environ: Environ) -> bytes:
    """Attach the container and return the delegate's result. A failed attempt leaves nothing, or what DEL needs."""
    conf = _delegate_conf(request)
    invoke.find(conf["type"], request.path)
    is_first = state.save(request.data_dir, state.Attachment(request.container_id, request.ifname, conf))
    try:
        result = invoke.run("ADD", conf, request.path, environ)
        _check_result(conf["type"], result)
    except CniError:
        # A second ADD fails because the first one did its work, which may be in use: DEL takes it back.
        if is_first:
            _undo(request, conf, environ)
        raise
    return result


def _check_result(plugin: str, result: bytes) -> None:
    try:
        sound = isinstance(json.loads(result), dict)
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise CniError(DECODING_FAILURE, f"{plugin} succeeded in ADD, and its result is no JSON object")


def _undo(request: Request, conf: Document, environ: Environ) -> None:
    """Let the delegate clean up after its failed ADD. The state stays if that fails too: the runtime's DEL needs it."""
    try:
        invoke.run("DEL", conf, request.path, environ)
    except CniError as error:
        sys.stderr.write(f"flannel: cleaning up after the failed ADD failed, DEL will try again: {error}\n")
        return
    state.remove(request.data_dir, request.container_id)


def delete(request: Request, environ: Environ) -> bytes:
    """Detach the container. Nothing kept means that it is detached already, or never was attached."""
    try:
        attachment = state.load(request.data_dir, request.container_id)
    except state.Damaged as damaged:
        sys.stderr.write(f"flannel: {damaged}: using what ADD would give the delegate now\n")
        attachment = state.Attachment(request.container_id, request.ifname, _replacement(request, damaged))
    # After an ADD that was refused because of another attachment comes a DEL, which must leave that one alone.
    if attachment is None or attachment.is_at(request.conf["name"], request.ifname):
        if attachment is not None:
            invoke.run("DEL", _with_previous_result(attachment.conf, request), request.path, environ)
        state.remove(request.data_dir, request.container_id)
    return b""


def _replacement(request: Request, damaged: state.Damaged) -> Document:
    """Return a configuration good enough for DEL: IPAM plugins find a container's address by its id."""
    try:
        return _delegate_conf(request)
    except CniError as error:
        raise CniError(damaged.code, f"{damaged.msg}, and there is nothing to replace it: {error.msg}") from None


def check(request: Request, environ: Environ) -> bytes:
    """Ask the delegate whether the container is still as ADD left it."""
    attachment = state.load(request.data_dir, request.container_id)
    if attachment is None or not attachment.is_of(request.conf["name"], request.ifname):
        raise CniError(
            UNKNOWN_CONTAINER,
            f"nothing in {request.data_dir} says that container {request.container_id} was attached to network "
            f"{request.conf['name']} as {request.ifname}",
        )
    conf = _with_previous_result(attachment.conf, request)
    if "prevResult" in conf:
        try:
            conf["prevResult"] = _with_gateways(conf["prevResult"])
        except (AttributeError, KeyError, TypeError):
            raise CniError(INVALID_CONFIG, "'prevResult' in the network configuration is no result of ADD") from None
    invoke.run("CHECK", conf, request.path, environ)
    return b""


def _with_gateways(result: Document) -> Document:
    """Return the result with the next hop of every route said.

    A route without one goes to the gateway of its family (CNI spec, "Success"), and `bridge` 1.1 looks in CHECK for a
    route without any instead: it would find every pod of ours broken.
    """
    gateways: dict[bool, str] = {}
    for address in result.get("ips") or []:
        if address.get("gateway"):
            gateways.setdefault(_is_ipv6(address["gateway"]), address["gateway"])
    routes = []
    for route in result.get("routes") or []:
        gateway = route.get("gw") or gateways.get(_is_ipv6(route["dst"]))
        routes.append({**route, "gw": gateway} if gateway else route)
    return {**result, "routes": routes}


def _with_previous_result(conf: Document, request: Request) -> Document:
    previous = request.conf.get("prevResult")
    # The runtime gives the result in the version of its configuration, which may be another one since ADD.
    return {**conf, "cniVersion": request.version, "prevResult": previous} if previous else conf


def _is_ipv6(address: str) -> bool:
    return ":" in address


def status(request: Request, environ: Environ) -> bytes:
    """Tell whether ADD would find its subnet and its delegate."""
    try:
        conf = _delegate_conf(request)
        invoke.find(conf["type"], request.path)
    except CniError as error:
        raise CniError(NOT_AVAILABLE, error.msg, error.details) from None
    invoke.run("STATUS", conf, request.path, environ)
    return b""


def collect_garbage(request: Request, environ: Environ) -> bytes:
    """Detach what the runtime no longer has, then let the delegate do likewise. One failure stops nothing else."""
    valid = _valid_containers(request)
    failures: list[CniError] = []
    for container_id in state.container_ids(request.data_dir):
        if container_id not in valid:
            try:
                _collect(container_id, request, environ)
            except CniError as error:
                failures.append(error)
    try:
        conf = {**_delegate_conf(request), VALID_ATTACHMENTS: request.conf[VALID_ATTACHMENTS]}
        invoke.run("GC", conf, request.path, environ)
    except CniError as error:
        failures.append(error)
    if failures:
        raise CniError(failures[0].code, "; ".join(error.msg for error in failures), failures[0].details)
    return b""


def _valid_containers(request: Request) -> set[str]:
    """Return the containers that live. No list at all is not an empty one: it must not cost every pod its address."""
    attachments = request.conf.get(VALID_ATTACHMENTS, False)
    attachments = [] if attachments is None else attachments  # Go's way to write an empty list
    try:
        return {attachment["containerID"] for attachment in attachments}
    except (TypeError, KeyError):
        raise CniError(INVALID_CONFIG, f"GC needs {VALID_ATTACHMENTS!r}, a list of objects with containerID") from None


def _collect(container_id: str, request: Request, environ: Environ) -> None:
    attachment = state.load(request.data_dir, container_id)
    if attachment is None or attachment.conf.get("name") != request.conf["name"]:
        return  # gone meanwhile, or another network's
    whose = {"CNI_CONTAINERID": container_id, "CNI_IFNAME": attachment.ifname or _USUAL_IFNAME, "CNI_NETNS": ""}
    invoke.run("DEL", attachment.conf, request.path, {**environ, **whose})
    state.remove(request.data_dir, container_id)


def _delegate_conf(request: Request) -> Document:
    try:
        env = subnet_env.require(request.subnet_file)
    except SubnetEnvMissing as error:
        raise CniError(TRY_AGAIN_LATER, str(error)) from None
    except SubnetEnvError as error:
        raise CniError(INVALID_CONFIG, str(error)) from None
    return delegate_conf(request.conf, env)


_COMMANDS = {"ADD": add, "DEL": delete, "CHECK": check, "STATUS": status, "GC": collect_garbage}
