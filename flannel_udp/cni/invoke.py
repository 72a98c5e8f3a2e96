"""Run another plugin as the runtime would: found in CNI_PATH, configuration on its standard input."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping

from flannel_udp.cni.errors import DELEGATE_FAILED, INVALID_CONFIG, CniError
from flannel_udp.cni.request import Document


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
        done = subprocess.run(
            [executable],
            input=json.dumps(conf).encode(),
            stdout=subprocess.PIPE,
            env={**environ, "CNI_COMMAND": command},
            check=False,
        )
    except OSError as error:
        raise CniError(DELEGATE_FAILED, f"cannot run {executable}: {error.strerror}") from None
    if done.returncode != 0:
        raise _failure(plugin, command, done)
    return done.stdout


def _failure(plugin: str, command: str, done: subprocess.CompletedProcess[bytes]) -> CniError:
    try:
        error = json.loads(done.stdout)
        code, msg, details = error["code"], error["msg"], error.get("details") or ""
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        how = f"exit code {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
        printed = done.stdout.decode(errors="replace").strip()
        return CniError(DELEGATE_FAILED, f"{plugin} failed in {command} ({how}) without a CNI error", printed[:1000])
    return CniError(code if isinstance(code, int) else DELEGATE_FAILED, f"{plugin}: {msg}", str(details))
