"""The contender wireguard-go: WireGuard's packet path in user space, in Go, which encrypts what it carries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from flannel_udp.bench.contenders import SUBNETS, Pair, Where, ends, two_hosts
from flannel_udp.lab.node import Host
from flannel_udp.lab.peer_program import Peer, endpoint
from flannel_udp.lab.runner import Runner
from flannel_udp.model import Prefix

NAME = "wireguard-go"
_PORT = 51820
_OVERHEAD_BYTES = {4: 60, 6: 80}
"""By IP version: outer header 20 or 40, UDP 8, WireGuard's header 16 and tag 16."""


class _WireGuard(Peer):
    """wireguard-go on one host, which has a key of its own."""

    def __init__(self, host: Host, subnet: Prefix) -> None:
        # Its sockets are in a folder of the machine, not of the namespace: each device needs a name of its own.
        device = f"wg{os.getpid()}{host.name}"
        overhead = _OVERHEAD_BYTES[subnet.version]
        super().__init__(host, subnet, None, [NAME, "-f", device], device=device, overhead=overhead)
        self._private_key = _wg("genkey")

    def connect(self, other: _WireGuard) -> None:
        """Let packets for the other's subnet travel to it, and take its own."""
        self.host.run(
            [
                *("wg", "set", self.device, "listen-port", str(_PORT), "private-key", "/dev/stdin"),
                *("peer", _wg("pubkey", other._private_key), "allowed-ips", str(other.subnet)),
                *("endpoint", endpoint(other.host.underlay_of(self.subnet.version), _PORT)),
            ],
            stdin=self._private_key,
        )


def _wg(command: str, stdin: str = "") -> str:
    return Runner().run(["wg", command], stdin=stdin).stdout.strip()


@contextmanager
def open_wireguard(where: Where) -> Iterator[Pair]:
    """wireguard-go on both hosts, each the other's only peer."""
    subnets = SUBNETS[where.version]
    with (
        two_hosts(NAME, where) as hosts,
        _WireGuard(hosts[0], subnets[0]) as near,
        _WireGuard(hosts[1], subnets[1]) as far,
    ):
        near.connect(far)
        far.connect(near)
        yield ends(NAME, hosts, subnets, near.mtu, (near.process.pid, far.process.pid))
