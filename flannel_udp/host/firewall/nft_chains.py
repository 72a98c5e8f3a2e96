"""Which chains nftables has in this network namespace: asked of the kernel, which knows them without any program."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flannel_udp.errors import FlannelError
from flannel_udp.host.rtnetlink import Rtnetlink, attributes, text

# linux/netlink.h, linux/netfilter/nfnetlink.h, nf_tables.h
_NETLINK_NETFILTER = 12
_NFT_MSG_NEWCHAIN, _NFT_MSG_GETCHAIN = 10 << 8 | 3, 10 << 8 | 4
_NFTA_CHAIN_TABLE, _NFTA_CHAIN_NAME, _NFTA_CHAIN_HOOK = 1, 3, 4
_NFTA_HOOK_PRIORITY, _NFTA_HOOK_DEV, _NFTA_HOOK_DEVS = 2, 3, 4
_NFTA_DEVICE_NAME, _NFTA_DEVICE_PREFIX = 1, 2
_ENDS = {_NFTA_DEVICE_NAME: "", _NFTA_DEVICE_PREFIX: "*"}
_NLA_TYPE_MASK = 0x3FFF
_NFGENMSG = struct.Struct("=BBH")  # family, version, resource
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_NO_NFTABLES = (errno.EINVAL, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)
"""What a kernel says that has no nf_tables, or no channel to ask for them."""


class Chain(NamedTuple):
    """One of them, as the kernel says, or nft."""

    family: str
    table: str
    name: str
    priority: int | None
    """Of a base chain, which packets meet by themselves; ``None``: it is none."""
    devices: Sequence[str] = ()
    """Those whose packets it meets, where it is at such a hook (ingress); a * at the end stands for anything."""


def list_chains() -> list[Chain]:
    """Return all of them; none where the kernel has no nftables. Blocks. Raises `FlannelError`."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as netlink:
            told = Rtnetlink(netlink).dump(_NFT_MSG_GETCHAIN, _NFGENMSG.pack(0, 0, 0), _NFT_MSG_NEWCHAIN)
            return [_parse(body) for body in told]
    except OSError as error:
        if error.errno in _NO_NFTABLES:
            return []
        raise FlannelError(f"asking for nftables' chains: {error.strerror}") from error


def _parse(body: bytes) -> Chain:
    found = dict(_inside(body, _NFGENMSG.size))
    chain = Chain(
        _FAMILIES.get(body[0], ""), text(found[_NFTA_CHAIN_TABLE]), text(found[_NFTA_CHAIN_NAME]), priority=None
    )
    if _NFTA_CHAIN_HOOK not in found:
        return chain
    hook = dict(_inside(found[_NFTA_CHAIN_HOOK]))
    devices = [text(name) + _ENDS[kind] for kind, name in _inside(hook.get(_NFTA_HOOK_DEVS, b"")) if kind in _ENDS]
    if not devices and _NFTA_HOOK_DEV in hook:  # Linux before 5.5, where it is one
        devices = [text(hook[_NFTA_HOOK_DEV])]
    return chain._replace(priority=int.from_bytes(hook[_NFTA_HOOK_PRIORITY], "big", signed=True), devices=devices)


def _inside(body: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    return ((kind & _NLA_TYPE_MASK, value) for kind, value in attributes(body, offset))
