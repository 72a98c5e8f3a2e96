"""Whether a network manager of this host takes the overlay's device for its own, and its addresses and routes away."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from flannel_udp.doctor.container import is_contained
from flannel_udp.doctor.finding import Finding, fault, note, ok, skipped
from flannel_udp.doctor.known import Known
from flannel_udp.doctor.network_manager import Candidate, configuration_files, leaves_alone
from flannel_udp.host.links import Device, device_named
from flannel_udp.host.rtnetlink import open_rtnetlink

_CONNMAN = Path("/etc/connman/main.conf")
_NETWORKD_LINKS = Path("/run/systemd/netif/links")


def ask_managers(known: Known) -> Iterator[Finding]:
    """Ask of each manager that runs."""
    question, backend = "network managers", known.backend
    devices = list(dict.fromkeys(family.device for family in known.families if family.device is not None))
    if not devices or devices == [known.interface]:
        yield skipped(question, f"the backend {backend} has no device of its own")
        return
    if not _in_first_namespace():
        yield skipped(question, "this is a network namespace beside the host's own")
        return
    if is_contained():
        yield skipped(question, "the host's own are not seen from inside this container: ask on the host")
        return
    running = _running({"NetworkManager", "connmand"})
    found: list[Finding | None] = []
    links = {device: _link(device) for device in devices}
    if "NetworkManager" in running:
        texts = [text for path in configuration_files() for text in _read(path)]
        found += [judge_network_manager(texts, device, _kind(link, backend)) for device, link in links.items()]
    if "connmand" in running:
        found += [judge_connman("\n".join(_read(_CONNMAN)), device) for device in devices]
    found += [judge_networkd(_link_state(link), device) for device, link in links.items()]
    faults = [item for item in found if item is not None]
    yield from faults
    if not faults:
        yield ok(question, f"none has its hands on {' and '.join(devices)}")


def judge_network_manager(texts: Sequence[str], device: str, kind: str) -> Finding | None:
    """Return what is wrong unless the configuration's files, in the order of reading, have the device left alone.

    `kind` is the kernel's of the device, empty where that is not known.
    """
    alone = leaves_alone(texts, Candidate(device, kind))
    if alone:
        return None
    if alone is None:
        what = f"NetworkManager runs, and whether it leaves {device} alone depends on what doctor does not know of it"
        return note("network managers", what, f"nmcli -f GENERAL.STATE device show {device} has to say unmanaged")
    return fault(
        "network managers",
        f"NetworkManager runs and is not told to leave {device} alone: it may take away its address and route",
        r"printf '[keyfile]\nunmanaged-devices=interface-name:flannel*;interface-name:cni*;interface-name:veth*\n'"
        " > /etc/NetworkManager/conf.d/flannel.conf && systemctl reload NetworkManager",
    )


def judge_connman(configuration: str, device: str) -> Finding | None:
    """Return a fault unless the configuration keeps its hands off our devices."""
    for value in re.findall(r"^\s*NetworkInterfaceBlacklist\s*=(.*)$", configuration, re.MULTILINE):
        if any(device.startswith(begins) for part in value.split(",") if (begins := part.strip())):
            return None
    return fault(
        "network managers",
        f"connman runs and is not told to leave {device} alone: it may take away its address and route",
        f"add flannel,cni,veth to NetworkInterfaceBlacklist in {_CONNMAN}, then restart connman",
    )


def judge_networkd(state: str, device: str) -> Finding | None:
    """Return a fault if systemd-networkd configures the device; `state` is its file about it."""
    found = re.search(r"^ADMIN_STATE=(\w+)$", state, re.MULTILINE)
    if found is None or found[1] == "unmanaged":
        return None
    return fault(
        "network managers",
        f"systemd-networkd manages {device} (it is {found[1]}): it takes away what it does not know",
        r"printf '[Match]\nName=flannel*\n[Link]\nUnmanaged=yes\n' > /etc/systemd/network/00-flannel.network"
        " && networkctl reload",
    )


def _in_first_namespace() -> bool:
    try:
        return Path("/proc/1/ns/net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
    except OSError:
        return True


def _running(names: set[str]) -> set[str]:
    return names & {text.strip() for path in Path("/proc").glob("[0-9]*/comm") for text in _read(path)}


def _link(name: str) -> Device | None:
    with open_rtnetlink("looking for the overlay's device") as netlink:
        return device_named(netlink, name)


def _kind(link: Device | None, backend: str) -> str:
    if link is None:
        return "tun" if backend == "udp" else ""  # before there is an agent
    return link.kind


def _link_state(link: Device | None) -> str:
    return "" if link is None else "\n".join(_read(_NETWORKD_LINKS / str(link.index)))


def _read(path: Path) -> list[str]:
    """Return the file's text, nothing where there is none."""
    try:
        return [path.read_text(errors="replace")]
    except OSError:
        return []
