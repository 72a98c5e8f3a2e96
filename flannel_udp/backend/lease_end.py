"""The end of kernel routes: they go when the lease ends, also if the agent hangs or was killed by then.

The kernel knows no lifetime of an IPv4 route, but one of an address, and it removes a route whose source
(RTA_PREFSRC) is an address that goes. So the subnet's first address, which no pod gets, is put on `lo` until the lease
ends, and the routes have it as their source. Where our tunnel device has the same address, as flannel0 has, that one
gets the same lifetime: the kernel removes routes with the last of a host's equal addresses. decisions/0017 tells what
was measured. In the order in which an agent does it:

1. `hold` the address of the subnet, ``None`` for a lease that does not end: then routes have no source
2. `live_until` the lease's end: before routes are set, whenever the lease was renewed, and at every repair
3. set the routes, with `source`
4. `remove_former` the address of another lease; the routes that still had it would have gone with it
5. at the end `live_until(None)`, so that the routes stay as flanneld's do, or `remove`, and the routes are gone at once

IPv6 routes have a lifetime of their own (RTA_EXPIRES), which their source has no part in: see `RouteLife` and `Ending`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypedDict

from flannel_udp.host import links
from flannel_udp.host.links import (
    FOREVER_S,
    LOOPBACK_INDEX,
    MARK,
    RT_SCOPE_HOST,
    device,
    put_address,
    remove_address,
    stream_addresses,
)
from flannel_udp.host.route_query import is_local
from flannel_udp.host.rtnetlink import Rtnetlink, open_rtnetlink
from flannel_udp.model import Address

LABEL = "lo:flannel"
"""The address's label (IFA_LABEL): how it is known as ours."""

LATENESS_S = 2.0
"""An address may outlive its lifetime by so much; the kernel is asked to remove it that much sooner."""

# The kernel looks for what has run out at most 120 s later, with a timer that goes off late by up to an eighth of that.
# A look is also due when the preferred lifetime runs out: from there the timer is short, and so is its error.
_LAST_LOOK_S = 13

NO_END = ", so that routes outlive the lease if the agent is killed"


class Ending(NamedTuple):
    """What has routes end with the lease, of whichever family they are; neither: they stay."""

    source: Address | None = None
    """What IPv4 routes must have as their source: they go with that address."""
    at_s: float | None = None
    """When IPv6 routes go by themselves, by CLOCK_BOOTTIME."""


class Life(TypedDict):
    """For how many seconds an address is there, see `put_address`."""

    preferred_s: int
    valid_s: int


class RouteLife:
    """For IPv6 what `LeaseEnd` is for IPv4: the routes' own lifetime; nothing of the host has to be changed for it."""

    fault: str | None = None

    def __init__(self) -> None:
        self.ending = Ending()

    def hold(self, address: Address | None) -> None:
        """See `LeaseEnd.hold`: routes need none."""

    def live_until(self, boottime_s: float | None) -> None:
        """See `LeaseEnd.live_until`: who sets the routes does what it says."""
        self.ending = Ending(at_s=boottime_s)

    def remove(self) -> None:
        """See `LeaseEnd.remove`: routes are removed one by one, and none is set any more."""
        self.ending = Ending(at_s=-math.inf)

    def remove_former(self) -> None:
        """See `LeaseEnd.remove_former`: there is nothing."""


class LeaseEnd:
    """The address that the routes' lives hang on. Methods block for a millisecond and raise `FlannelError`.

    `tunnel()` returns the index of the device of ours that has the same address, 0 for none; who made it removes it.
    """

    def __init__(self, tunnel: Callable[[], int] = lambda: 0) -> None:
        self._tunnel = tunnel
        self._address: Address | None = None
        self._until_s: float | None = None
        self.fault: str | None = None
        """Why routes cannot end with the lease on this host; one line."""

    @property
    def source(self) -> Address | None:
        """What routes must have as their source; ``None``: no source, they would not end or need not."""
        return None if self.fault else self._address

    @property
    def ending(self) -> Ending:
        """See `Ending`."""
        return Ending(source=self.source)

    def hold(self, address: Address | None) -> None:
        """Choose the address. Nothing happens to the host, nor to the one held before."""
        if address != self._address:
            self._address, self._until_s, self.fault = address, None, None

    def live_until(self, boottime_s: float | None) -> None:
        """Have the kernel remove the address, with the routes, no later than then (CLOCK_BOOTTIME), or at once if past.

        ``None``: it stays for good. Puts the address there if it is not; writes nothing if it is as it should be.
        """
        if self._address is None:
            return
        life = life_until(boottime_s)
        if life is None:
            self.remove()
            return
        with open_rtnetlink("keeping the address that ends the routes") as netlink:
            owners, tunnel = list(stream_addresses(netlink, only=self._address)), self._tunnel()
            self.fault = _also_on(netlink, owners, tunnel)
            # What the kernel says is rounded, too.
            lives = {found.index for found in owners if abs(found.valid_s - life["valid_s"]) <= 1}
            right = boottime_s == self._until_s and lives == {LOOPBACK_INDEX, *(found.index for found in owners)}
            if not self.fault and not right:
                netlink.do(put_address(LOOPBACK_INDEX, self._address, label=LABEL, scope=RT_SCOPE_HOST, **life))
                if any(found.index == tunnel for found in owners):
                    netlink.do(put_address(tunnel, self._address, **life))
                self._until_s = boottime_s
            if not self.fault and not is_local(netlink, self._address):
                self.fault = f"{self._address} is a broadcast address here{NO_END}"

    def remove(self) -> None:
        """Remove the address, and with it all routes that have it as their source unless a tunnel device has it."""
        if self._address is not None:
            self._until_s = None
            with open_rtnetlink("removing the address that ends the routes") as netlink:
                remove_address(netlink, LOOPBACK_INDEX, self._address, label=LABEL)

    def remove_former(self) -> None:
        """Remove the addresses of earlier leases and runs; the tunnel device's stays for good where none is to end."""
        with open_rtnetlink("removing the address of a former lease") as netlink:
            tunnel = self._tunnel()
            if tunnel and self._address is None:
                for found in list(stream_addresses(netlink, tunnel)):
                    if found.valid_s != FOREVER_S:
                        netlink.do(put_address(tunnel, found.address, prefix_len=found.prefix_len))
            for found in list(stream_addresses(netlink, LOOPBACK_INDEX)):
                if _is_ours(found) and found.address != self._address:
                    remove_address(netlink, LOOPBACK_INDEX, found.address, label=LABEL)


def life_until(boottime_s: float | None) -> Life | None:
    """Return the lifetimes of an address that the kernel is to remove no later than then (CLOCK_BOOTTIME).

    ``None``: that is now. For `put_address`.
    """
    if boottime_s is None:
        return {"preferred_s": FOREVER_S, "valid_s": FOREVER_S}
    left_s = math.floor(boottime_s - time.clock_gettime(time.CLOCK_BOOTTIME) - LATENESS_S)
    return None if left_s < 1 else {"preferred_s": max(left_s - _LAST_LOOK_S, 0), "valid_s": left_s}


def _is_ours(found: links.Address) -> bool:
    return found.index == LOOPBACK_INDEX and found.label == LABEL


def _also_on(netlink: Rtnetlink, owners: Iterable[links.Address], tunnel: int) -> str | None:
    """Say who else has the address: then it is not gone when ours is, and routes stay."""
    for found in owners:
        if not _is_ours(found) and found.index != tunnel:
            link = device(netlink, found.index)
            if link is None:
                continue  # it has gone since, and its address with it
            if link.alias == MARK:
                continue  # a run with another backend left it, and it goes as soon as this one's routes stand
            return f"{found.address} is an address of {link.name}, and not ours{NO_END}: remove it there"
    return None
