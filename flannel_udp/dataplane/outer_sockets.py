"""Through which sockets outer packets come and go: UDP's, or raw ones for IP in IP, which has no ports."""

from __future__ import annotations

import socket
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Protocol

from flannel_udp.dataplane.claims import OTHER_PORT, Claims, port_claim
from flannel_udp.dataplane.encapsulation import Encapsulation
from flannel_udp.dataplane.lanes import Lanes, open_lanes
from flannel_udp.dataplane.offload import enable_on_socket
from flannel_udp.dataplane.raw_underlay import check_raw_sockets, open_raw_lanes, open_raw_sockets, protocol_claim
from flannel_udp.dataplane.underlay import check_underlay, open_sockets
from flannel_udp.model import Address
from flannel_udp.options import Offload


class OuterSockets(Protocol):
    """The sockets of one encapsulation at an address of this host: one a worker, and the lanes of each."""

    n_source_ports: int
    """How many ports beside the one that is received on a worker's packets leave from."""

    def claim(self, address: Address, claims: Claims) -> None:
        """Keep other agents of this host away from what is received at the address. Raises `Claimed`."""
        ...

    def let_go(self, address: Address, claims: Claims) -> None:
        """Give up that claim, if it is held."""
        ...

    def open(self, address: Address, n: int) -> list[socket.socket]:
        """Open one socket for each of `n` workers. Raises `FlannelError`; none stays open then."""
        ...

    def check(self, sockets: Sequence[socket.socket], address: Address) -> None:
        """Raise `FlannelError` unless these, which another process has opened, are like ours."""
        ...

    def enable(self, sock: socket.socket, wanted: Offload) -> Offload:
        """Switch on what is wanted and possible on a socket; return what is on."""
        ...

    def open_lanes(self, sockets: Sequence[socket.socket], granted: Offload) -> list[Lanes]:
        """Return the lanes of each worker's socket."""
        ...

    def source_ports(self, lanes: Sequence[Lanes]) -> Set[int]:
        """Return the UDP ports that packets leave from."""
        ...


class UdpSockets:
    """See `OuterSockets`: every host receives on `port`; see `open_sockets` for `without_checksum`."""

    def __init__(self, port: int, n_source_ports: int = 0, *, without_checksum: bool = False) -> None:
        self._port, self.n_source_ports, self._without_checksum = port, n_source_ports, without_checksum

    def claim(self, address: Address, claims: Claims) -> None:
        """See `OuterSockets.claim`."""
        claims.hold(port_claim(address, self._port), OTHER_PORT)

    def let_go(self, address: Address, claims: Claims) -> None:
        """See `OuterSockets.let_go`."""
        claims.let_go(port_claim(address, self._port))

    def open(self, address: Address, n: int) -> list[socket.socket]:
        """See `OuterSockets.open`."""
        return open_sockets(address, self._port, n, without_checksum=self._without_checksum)

    def check(self, sockets: Sequence[socket.socket], address: Address) -> None:
        """See `OuterSockets.check`."""
        check_underlay(sockets, address, self._port)

    def enable(self, sock: socket.socket, wanted: Offload) -> Offload:
        """See `OuterSockets.enable`."""
        return enable_on_socket(sock, wanted)

    def open_lanes(self, sockets: Sequence[socket.socket], granted: Offload) -> list[Lanes]:
        """See `OuterSockets.open_lanes`."""
        return open_lanes(sockets, udp_gro=granted.udp_gro, source_ports=self.n_source_ports)

    def source_ports(self, lanes: Sequence[Lanes]) -> Set[int]:
        """See `OuterSockets.source_ports`."""
        return {lane.getsockname()[1] for each in lanes for lane in each.sockets}


class RawSockets:
    """See `OuterSockets`: protocol 4, which every host receives at its public IP."""

    n_source_ports = 0

    def claim(self, address: Address, claims: Claims) -> None:
        """See `OuterSockets.claim`."""
        claims.hold(protocol_claim(address))

    def let_go(self, address: Address, claims: Claims) -> None:
        """See `OuterSockets.let_go`."""
        claims.let_go(protocol_claim(address))

    def open(self, address: Address, n: int) -> list[socket.socket]:
        """See `OuterSockets.open`."""
        return open_raw_sockets(address, n)

    def check(self, sockets: Sequence[socket.socket], address: Address) -> None:
        """See `OuterSockets.check`."""
        check_raw_sockets(sockets, address)

    def enable(self, sock: socket.socket, wanted: Offload) -> Offload:  # noqa: ARG002 - the protocol's
        """See `OuterSockets.enable`: what arrives has its TOS byte in front; a raw socket cuts and joins nothing."""
        return replace(wanted, udp_segment=False, udp_gro=False)

    def open_lanes(self, sockets: Sequence[socket.socket], granted: Offload) -> list[Lanes]:  # noqa: ARG002 - the protocol's
        """See `OuterSockets.open_lanes`."""
        return open_raw_lanes(sockets)

    def source_ports(self, lanes: Sequence[Lanes]) -> Set[int]:  # noqa: ARG002 - the protocol's
        """See `OuterSockets.source_ports`."""
        return frozenset()


def outer_sockets(encapsulation: Encapsulation, port: int | None, n_source_ports: int) -> OuterSockets:
    """Return what packets of this encapsulation need; `port` is ``None`` where there is none."""
    if encapsulation.kind == "ipip":
        return RawSockets()
    assert port is not None  # noqa: S101 - in datagrams
    # Who may send VXLAN without a checksum over IPv6: RFC 7348 section 5, RFC 6935 section 5.
    return UdpSockets(port, n_source_ports, without_checksum=encapsulation.kind == "vxlan")
