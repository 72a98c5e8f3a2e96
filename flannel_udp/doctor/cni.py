"""Whether container runtimes find flannel's CNI configuration first, and the plugins that it names."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flannel_udp.cni.request import VERSIONS, subnet_file_of, version_of
from flannel_udp.doctor.container import is_contained
from flannel_udp.doctor.finding import Finding, fault, note, ok, skipped

CONF_DIR = Path("/etc/cni/net.d")
BIN_DIRS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"), Path("/usr/libexec/cni"))
"""The usual one, and those of distributions."""
_SUFFIXES = (".conf", ".conflist", ".json")
_PLUGINS = "the package containernetworking-plugins, or github.com/containernetworking/plugins"
_ANSWER_S = 5.0
"""A plugin that is asked for its versions does nothing else."""
_NOTHING_RUNS_IT = "cannot run it: what its first line names is missing"


def ask_cni(
    conf_dir: Path, bin_dirs: Sequence[Path], subnet_file: Path | None, *, kubernetes: bool
) -> Iterator[Finding]:
    """Read the folder of configurations and look for the plugins.

    `subnet_file` is where the agent is known to write this host's subnet. In a container only the host's folders count,
    which have to be mounted there.
    """
    contained = is_contained()
    if contained and (missing := _missing(conf_dir, bin_dirs)):
        yield skipped("CNI configuration", f"this container lacks the host's {' and '.join(map(str, missing))}")
        return
    files = _read(conf_dir)
    yield judge_configurations(files, conf_dir, kubernetes=kubernetes)
    ours = next((name for name in sorted(files) if "flannel" in plugins_of(files[name])), None)
    if ours is None:
        yield skipped("CNI plugins", f"no configuration of flannel's in {conf_dir}")
        return
    if subnet_file is not None:
        yield from judge_file_read(files[ours], conf_dir / ours, subnet_file)
    needed = plugins_of(files[ours])
    # As runtimes look for them: the first folder that has one.
    places = (folder / name for folder in reversed(bin_dirs) for name in needed)
    found = {path.name: path for path in places if os.access(path, os.X_OK)}
    unseen = [folder for folder in bin_dirs if contained and not folder.is_dir()]
    lacking = [name for name in needed if name not in found]
    if unseen and lacking:
        where = " or ".join(map(str, unseen))
        yield note("CNI plugins", f"no {', no '.join(lacking)} is seen from this container: look in the host's {where}")
    else:
        yield judge_plugins(needed, set(found), bin_dirs)
    spoken = {path: versions_spoken(path) for path in found.values()}
    for path in [path for path, said in spoken.items() if contained and said == _NOTHING_RUNS_IT]:
        yield skipped("CNI plugins", f"the versions of {path}: what runs it is on the host, not in this container")
        del spoken[path]
    yield from judge_versions(spoken, version_of(files[ours]), conf_dir / ours)


def _missing(conf_dir: Path, bin_dirs: Sequence[Path]) -> list[Path]:
    """Return the folders that are not there; of those with plugins one is enough."""
    conf_dirs = [] if conf_dir.is_dir() else [conf_dir]
    return conf_dirs + ([] if any(folder.is_dir() for folder in bin_dirs) else [bin_dirs[0]])


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


def judge_file_read(document: Any, configuration: Path, subnet_file: Path) -> Iterator[Finding]:
    """Judge whether the plugin reads what the agent writes; a fault if not."""
    reads = next(subnet_file_of(plugin) for plugin in _plugins(document) if plugin["type"] == "flannel")
    if not _is_same(reads, subnet_file):
        what = f"by {configuration} the plugin reads {reads}, and the agent writes {subnet_file}"
        mend = f'write "subnetFile": "{subnet_file}" there, beside "type": "flannel"'
        yield fault("CNI configuration", f"{what}: pods cannot be started, or get addresses of another subnet", mend)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.realpath(one) == os.path.realpath(other)
    except ValueError:  # JSON can say what is no path
        return False


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


def versions_spoken(plugin: Path) -> list[str] | str:
    """Ask a plugin which versions of the CNI spec it speaks (VERSION); what is wrong with it where it does not say."""
    try:
        done = subprocess.run(
            [plugin],
            input=b'{"cniVersion": "0.4.0"}',
            env={**os.environ, "CNI_COMMAND": "VERSION"},
            capture_output=True,
            timeout=_ANSWER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it does not answer within {_ANSWER_S:g} s"
    except FileNotFoundError:
        return _NOTHING_RUNS_IT
    except OSError as error:
        return f"cannot run it: {error.strerror}"
    try:
        answer = json.loads(done.stdout)
        return str(answer["msg"]) if "msg" in answer else [str(version) for version in answer["supportedVersions"]]
    except (ValueError, TypeError, LookupError):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return "it says no versions" + (f": {said[-1][:200]}" if said else "")


def judge_versions(spoken: Mapping[Path, list[str] | str], version: str, configuration: Path) -> Iterator[Finding]:
    """Judge whether every plugin speaks the configuration's version; a fault for each that does not."""
    for plugin, versions in spoken.items():
        if isinstance(versions, str):
            ours = plugin.name == "flannel"
            again = f"flannel-udp cni install --bin-dir={plugin.parent}" if ours else f"install {_PLUGINS}"
            yield fault("CNI plugins", f"{plugin}: {versions}: pods cannot be started", again)
        elif version not in versions:
            what = f"{configuration} is of CNI {version}, and {plugin} speaks {', '.join(versions)}"
            mend = f'write "cniVersion": "{_newest(spoken)}" there, or install {_PLUGINS}'
            yield fault("CNI plugins", f"{what}: pods cannot be started", mend)


def _newest(spoken: Mapping[Path, list[str] | str]) -> str:
    """Return the newest version that all speak, flannel's usual one where there is none."""
    common = set.intersection(*(set(versions) for versions in spoken.values() if not isinstance(versions, str)))
    return max(common & set(VERSIONS), key=VERSIONS.index, default="0.3.1")


def plugins_of(document: Any) -> list[str]:
    """Return the plugins that a configuration, or a list of them, runs: those that flannel delegates to, too."""
    found: dict[str, None] = {}
    for plugin in _plugins(document):
        found[plugin["type"]] = None
        if plugin["type"] == "flannel":
            found[_type_of(plugin.get("delegate"), "bridge")] = None
            found[_type_of(plugin.get("ipam"), "host-local")] = None
    return list(found)


def _plugins(document: Any) -> list[dict[str, Any]]:
    """Return the configurations of the plugins that a configuration has, as far as they say which plugin it is."""
    if not isinstance(document, dict):
        return []
    plugins = document["plugins"] if isinstance(document.get("plugins"), list) else [document]
    return [plugin for plugin in plugins if isinstance(plugin, dict) and isinstance(plugin.get("type"), str)]


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
