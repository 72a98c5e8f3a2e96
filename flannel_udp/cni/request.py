"""What the runtime asks for: the environment's CNI_ variables and the network configuration on standard input.

Checked before anything is done, in the order of the CNI spec's reference code; names of variables and keys are the
spec's (section 2, "Parameters", and section 1, "Plugin configuration objects").
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flannel_udp.cni.errors import DECODING_FAILURE, INCOMPATIBLE_VERSION, INVALID_CONFIG, INVALID_ENVIRONMENT, CniError

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]

DEFAULT_SUBNET_FILE = Path("/run/flannel/subnet.env")
DEFAULT_DATA_DIR = Path("/var/lib/cni/flannel")

Document = dict[str, Any]

_ATTACHMENT = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH")
_REQUIRED = {
    "ADD": _ATTACHMENT,
    "CHECK": _ATTACHMENT,
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),  # the namespace may be gone already
    "STATUS": ("CNI_PATH",),
    "GC": ("CNI_PATH",),
}
_SINCE = {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
# dev_valid_name in the kernel.
_IFNAME = re.compile(r"(?!\.{1,2}\Z)[^/:\s]+")
_IFNAME_MAX_BYTES = 15  # IFNAMSIZ without the closing zero


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the runtime. Container and interface are empty for STATUS and GC."""

    command: str
    container_id: str
    ifname: str
    path: tuple[str, ...]
    """CNI_PATH: the directories where plugins are looked for."""
    conf: Document

    @property
    def version(self) -> str:
        """The spec version that the runtime speaks."""
        return version_of(self.conf)

    @property
    def subnet_file(self) -> Path:
        """Where the agent writes this host's subnet."""
        return subnet_file_of(self.conf)

    @property
    def data_dir(self) -> Path:
        """Where the delegates' configurations are kept."""
        return Path(self.conf.get("dataDir") or DEFAULT_DATA_DIR)


def subnet_file_of(conf: Mapping[str, Any]) -> Path:
    """Return the subnet file that a configuration names."""
    given = conf.get("subnetFile")
    return Path(given) if isinstance(given, str) and given else DEFAULT_SUBNET_FILE


def version_of(conf: object) -> str:
    """Return a configuration's version; one without is of the time before there were versions."""
    version = conf.get("cniVersion") if isinstance(conf, Mapping) else None
    return version if isinstance(version, str) and version else VERSIONS[0]


def parse_request(environ: Mapping[str, str], stdin: bytes) -> Request:
    """Check what the runtime says and return it. Raises `CniError`."""
    command = environ["CNI_COMMAND"]
    if command not in _REQUIRED:
        raise CniError(INVALID_ENVIRONMENT, f"unknown CNI_COMMAND {command!r}: it is VERSION, {', '.join(_REQUIRED)}")
    missing = [name for name in _REQUIRED[command] if not environ.get(name)]
    if missing:
        raise CniError(INVALID_ENVIRONMENT, f"{command} needs {', '.join(missing)} in the environment")
    conf = _parse_conf(stdin)
    _check_version(command, conf)
    container_id, ifname = environ.get("CNI_CONTAINERID", ""), environ.get("CNI_IFNAME", "")
    if "CNI_CONTAINERID" in _REQUIRED[command]:
        # The id becomes a file name below dataDir.
        _check_name(container_id, "CNI_CONTAINERID", INVALID_ENVIRONMENT)
        if not _IFNAME.fullmatch(ifname) or len(os.fsencode(ifname)) > _IFNAME_MAX_BYTES:
            raise CniError(INVALID_ENVIRONMENT, f"CNI_IFNAME {ifname[:60]!r} is no name for an interface")
    path = tuple(filter(None, environ["CNI_PATH"].split(":")))
    return Request(command, container_id, ifname, path, conf)


def _parse_conf(stdin: bytes) -> Document:
    if not stdin.strip():
        raise CniError(DECODING_FAILURE, "there is no network configuration on standard input")
    try:
        conf = json.loads(stdin)
    except (ValueError, RecursionError) as error:
        raise CniError(DECODING_FAILURE, f"the network configuration on standard input is no JSON: {error}") from None
    if not isinstance(conf, dict):
        raise CniError(DECODING_FAILURE, "the network configuration on standard input is no JSON object")
    for key, kind, called in (
        ("cniVersion", str, "a string"),
        ("name", str, "a string"),
        ("subnetFile", str, "a string"),
        ("dataDir", str, "a string"),
        ("delegate", dict, "an object"),
        ("ipam", dict, "an object"),
        ("runtimeConfig", dict, "an object"),
    ):
        if conf.get(key) is not None and not isinstance(conf[key], kind):
            raise CniError(INVALID_CONFIG, f"{key!r} in the network configuration is not {called}")
    for key in ("subnetFile", "dataDir"):
        if re.search(r"[\0\ud800-\udfff]", conf.get(key) or ""):  # JSON can say what UTF-8 and system calls cannot
            raise CniError(INVALID_CONFIG, f"{key!r} in the network configuration is no path: {conf[key][:60]!r}")
    _check_name(conf.get("name") or "", "'name' in the network configuration", INVALID_CONFIG)
    return conf


def _check_name(name: str, what: str, code: int) -> None:
    if not name:
        raise CniError(code, f"{what} is missing")
    if not _NAME.fullmatch(name):
        raise CniError(
            code,
            f"{what} is {name[:60]!r}: it must begin with a letter or digit and hold letters, digits, '_', '.' and '-'",
        )


def _check_version(command: str, conf: Document) -> None:
    version = version_of(conf)
    if version not in VERSIONS:
        raise CniError(
            INCOMPATIBLE_VERSION,
            f"incompatible CNI versions: the network configuration has {version[:60]!r}",
            f"supported are {', '.join(VERSIONS)}",
        )
    since = _SINCE.get(command, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(since):
        raise CniError(
            INCOMPATIBLE_VERSION,
            f"{command} exists since CNI {since}, and the network configuration has {version}",
        )
