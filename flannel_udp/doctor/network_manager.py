"""What NetworkManager's configuration says about a device of ours: read as NetworkManager.conf(5) has it.

Which devices an option is for is a list of specs: names with `*` and `?`, types, drivers, `except:` one of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

_KEY = "unmanaged-devices"
_TYPES = {"tun": "tun", "vxlan": "vxlan", "ipip": "iptunnel"}
"""What NetworkManager calls the kernel's kinds of devices that an overlay has."""
_BOOLEANS = {"0": False, "no": False, "false": False, "off": False, "1": True, "yes": True, "true": True, "on": True}

Section = dict[str, str]


class Candidate(NamedTuple):
    """A device that may be meant: its name, and the kernel's kind of it, empty where there is none yet."""

    name: str
    kind: str


def configuration_files(root: Path = Path("/")) -> list[Path]:
    """Return the files in the order in which they are read; one hides those of its name in the folders before."""
    folders = [root / folder / "NetworkManager" for folder in ("usr/lib", "run", "etc")]
    snippets = {path.name: path for folder in folders for path in (folder / "conf.d").glob("*.conf")}
    ordered = sorted(snippets.values(), key=lambda path: (folders.index(path.parent.parent), path.name))
    n_before = sum(folders[2] not in path.parents for path in ordered)
    last = root / "var/lib/NetworkManager/NetworkManager-intern.conf"
    return [*ordered[:n_before], folders[2] / "NetworkManager.conf", *ordered[n_before:], last]


def leaves_alone(texts: Sequence[str], device: Candidate) -> bool | None:
    """Tell whether these files, in the order of reading, have the device left alone; ``None`` where we cannot tell."""
    files = [_sections(text) for text in texts]
    unmanaged = matches(_unmanaged(files), device)
    if unmanaged:
        return True
    managed = _managed_by_section(files, device)
    if managed is False:
        return True
    return None if unmanaged is None or managed is None else False


def matches(specs: Sequence[str], device: Candidate) -> bool | None:
    """Tell whether a list of specs means the device; ``None`` where that depends on what is not known here."""
    excepted = [_matches(spec.partition(":")[2], device) for spec in specs if spec.lower().startswith("except:")]
    named = [_matches(spec, device) for spec in specs if not spec.lower().startswith("except:")]
    if not specs or True in excepted:
        return False
    if named and True not in named:
        return None if None in named else False
    return None if None in excepted else True


def _matches(spec: str, device: Candidate) -> bool | None:
    kind, colon, value = spec.partition(":")
    if not colon:
        return spec in ("*", device.name)
    match kind.lower():
        case "interface-name":
            return _is_name(value, device.name)
        case "type":
            return value == _TYPES[device.kind] if device.kind in _TYPES else None
        case "driver":
            return value == device.kind if device.kind and "/" not in value else None
        case "dhcp-plugin":
            return None
        case _:  # a hardware's address: ours have none that stays
            return False


def _is_name(pattern: str, name: str) -> bool:
    if pattern.startswith("="):
        return pattern[1:] == name
    return fnmatchcase(name, pattern.removeprefix("~").replace("[", "[[]"))


def _unmanaged(files: Sequence[Mapping[str, Section]]) -> list[str]:
    specs: list[str] = []
    for file in files:
        keyfile = file.get("keyfile", {})
        if _KEY in keyfile:
            specs = _split(keyfile[_KEY])
        removed = _split(keyfile.get(f"{_KEY}-", ""))
        specs = [spec for spec in (*specs, *_split(keyfile.get(f"{_KEY}+", ""))) if spec not in removed]
    return specs


def _managed_by_section(files: Sequence[Mapping[str, Section]], device: Candidate) -> bool | None:
    """Return what the first section for the device says that says anything."""
    for section in _device_sections(files):
        meant = matches(_split(section["match-device"]), device) if "match-device" in section else True
        managed = _BOOLEANS.get(section.get("managed", "").lower())
        if meant is not False and managed is not None:
            return managed if meant else None
    return True


def _device_sections(files: Sequence[Mapping[str, Section]]) -> Iterator[Section]:
    """Yield them as they count: those of later files first. One of a name is one, of whichever files.

    [device] itself, which is for all devices, comes last wherever it stands.
    """
    merged: dict[str, Section] = {}
    for file in files:
        for name, section in reversed(list(file.items())):
            if name.startswith("device"):
                merged.setdefault(name, {}).update(section)
    for_all = merged.pop("device", {})
    yield from (*reversed(merged.values()), for_all)


def _split(value: str) -> list[str]:
    return [spec for part in re.split(r"[,;]", value) if (spec := part.strip())]


def _sections(text: str) -> dict[str, Section]:
    sections: dict[str, Section] = {}
    here = sections.setdefault("", {})
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            here = sections.setdefault(line[1:-1], {})
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            here[key.strip()] = value.strip()
    return sections
