"""Whether a network manager of this host takes the overlay's device for its own, and its addresses and routes away."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from flannel_udp.doctor.container import is_contained
from flannel_udp.doctor.finding import Finding, fault, ok, skipped
from flannel_udp.doctor.known import Known
from flannel_udp.host.links import device_named
from flannel_udp.host.rtnetlink import open_rtnetlink

_NETWORK_MANAGER = tuple(
    Path(root) / "NetworkManager" for root in ("/etc", "/run", "/usr/lib", "/usr/local/lib")
)  # each may have NetworkManager.conf and conf.d
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
    found = []
    if "NetworkManager" in running:
        found.append(judge_network_manager(_texts(_NETWORK_MANAGER), devices[0]))
    if "connmand" in running:
        found.append(judge_connman("\n".join(_read(_CONNMAN)), devices[0]))
    found += [judge_networkd(_link_state(device), device) for device in devices]
    faults = [item for item in found if item is not None]
    yield from faults
    if not faults:
        yield ok(question, f"none has its hands on {' and '.join(devices)}")


def judge_network_manager(configurations: Iterable[str], device: str) -> Finding | None:
    """Return a fault unless one of the configuration's files names our devices as unmanaged."""
    for text in configurations:
        for value in re.findall(r"^\s*unmanaged-devices\s*\+?=(.*)$", text, re.MULTILINE):
            if "flannel" in value:
                return None
    return fault(
        "network managers",
        f"NetworkManager runs and is not told to leave {device} alone: it may take away its address and route",
        r"printf '[keyfile]\nunmanaged-devices=interface-name:flannel*;interface-name:cni*;interface-name:veth*\n'"
        " > /etc/NetworkManager/conf.d/flannel.conf && systemctl reload NetworkManager",
    )


def judge_connman(configuration: str, device: str) -> Finding | None:
    """Return a fault unless the configuration keeps its hands off our devices."""
    for value in re.findall(r"^\s*NetworkInterfaceBlacklist\s*=(.*)$", configuration, re.MULTILINE):
        if "flannel" in value:
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


def _texts(folders: Iterable[Path]) -> Iterator[str]:
    for folder in folders:
        for path in (folder / "NetworkManager.conf", *sorted((folder / "conf.d").glob("*.conf"))):
            yield from _read(path)


def _link_state(name: str) -> str:
    with open_rtnetlink("looking for the overlay's device") as netlink:
        link = device_named(netlink, name)
    return "" if link is None else "\n".join(_read(_NETWORKD_LINKS / str(link.index)))


def _read(path: Path) -> list[str]:
    """Return the file's text, nothing where there is none."""
    try:
        return [path.read_text(errors="replace")]
    except OSError:
        return []
