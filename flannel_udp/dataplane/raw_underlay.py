"""Raw sockets for IP in IP (RFC 2003): what leaves and arrives is an IPv4 packet of protocol 4, whose payload is ours.

The kernel makes the outer header of what is sent, and hands over what arrives with it, fragments put together (raw(7)).
There is no port, and so no group of sockets that share one. Two things follow:

- every raw socket of the protocol gets a copy of every packet. With several workers each one's socket has a filter, and
  takes what comes from addresses that leave its number, modulo the number of workers: the same as with UDP
- a lane must not be among the receivers, whatever its filter says: the copy is made first. The kernel has a raw socket
  in its table of receivers from the moment it is made until connect(2) is told to dissolve an association (AF_UNSPEC;
  linux, net/ipv4/udp.c, __udp_disconnect). It sends as before.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from flannel_udp.dataplane.lanes import LANE_BYTES, Lanes, close_lanes, lanes_per_worker
from flannel_udp.dataplane.socket_filter import (
    JUMP_EQUAL,
    LOAD_WORD,
    MODULO,
    RETURN_CONSTANT,
    SO_ATTACH_FILTER,
    SOURCE_ADDRESS,
    WHOLE,
    Step,
    attach_program,
    let_nothing_in,
)
from flannel_udp.dataplane.underlay import (
    BUFFER_BYTES,
    IP_MTU_DISCOVER,
    IP_PMTUDISC_DO,
    close_sockets,
    set_receive_buffer,
    set_send_buffer,
)
from flannel_udp.errors import FlannelError
from flannel_udp.model import Address

logger = logging.getLogger(__name__)

PROTOCOL = socket.IPPROTO_IPIP
"""4, in an outer header: what follows is an IPv4 packet."""

RAW_LANE_BYTES = LANE_BYTES // 2
"""Of a raw socket's send buffer the kernel lets twice as much wait as of a UDP socket's (__ip_append_data)."""

_RECEIVERS = Path("/proc/thread-self/net/raw")  # of the network namespace that this thread is in
_PACKET_BYTES = 1  # of what nobody reads
_SOCKADDR_BYTES = 16


def protocol_claim(address: Address) -> str:
    """Return what the claim of IP in IP at an address of this host is called."""
    return f"IP protocol {PROTOCOL} (IPIP) on {address}"


def open_raw_sockets(address: Address, n: int) -> list[socket.socket]:
    """Open `n` raw sockets of the tunnel, one a worker. Raises FlannelError; none stays open then."""
    _warn_of_other_receivers(address)
    sockets: list[socket.socket] = []
    try:
        for number in range(n):
            sockets.append(_open_receiver(address, number, n))
    except OSError as failed:
        close_sockets(sockets)
        raise FlannelError(_explain(address, failed)) from failed
    return sockets


def check_raw_sockets(sockets: Sequence[socket.socket], address: Address) -> None:
    """Raise FlannelError unless these sockets, which another process has opened, are like ours."""
    for raw in sockets:
        found = f"{raw.type.name} of protocol {raw.proto} at {raw.getsockname()[0]}"
        if found != f"SOCK_RAW of protocol {PROTOCOL} at {address}":
            raise FlannelError(f"a socket that was handed over is a {found}, not one for IPIP at {address}")


def open_raw_lanes(sockets: Sequence[socket.socket]) -> list[Lanes]:
    """Return the lanes of each worker's socket, it among them; it alone where the kernel does not allow more."""
    per_worker = lanes_per_worker(len(sockets))
    opened: list[Lanes] = []
    try:
        for raw in sockets:
            set_send_buffer(raw, RAW_LANE_BYTES)
        for raw in sockets:
            further: list[socket.socket] = []
            opened.append(Lanes(raw, further))
            while len(further) < per_worker - 1:
                further.append(_open_lane(raw.getsockname()[0]))
    except OSError as failed:
        logger.warning("all peers share one send buffer, a slow one may fill it: %s", failed.strerror)
        close_lanes(opened)
        for raw in sockets:
            set_send_buffer(raw, BUFFER_BYTES)
        return [Lanes(raw) for raw in sockets]
    return opened


def _open() -> socket.socket:
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, PROTOCOL)
    # Never let the kernel fragment behind our back: the engine learns the path's MTU from EMSGSIZE.
    raw.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    return raw


def _open_receiver(address: Address, number: int, n: int) -> socket.socket:
    """Open the socket of worker `number` of `n`. Raises `OSError`."""
    raw = _open()
    try:
        if n > 1:
            attach_program(raw, SO_ATTACH_FILTER, _sources_of(number, n))
        set_receive_buffer(raw, BUFFER_BYTES)
        raw.bind((str(address), 0))
        _empty(raw)
    except OSError:
        raw.close()
        raise
    return raw


def _sources_of(number: int, n: int) -> list[Step]:
    """Return what lets in packets of source addresses that leave this number, modulo `n`."""
    return [
        Step(LOAD_WORD, SOURCE_ADDRESS),
        Step(MODULO, n),
        Step(JUMP_EQUAL, number, skip_if_not=1),
        Step(RETURN_CONSTANT, WHOLE),
        Step(RETURN_CONSTANT, 0),
    ]


def _empty(raw: socket.socket) -> None:
    """Forget what came before filter and address were there: another worker has got it, or it was for nobody."""
    try:
        while True:
            raw.recv(_PACKET_BYTES)
    except BlockingIOError:
        pass


def _open_lane(address: str) -> socket.socket:
    lane = _open()
    try:
        let_nothing_in(lane)  # as long as it is among the receivers, and for kernels that keep it there
        _dissolve_association(lane)
        set_send_buffer(lane, RAW_LANE_BYTES)
        lane.bind((address, 0))
    except OSError:
        lane.close()
        raise
    return lane


def _dissolve_association(raw: socket.socket) -> None:
    """Call connect(2) with AF_UNSPEC, which socket.connect cannot."""
    if ctypes.CDLL(None, use_errno=True).connect(raw.fileno(), bytes(_SOCKADDR_BYTES), _SOCKADDR_BYTES) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _warn_of_other_receivers(address: Address) -> None:
    """Say that another program has such a socket: the kernel refuses us nothing, and hands each of us every packet."""
    try:
        lines = _RECEIVERS.read_text().splitlines()[1:]
    except OSError:  # no /proc: nobody says
        return
    if any(_local_end(line) in ((0, PROTOCOL), (int(address), PROTOCOL)) for line in lines):
        logger.warning(
            "another program has a raw socket for IPIP at %s, too, and gets what peers send: `ss -wanp` names it",
            address,
        )


def _local_end(line: str) -> tuple[int, int]:
    """Return address and protocol of a line of /proc/net/raw; the address is printed as a number of the host's."""
    address, _, protocol = line.split()[1].partition(":")
    return socket.ntohl(int(address, 16)), int(protocol, 16)


def _explain(address: Address, failed: OSError) -> str:
    if failed.errno in (errno.EPERM, errno.EACCES):
        return "cannot open a raw socket for IPIP: needs CAP_NET_RAW; run as root"
    if failed.errno == errno.EADDRNOTAVAIL:
        return f"cannot bind to {address}: this host does not have that address"
    return f"cannot open a raw socket for IPIP at {address}: {failed.strerror}"
