"""Between two runs under systemd: the packet path's descriptors wait in its store, and the next run goes on with them.

flannel0, with its address, its route and what waits in its queue, lives through a restart then.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from flannel_udp.admin import notify
from flannel_udp.backend.protocol import Backend, Context, Handed, Network
from flannel_udp.dataplane.tunnel import device_of
from flannel_udp.dataplane.underlay import bound_to, open_udp
from flannel_udp.errors import FlannelError
from flannel_udp.model import Address

logger = logging.getLogger(__name__)

FORGET_S = 5.0
"""How long systemd may take to close what it keeps; if it takes longer, starting afresh may fail."""
FORGET_POLL_S = 0.01
_Held = tuple[str, Callable[[], bool]]
"""What is in use, and whether it is so still."""


async def open_or_resume(backend: Backend, context: Context, stored: Mapping[str, int]) -> Network:
    """Return the network on the descriptors that systemd kept since the last run; a fresh one if that cannot be.

    Raises `FlannelError`.
    """
    if stored:
        held = [_held_by(fd) for fd in stored.values()]
        try:
            network = await backend.open(replace(context, handed=Handed(stored)))
        except FlannelError as unfit:
            logger.warning("what systemd kept from the last run is of no use, opening afresh: %s", unfit)
            await _let_systemd_forget(stored, held)
        else:
            logger.info("going on with %s as the last run left it", network.facts().device)
            return network
    return await backend.open(context)


async def _let_systemd_forget(names: Collection[str], held: Iterable[_Held]) -> None:
    """Have systemd close its copies too, and wait for it: until then the port and flannel0 are in use."""
    heard = await notify.forget_descriptors(names, FORGET_S)
    until_s = time.monotonic() + FORGET_S
    for what, is_held in held:
        while is_held():  # systemd closes them in a process of its own, some time after it has heard
            if time.monotonic() >= until_s:
                systemd = "systemd does not close" if heard else "NOTIFY_SOCKET does not answer, so nobody closes"
                logger.warning("%s what it kept, and %s is still in use", systemd, what)
                return
            await asyncio.sleep(FORGET_POLL_S)


def _held_by(fd: int) -> _Held:
    """Return what a descriptor keeps in use, and how to find out whether it is so still."""
    nothing = "nothing", lambda: False
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.type != socket.SOCK_DGRAM:
                return nothing
            address, port = bound_to(sock)
        return f"UDP port {port} on {address}", lambda: _is_bound(address, port)
    try:
        name = device_of(fd)
        index = socket.if_nametoindex(name or "")
    except (FlannelError, OSError):  # no device, or deleted
        return nothing
    return str(name), lambda: _is_there(index)


def _is_bound(address: Address, port: int) -> bool:
    with open_udp(address.version) as probe:
        try:
            probe.bind((str(address), port))
        except OSError as failed:
            return failed.errno == errno.EADDRINUSE
    return False


def _is_there(index: int) -> bool:
    try:
        socket.if_indextoname(index)
    except OSError:
        return False
    return True


class Store:
    """What systemd keeps of a network; `update` it whenever descriptors may have been replaced."""

    def __init__(self, network: Network, stored: Mapping[str, int]) -> None:
        self._network = network
        self._replaced: int | None = None  # how often descriptors had been replaced when systemd got them
        self._names = set(stored)

    def update(self) -> None:
        """Let systemd keep the descriptors that there are now, and no others; what it has not got it is told again."""
        path = self._network.transferable
        replaced, descriptors = (0, {}) if path is None else (path.generation[0], path.descriptors())
        if replaced != self._replaced:
            forget = self._names - descriptors.keys()
            self._names |= descriptors.keys()
            if notify.store_descriptors(descriptors, forget):
                self._replaced, self._names = replaced, set(descriptors)
