"""The options of the backend vxlan in the network configuration, and the MTU that they leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flannel_udp.backend.mtu import MTU_MIN_BYTES, MTU_MIN_V6_BYTES, MtuOption
from flannel_udp.errors import ConfigError, FlannelError
from flannel_udp.host.vxlan_devices import device_name
from flannel_udp.model import Interface
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader

OPTION_KEYS = ("VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting")
DEFAULT_VNI = 1
VNI_MAX = (1 << 24) - 1
"""24 bits (RFC 7348 section 5). 0 is no network's: for flannel's device name and the kernel it stands for "none"."""
DEFAULT_PORT = 8472
"""Linux's own, from before 4789 was assigned (RFC 7348 section 5)."""
OVERHEAD_BYTES = 50
"""Outer IPv4 header 20, UDP 8, VXLAN 8, inner Ethernet 14."""
OVERHEAD_V6_BYTES = 70
"""With an outer IPv6 header, 40."""
MTU_MAX_BYTES = 65_535 - OVERHEAD_BYTES
"""Whatever the interface allows (lo: 65,536), the outer packet is no longer (RFC 791 section 3.1)."""


def read_vxlan_options(reader: ObjectReader) -> Mapping[str, Any]:
    """Read them. Whether the MTU fits its interface is for each host to say, see `vxlan_mtu`."""
    vni, port, mtu = reader.integer("VNI"), reader.integer("Port"), reader.integer("MTU")
    if vni is not None and not 1 <= vni <= VNI_MAX:
        reader.wrong("VNI", f"1 to {VNI_MAX}")
    if port is not None and not 1 <= port <= 65_535:
        reader.wrong("Port", "1 to 65535")
    if mtu is not None and not MTU_MIN_BYTES + OVERHEAD_BYTES <= mtu <= MTU_MAX_BYTES + OVERHEAD_BYTES:
        reader.wrong("MTU", f"{MTU_MIN_BYTES + OVERHEAD_BYTES} to {MTU_MAX_BYTES + OVERHEAD_BYTES}")
    if reader.boolean("GBP", default=False):
        reader.fault("GBP", "Backend.GBP is true: this agent carries no group policies (VXLAN GBP): leave it out")
    if reader.boolean("Learning", default=False):
        reader.warnings.append("Backend.Learning is ignored: who has which MAC address is in the leases")
    options = {
        "VNI": DEFAULT_VNI if vni is None else vni,
        "Port": DEFAULT_PORT if port is None else port,
        "DirectRouting": reader.boolean("DirectRouting", default=False),
    }
    return options if mtu is None else {**options, "MTU": mtu}


def vxlan_mtu(external: Interface, config: NetworkConfig) -> int:
    """Return the overlay's MTU in bytes: what the headers leave of Backend.MTU or else of the interface's.

    Backend.MTU is the underlay's. Raises `ConfigError` if it does not fit into the interface's, `FlannelError` if there
    is no room at all, or not for IPv6 where that is on.
    """
    wanted = config.backend.options.get("MTU")
    if wanted is not None and wanted > external.mtu:
        larger = f"Backend.MTU is {wanted}: larger than the MTU of {external.name}, {external.mtu}"
        raise ConfigError([f"{larger}: lower the one or raise the other"])
    underlay, overhead = external.mtu if wanted is None else wanted, overhead_bytes(config)
    mtu = min(underlay - overhead, MTU_MAX_BYTES)
    if config.v6 is not None and mtu < MTU_MIN_V6_BYTES:
        which = f"the MTU of {external.name}, {underlay}," if wanted is None else f"Backend.MTU, {underlay},"
        needs = f"IPv6 needs {MTU_MIN_V6_BYTES} (RFC 8200 section 5)"
        raise FlannelError(f"{which} leaves {mtu} in a tunnel, and {needs}: raise it to {MTU_MIN_V6_BYTES + overhead}")
    if mtu < MTU_MIN_BYTES:
        raise FlannelError(f"the MTU of {external.name}, {external.mtu}, leaves no room for a tunnel: raise it")
    return mtu


def overhead_bytes(config: NetworkConfig) -> int:
    """Return what stands in front of an inner packet: pods have one MTU for both families, so the longer headers."""
    return OVERHEAD_BYTES if config.v6 is None else OVERHEAD_V6_BYTES


def mtu_option(config: NetworkConfig) -> MtuOption:
    """Return what Backend.MTU means: it is the underlay's, as to flanneld."""
    return MtuOption({4: OVERHEAD_BYTES, 6: OVERHEAD_V6_BYTES}, config.versions, of_underlay=True)


def vxlan_device(config: NetworkConfig, version: int = 4) -> str:
    """Return the name of the device of an IP version, with either datapath."""
    return device_name(config.backend.options["VNI"], version)
