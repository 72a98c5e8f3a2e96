"""The end of kernel routes: they go when the lease ends, also if the agent hangs or was killed by then.

The kernel knows no lifetime of an IPv4 route, but one of an address, and it removes a route whose source
(RTA_PREFSRC) is an address that goes. So the subnet's first address, which no pod gets, is put on `lo` until the lease
ends, and the routes have it as their source. The same address is on flannel0 and flannel.1 with flannel's udp and vxlan
backends. decisions/0017 tells what was measured. In the order in which an agent does it:

1. `hold` the address of the subnet, ``None`` for a lease that does not end: then routes have no source
2. `live_until` the lease's end: before routes are set, whenever the lease was renewed, and at every repair
3. set the routes, with `source`
4. `remove_former` the address of another lease; the routes that still had it would have gone with it
5. at the end `live_until(None)`, so that the routes stay as flanneld's do, or `remove`, and the routes are gone at once
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from ipaddress import IPv4Address

from flannel_udp.host.rtnetlink import FOREVER_S, LOOPBACK_INDEX, Address, Rtnetlink, open_rtnetlink

LABEL = "lo:flannel"
"""The address's label (IFA_LABEL): how it is known as ours."""

LATENESS_S = 2.0
"""An address may outlive its lifetime by so much; the kernel is asked to remove it that much sooner."""

# The kernel looks for what has run out at most 120 s later, with a timer that goes off late by up to an eighth of that.
# A look is also due when the preferred lifetime runs out: from there the timer is short, and so is its error.
_LAST_LOOK_S = 13

_NO_END = ", so that routes outlive the lease if the agent is killed"


class LeaseEnd:
    """The address that the routes' lives hang on. Methods block for a millisecond and raise `FlannelError`."""

    def __init__(self) -> None:
        self._address: IPv4Address | None = None
        self._until_s: float | None = None
        self.fault: str | None = None
        """Why routes cannot end with the lease on this host; one line."""

    @property
    def source(self) -> IPv4Address | None:
        """What routes must have as their source; ``None``: no source, they would not end or need not."""
        return None if self.fault else self._address

    def hold(self, address: IPv4Address | None) -> None:
        """Choose the address. Nothing happens to the host, nor to the one held before."""
        if address != self._address:
            self._address, self._until_s, self.fault = address, None, None

    def live_until(self, boottime_s: float | None) -> None:
        """Have the kernel remove the address, with the routes, no later than then (CLOCK_BOOTTIME), or at once if past.

        ``None``: it stays for good. Puts the address there if it is not; writes nothing if it is as it should be.
        """
        if self._address is None:
            return
        left_s = FOREVER_S if boottime_s is None else _seconds_left(boottime_s)
        if left_s < 1:
            self.remove()
            return
        with open_rtnetlink("keeping the address that ends the routes") as netlink:
            owners = [found for found in netlink.addresses() if found.address == self._address]
            self.fault = _also_on(netlink, owners)
            # What the kernel says is rounded, too.
            right = boottime_s == self._until_s and any(abs(found.valid_s - left_s) <= 1 for found in owners)
            if not self.fault and not right:
                preferred_s = left_s if left_s == FOREVER_S else max(left_s - _LAST_LOOK_S, 0)
                netlink.put_address(LOOPBACK_INDEX, self._address, LABEL, preferred_s, left_s)
                self._until_s = boottime_s
            if not self.fault and not netlink.is_local(self._address):
                self.fault = f"{self._address} is a broadcast address here{_NO_END}"

    def remove(self) -> None:
        """Remove the address, and with it all routes that have it as their source."""
        if self._address is not None:
            self._until_s = None
            with open_rtnetlink("removing the address that ends the routes") as netlink:
                netlink.delete_address(LOOPBACK_INDEX, self._address, LABEL)

    def remove_former(self) -> None:
        """Remove the addresses of earlier leases and runs."""
        with open_rtnetlink("removing the address of a former lease") as netlink:
            for found in netlink.addresses(LOOPBACK_INDEX):
                if _is_ours(found) and found.address != self._address:
                    netlink.delete_address(LOOPBACK_INDEX, found.address, LABEL)


def _seconds_left(boottime_s: float) -> int:
    return math.floor(boottime_s - time.clock_gettime(time.CLOCK_BOOTTIME) - LATENESS_S)


def _is_ours(found: Address) -> bool:
    return found.index == LOOPBACK_INDEX and found.label == LABEL


def _also_on(netlink: Rtnetlink, owners: Iterable[Address]) -> str | None:
    """Say who else has the address: then it is not gone when ours is, and routes stay."""
    for found in owners:
        if not _is_ours(found):
            link = netlink.link(found.index)
            on = link.name if link else found.index
            return f"{found.address} is an address of {on}, and not ours{_NO_END}: remove it there"
    return None
