"""Lanes: sockets of one address, each with a send buffer of its own, through which packets leave.

The kernel charges a packet to its socket until the network card has it, or somebody drops it. With one socket for all,
what waits for a slow peer, or for one whose hardware address nobody tells, fills the buffer for all peers.

They have the port of the workers' sockets. All sockets of a port are in one group (SO_REUSEPORT); a program of ours
lets the kernel choose among the first ones only, those of the workers: no lane ever receives. Or they have some source
ports of the kernel's choice (`--source-ports`), by which the underlay tells flows apart, and a filter lets nothing in.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence

from flannel_udp.dataplane.offload import SOL_UDP, UDP_GRO
from flannel_udp.dataplane.socket_filter import (
    LOAD_WORD,
    MODULO,
    RETURN_A,
    SO_ATTACH_REUSEPORT_CBPF,
    SOURCE_ADDRESS,
    SOURCE_ADDRESS6_END,
    Step,
    attach_program,
    let_nothing_in,
)
from flannel_udp.dataplane.underlay import BUFFER_BYTES, bound_to, open_udp, set_send_buffer
from flannel_udp.model import Address

logger = logging.getLogger(__name__)

LANES = 64
"""Of all workers together; more workers than that have one each."""
LANE_BYTES = 192 << 10
"""A lane's send buffer, without the kernel's own bookkeeping: 2 ms at 1 Gbit/s."""


class Lanes:
    """The sockets that one worker's packets leave by."""

    def __init__(self, udp: socket.socket, further: Sequence[socket.socket] = (), n_ports: int = 0) -> None:
        self._further = further
        self._own = () if n_ports else (udp,)  # one with another port only receives
        self.n_ports = n_ports or 1
        """How many source ports they have, in turn: all packets of a flow leave from one of them."""

    @property
    def sockets(self) -> list[socket.socket]:
        """All of them."""
        return [*self._own, *self._further]

    def filenos(self) -> list[int]:
        """Return their descriptors."""
        return [lane.fileno() for lane in self.sockets]

    def close(self) -> None:
        """Close all but the worker's socket."""
        for lane in self._further:
            lane.close()


def lanes_per_worker(n_workers: int) -> int:
    """Return how many lanes each worker has, its own socket among them: a power of two, one at least."""
    return 1 << max(1, LANES // n_workers).bit_length() - 1


def open_lanes(sockets: Sequence[socket.socket], *, udp_gro: bool, source_ports: int = 0) -> list[Lanes]:
    """Return the lanes of each worker's socket; it alone where the kernel does not allow more.

    `udp_gro`: whether the sockets have UDP_GRO. Lanes of the same port must have what they have, although they never
    receive: the kernel asks one of the group before it joins datagrams, and does not ask our program which (linux,
    udp4_gro_lookup_skb). With `source_ports`, a power of two, the lanes of each worker have so many ports of the
    kernel's choice.
    """
    per_worker = lanes_per_worker(len(sockets))
    n_ports = min(source_ports, per_worker)
    opened: list[Lanes] = []
    try:
        if not n_ports:
            for udp in sockets:
                set_send_buffer(udp, LANE_BYTES)
            _receive_with_first(sockets[0], len(sockets))
        for udp in sockets:
            further: list[socket.socket] = []
            opened.append(Lanes(udp, further, n_ports))
            address, port = bound_to(udp)
            while len(further) < n_ports:
                further.append(_open_lane(address, 0, udp_gro=False, deaf=True))
            ports = [lane.getsockname()[1] for lane in further] or [port]
            while len(further) < per_worker - (not n_ports):
                port = ports[len(further) % len(ports)]
                further.append(_open_lane(address, port, udp_gro=udp_gro and not n_ports, deaf=n_ports > 0))
    except OSError as failed:
        logger.warning("all peers share one send buffer, a slow one may fill it: %s", failed.strerror)
        close_lanes(opened)
        for udp in sockets:
            set_send_buffer(udp, BUFFER_BYTES)
        return [Lanes(udp) for udp in sockets]
    return opened


def close_lanes(opened: Sequence[Lanes]) -> None:
    """Close them all."""
    for lanes in opened:
        lanes.close()


def _open_lane(address: Address, port: int, *, udp_gro: bool, deaf: bool) -> socket.socket:
    """Open a socket at that address and port; a `deaf` one lets nothing in."""
    lane = open_udp(address.version)
    try:
        set_send_buffer(lane, LANE_BYTES)
        if udp_gro:
            lane.setsockopt(SOL_UDP, UDP_GRO, 1)
        if deaf:
            let_nothing_in(lane)
        if port:
            lane.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        lane.bind((str(address), port))
        # After it where the kernel chooses the port: it takes one that others of our user share for a free one, too.
        lane.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        lane.close()
        raise
    return lane


def _receive_with_first(udp: socket.socket, n: int) -> None:
    """Let the group's first `n` sockets receive: each what comes from addresses that leave its number, modulo `n`."""
    source = SOURCE_ADDRESS if udp.family == socket.AF_INET else SOURCE_ADDRESS6_END
    program = [Step(LOAD_WORD, source), Step(MODULO, n), Step(RETURN_A)]
    attach_program(udp, SO_ATTACH_REUSEPORT_CBPF, program)
