"""Who carries packets where the kernel may or may not be able to: `--datapath`, answered by trying."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from flannel_udp.backend.protocol import Context, Network
from flannel_udp.errors import FlannelError
from flannel_udp.host.links import knows_kind
from flannel_udp.host.rtnetlink import open_rtnetlink

KERNEL, USERSPACE = "kernel", "userspace"


class KindUnknown(FlannelError):
    """The kernel has no devices of that kind, and no module for it: nothing else is meant by it."""


def expects_kernel(datapath: str, kind: str, impossible: Mapping[int, bytes]) -> bool:
    """Tell whether it will be the kernel, before anything is opened; `impossible`: see `links.knows_kind`. Blocks.

    Raises `FlannelError`.
    """
    if datapath != "auto":
        return datapath == KERNEL
    with open_rtnetlink(f"asking for devices of kind {kind}") as netlink:
        return knows_kind(netlink, kind, impossible)


async def choose_datapath(
    context: Context,
    kernel: Callable[[], Awaitable[Network]],
    userspace: Callable[[str], Awaitable[Network]],
    *,
    probe: tuple[str, Mapping[int, bytes]] | None = None,
) -> Network:
    """Return the network that the options ask for; with ``auto`` the kernel's, unless it does not know such devices.

    A name or a port that is taken is no reason to leave the kernel: it would be in the way of our own packet path as
    well. What another process hands over is a packet path, and goes on as one; what systemd kept as well where the
    kernel does not know the kind, as far as `probe`, see `expects_kernel`, can tell. `userspace` is told why the kernel
    does not carry packets, in a clause. Raises `FlannelError`.
    """
    datapath, handed = context.options.dataplane.datapath, context.handed
    if datapath == USERSPACE:
        return await userspace("--datapath=userspace")
    if datapath == "auto" and handed is not None:
        if probe is not None and not await asyncio.to_thread(expects_kernel, datapath, *probe):
            return await userspace(f"this kernel has no {probe[0]}")
        if probe is None or handed.state is not None:
            return await userspace("as the run before this one")
    try:
        return await kernel()  # refuses what systemd kept, and is asked again without that
    except KindUnknown as unknown:
        if datapath == KERNEL:
            raise FlannelError(f"{unknown}: load its module, or leave out --datapath=kernel") from unknown
        return await userspace(str(unknown))
