"""Whether container runtimes find flannel's CNI configuration first, and the plugins that it names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flannel_udp.doctor.finding import Finding, fault, ok, skipped

CONF_DIR = Path("/etc/cni/net.d")
BIN_DIRS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"), Path("/usr/libexec/cni"))
"""The usual one, and those of distributions."""
_SUFFIXES = (".conf", ".conflist", ".json")
_PLUGINS = "the package containernetworking-plugins, or github.com/containernetworking/plugins"


def ask_cni(conf_dir: Path, bin_dirs: Sequence[Path], *, kubernetes: bool) -> Iterator[Finding]:
    """Read the folder of configurations and look for the plugins."""
    files = _read(conf_dir)
    yield judge_configurations(files, conf_dir, kubernetes=kubernetes)
    needed = next((types for types in map(plugins_of, files.values()) if "flannel" in types), None)
    if needed is None:
        yield skipped("CNI plugins", f"no configuration of flannel's in {conf_dir}")
        return
    present = {name for name in needed if any(os.access(folder / name, os.X_OK) for folder in bin_dirs)}
    yield judge_plugins(needed, present, bin_dirs)


def judge_configurations(files: Mapping[str, Any], folder: Path, *, kubernetes: bool) -> Finding:
    """Judge the configurations by file name, ``None`` for one that is no JSON: runtimes take the first one by name."""
    question, names = "CNI configuration", sorted(files)
    flannels = [name for name in names if "flannel" in plugins_of(files[name])]
    install = f"flannel-udp cni install --conf-dir={folder}"
    if not flannels:
        if not kubernetes:
            return skipped(question, f"there is none of flannel's in {folder}")
        what = f"there is none of flannel's in {folder}"
        return fault(question, what + (f", and runtimes take {names[0]}" if names else ""), install)
    if names[0] != flannels[0]:
        kind = "is no JSON" if files[names[0]] is None else f"of {', '.join(plugins_of(files[names[0]])) or 'nothing'}"
        what = f"{folder}/{names[0]} ({kind}) comes before {flannels[0]}: pods are not attached by flannel"
        return fault(question, what, f"mv {folder}/{names[0]} {folder}/{names[0]}.off")
    return ok(question, f"{folder}/{flannels[0]} is the first one")


def judge_plugins(needed: Sequence[str], present: set[str], folders: Sequence[Path]) -> Finding:
    """Judge whether all plugins are there."""
    missing = [name for name in needed if name not in present]
    if not missing:
        return ok("CNI plugins", f"{', '.join(needed)} are there")
    what = f"no {', no '.join(missing)} in {', '.join(map(str, folders))}: pods cannot be started"
    others = [name for name in missing if name != "flannel"]
    install = [f"flannel-udp cni install --bin-dir={folders[0]}"] if "flannel" in missing else []
    more = [f"install {', '.join(others)}: {_PLUGINS}"] if others else []
    return fault("CNI plugins", what, "; ".join(install + more))


def plugins_of(document: Any) -> list[str]:
    """Return the plugins that a configuration, or a list of them, runs: those that flannel delegates to, too."""
    if not isinstance(document, dict):
        return []
    plugins = document.get("plugins") if isinstance(document.get("plugins"), list) else [document]
    found: dict[str, None] = {}
    for plugin in plugins or []:
        if not isinstance(plugin, dict) or not isinstance(plugin.get("type"), str):
            continue
        found[plugin["type"]] = None
        if plugin["type"] == "flannel":
            found[_type_of(plugin.get("delegate"), "bridge")] = None
            found[_type_of(plugin.get("ipam"), "host-local")] = None
    return list(found)


def _type_of(section: Any, default: str) -> str:
    given = section.get("type") if isinstance(section, dict) else None
    return given if isinstance(given, str) else default


def _read(folder: Path) -> dict[str, Any]:
    """Return what the folder's configurations say. Raises `OSError` where it cannot be read."""
    files: dict[str, Any] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix in _SUFFIXES:
            try:
                files[path.name] = json.loads(path.read_bytes())
            except ValueError:
                files[path.name] = None
    return files
