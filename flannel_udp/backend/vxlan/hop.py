"""What a VXLAN host says of itself in its lease: the MAC address of its device.

`BackendData` is that of flannel.VNI, which carries IPv4, `BackendV6Data` that of flannel-v6.VNI.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from flannel_udp.model import LeaseAttrs

TYPE = "vxlan"
"""The backend's name, in the network configuration and in leases."""

DATA_KEYS = {4: "BackendData", 6: "BackendV6Data"}
"""Where in a lease it is, by IP version."""

_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_MULTICAST, _LOCAL = 1 << 40, 2 << 40  # the two lowest bits of the first byte (IEEE 802 section 8.2)


@dataclass(frozen=True, slots=True)
class VxlanHop:
    """A peer's end of the tunnel."""

    vtep_mac: int
    """48 bits; the first byte on the wire is the highest."""
    vni: int | None = None
    """``None`` where its lease does not say."""


def read_vxlan_hop(attrs: LeaseAttrs, version: int = 4) -> VxlanHop:
    """Return a host's end of the tunnel of that IP version. Whichever its VNI, it is a peer, as with flannel.

    Raises `ValueError` with one line.
    """
    data, key = attrs.data_of(version), DATA_KEYS[version]
    if not isinstance(data, Mapping):
        raise ValueError(f"its {key} {_shown(data)} is no object with a VtepMAC")
    # Go's encoding/json, by which flanneld reads, takes a name in any case, the last one of several.
    fields = {str(key).casefold(): value for key, value in data.items()}
    said, vni = fields.get("vtepmac"), fields.get("vni")
    if said is None:
        raise ValueError(f"its {key} has no VtepMAC")
    if not isinstance(said, str):
        raise ValueError(f"its VtepMAC {_shown(said)} is no string")
    mac = parse_mac(said)
    if not mac:
        raise ValueError(f"its VtepMAC {said} is all zeros")
    if mac & _MULTICAST:  # broadcast is one of them
        raise ValueError(f"its VtepMAC {said} is a group's address, no host's")
    return VxlanHop(mac, vni if isinstance(vni, int) else None)


def vxlan_attrs(vni: int, mac: int, version: int = 4) -> LeaseAttrs:
    """Return what a host's lease says of its device of that IP version, in flannel's order, beside the public IP."""
    data = {"VNI": vni, "VtepMAC": format_mac(mac)}
    if version == 4:
        return LeaseAttrs(None, backend_type=TYPE, backend_data=data)
    return LeaseAttrs(None, backend_type=TYPE, backend_v6_data=data)


def mac_of(entry: LeaseAttrs | None, version: int = 4) -> int | None:
    """Return the MAC address by which other hosts have known us, if our entry says one."""
    if entry is None or entry.backend_type != TYPE:
        return None
    try:
        return read_vxlan_hop(entry, version).vtep_mac
    except ValueError:
        return None


def format_mac(mac: int) -> str:
    """Return a MAC address as flannel writes it: ``8e:64:7c:7f:e7:c9``."""
    return ":".join(f"{byte:02x}" for byte in mac.to_bytes(6, "big"))


def parse_mac(text: str) -> int:
    """Return the MAC address that a text stands for, in either case. Raises `ValueError` with one line."""
    if _MAC.fullmatch(text) is None:
        raise ValueError(f"{_shown(text)} is no MAC address such as 8e:64:7c:7f:e7:c9")
    return int(text.replace(":", ""), 16)


def random_mac() -> int:
    """Return a MAC address that no manufacturer gives: one host's, locally administered (IEEE 802 section 8.2)."""
    return (secrets.randbits(48) | _LOCAL) & ~_MULTICAST


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
