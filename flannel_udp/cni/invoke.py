"""Run another plugin as the runtime would: found in CNI_PATH, configuration on its standard input."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping

from flannel_udp.cni.errors import DELEGATE_FAILED, INVALID_CONFIG, CniError
from flannel_udp.cni.request import Document

_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)
"""What Python ignores; ignored signals stay so in the programs that it starts, unless told otherwise."""

_OTHER_ADDRESS = "already has an IP address different from"
"""What the plugin `bridge` says where its bridge was made for another subnet."""
_USED_UP = "no IP addresses available in range set"
"""What `host-local` says where each address is kept for a container, be it one that nobody ran DEL for."""
_RESERVATIONS = "/var/lib/cni/networks"  # of host-local, without a `dataDir`


def find(plugin: str, path: tuple[str, ...]) -> str:
    """Return the executable of that name. Raises `CniError`."""
    if not plugin or "/" in plugin:
        raise CniError(INVALID_CONFIG, f"the delegate's type {plugin!r} is no name of a plugin")
    for directory in path:
        candidate = os.path.join(directory, plugin)  # noqa: PTH118 - what goes to exec is a string
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):  # noqa: PTH113 - likewise
            return candidate
    raise CniError(
        DELEGATE_FAILED, f"no executable {plugin!r} in CNI_PATH ({':'.join(path)}): install the CNI plugins there"
    )


def run(command: str, conf: Document, path: tuple[str, ...], environ: Mapping[str, str]) -> bytes:
    """Run the plugin of `conf` with the runtime's environment and return what it printed; what it said goes to stderr.

    Raises `CniError`, which is the plugin's own where it gave one.
    """
    plugin = conf["type"]
    executable = find(plugin, path)
    try:
        code, printed = _run(executable, json.dumps(conf).encode(), {**environ, "CNI_COMMAND": command})
    except OSError as error:
        raise CniError(DELEGATE_FAILED, f"cannot run {executable}: {error.strerror}") from None
    if code != 0:
        raise _failure(conf, command, code, printed)
    return printed


def _run(executable: str, stdin: bytes, environ: Mapping[str, str]) -> tuple[int, bytes]:
    """Run it and return its exit code (negative: the signal that ended it) and what it printed. Raises `OSError`.

    By hand, because to import `subprocess` is a tenth of the time that this plugin takes. A file in memory holds the
    input: unlike a pipe it takes any length, and a plugin that does not read it does no harm.
    """
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as output:
        with os.fdopen(writing, "wb"), os.fdopen(os.memfd_create("stdin"), "w+b") as given:
            given.write(stdin)
            given.seek(0)
            actions = [(os.POSIX_SPAWN_DUP2, given.fileno(), 0), (os.POSIX_SPAWN_DUP2, writing, 1)]
            pid = os.posix_spawn(executable, [executable], environ, file_actions=actions, setsigdef=_IGNORED)
        printed = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), printed


def _failure(conf: Document, command: str, code: int, printed: bytes) -> CniError:
    plugin = conf["type"]
    try:
        error = json.loads(printed)
        error_code, msg, details = error["code"], error["msg"], error.get("details") or ""
        msg += _remedy(msg, conf)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        said = printed.decode(errors="replace").strip()
        return CniError(DELEGATE_FAILED, f"{plugin} failed in {command} ({how}) without a CNI error", said[:1000])
    return CniError(error_code if isinstance(error_code, int) else DELEGATE_FAILED, f"{plugin}: {msg}", str(details))


def _remedy(msg: str, conf: Document) -> str:
    """Return what is to be done about a delegate's error, empty where its own words have to do."""
    if _OTHER_ADDRESS in msg:
        return (
            "; if that is a former subnet's: stop the pods that are on the bridge and remove it (`ip link del cni0`): "
            "it is made anew"
        )
    if _USED_UP in msg:
        folder = f"{(conf.get('ipam') or {}).get('dataDir') or _RESERVATIONS}/{conf['name']}"
        return (
            f"; if fewer pods than that run here: {folder} has a file for each address, with its container in the "
            "first line, and a reboot takes none away: remove those whose container is gone (those that are there: "
            "`crictl pods -q --no-trunc`)"
        )
    return ""
