"""Which chains nftables has in this network namespace: asked of the kernel, which knows them without any program."""

from __future__ import annotations

import errno
import socket
import struct
from typing import NamedTuple

from flannel_udp.errors import FlannelError
from flannel_udp.host.rtnetlink import Rtnetlink, attributes, text

# linux/netlink.h, linux/netfilter/nfnetlink.h, nf_tables.h
_NETLINK_NETFILTER = 12
_NFT_MSG_NEWCHAIN, _NFT_MSG_GETCHAIN = 10 << 8 | 3, 10 << 8 | 4
_NFTA_CHAIN_TABLE, _NFTA_CHAIN_NAME, _NFTA_CHAIN_HOOK = 1, 3, 4
_NFTA_HOOK_PRIORITY = 2
_NFGENMSG = struct.Struct("=BBH")  # family, version, resource
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_NO_NFTABLES = (errno.EINVAL, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)
"""What a kernel says that has no nf_tables, or no channel to ask for them."""


class Chain(NamedTuple):
    """One of them."""

    family: str
    table: str
    name: str
    priority: int | None
    """Of a base chain, which packets meet by themselves; ``None``: it is none."""


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
    found, hook = _nested(body, _NFGENMSG.size), None
    if _NFTA_CHAIN_HOOK in found:
        hook = _nested(found[_NFTA_CHAIN_HOOK])
    return Chain(
        _FAMILIES.get(body[0], ""),
        text(found[_NFTA_CHAIN_TABLE]),
        text(found[_NFTA_CHAIN_NAME]),
        None if hook is None else int.from_bytes(hook[_NFTA_HOOK_PRIORITY], "big", signed=True),
    )


def _nested(body: bytes, offset: int = 0) -> dict[int, bytes]:
    return {kind & 0x3FFF: value for kind, value in attributes(body, offset)}  # without NLA_F_NESTED and its like
