"""Thousands of peers in a lab's etcd, written as fast as it takes them."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from flannel_udp.lab.plan import ETCD_PORT, UNDERLAY_GATEWAY
from flannel_udp.model import Address, Prefix
from tests.support.by_hand import PREFIX

NETWORK = "10.0.0.0/8"
"""The overlay: it has room for all."""
N_PEERS = 10_000
PUTS_A_REQUEST = 100
"""etcd takes 128 (--max-txn-ops)."""

_FIRST_SUBNET = int(IPv4Address("10.64.0.0"))
_FIRST_HOST = int(IPv4Address("198.18.1.0"))
"""RFC 2544's network, 198.18.0.0/15, has room for all as well."""
_FIRST_SUBNET_V6 = int(IPv6Address("fd00:10:244:4000::"))
"""In the lab's own overlay."""
_FIRST_HOST_V6 = int(IPv6Address("2001:db8::1:0"))
"""On the lab's own underlay."""


def subnet_number(number: int) -> IPv4Network:
    """Return the subnet of that number."""
    return IPv4Network((_FIRST_SUBNET + (number << 8), 24))


def host_number(number: int) -> IPv4Address:
    """Return the public IP of the host of that number."""
    return IPv4Address(_FIRST_HOST + number)


def subnet_of(version: int, number: int) -> Prefix:
    """Return the subnet of that number, of one IP version."""
    return subnet_number(number) if version == 4 else IPv6Network((_FIRST_SUBNET_V6 + (number << 64), 64))


def host_of(version: int, number: int) -> Address:
    """Return the public address of the host of that number, likewise."""
    return host_number(number) if version == 4 else IPv6Address(_FIRST_HOST_V6 + number)


class EtcdGateway:
    """The lab's etcd by its HTTP gateway, on one connection: thousands of keys would take etcdctl minutes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.connect((str(UNDERLAY_GATEWAY), ETCD_PORT))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._http = http.client.HTTPConnection("etcd")
        self._http.sock = sock

    def put(self, entries: Iterable[tuple[IPv4Network | str, str]]) -> None:
        """Write entries: subnet, or the key below `subnets/`, and value."""
        puts = [{"requestPut": _texts(subnet, value)} for subnet, value in entries]
        self._http.request("POST", "/v3/kv/txn", json.dumps({"success": puts}))
        answer = self._http.getresponse()
        said = answer.read().decode()
        assert answer.status == http.HTTPStatus.OK, said

    def put_all(self, entries: Iterable[tuple[IPv4Network | str, str]]) -> None:
        """Write any number of entries, one transaction a hundred."""
        todo = list(entries)
        for first in range(0, len(todo), PUTS_A_REQUEST):
            self.put(todo[first : first + PUTS_A_REQUEST])


def _texts(subnet: IPv4Network | str, value: str) -> dict[str, str]:
    key = f"{PREFIX}/subnets/{str(subnet).replace('/', '-')}"
    return {name: base64.b64encode(text.encode()).decode() for name, text in (("key", key), ("value", value))}
