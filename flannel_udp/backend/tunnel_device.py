"""A tunnel device of the kernel's, flannel.1, say: found or made, and kept as it has to be.

A device that is as it has to be is taken as it is, whoever made it: a restart, also that of a flanneld before us, loses
no packet. What is not so is changed where the kernel allows it, or made anew, if the device is ours: it bears our mark,
or the MAC address that our entry in the registry names. Another one is somebody else's, and named.

The subnet's first address is on the device for as long as the lease lasts. It is the only one there, so the kernel
takes all IPv4 routes of the device, and its neighbours, when it removes that address, agent or no agent
(decisions/0017); IPv6 routes have a life of their own.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Protocol

from flannel_udp.backend.datapath import KindUnknown
from flannel_udp.backend.lease_end import NO_END, Ending, LeaseEnd, life_until
from flannel_udp.errors import FlannelError
from flannel_udp.host import links
from flannel_udp.host.advertisements import refuse as refuse_advertisements
from flannel_udp.host.disabled_ipv6 import allow_ipv6, why_no_ipv6
from flannel_udp.host.links import (
    MARK,
    Device,
    change_device,
    delete_device,
    device,
    device_named,
    make_device,
    makes_own_ipv6,
    put_address,
    remove_address,
    set_device,
    set_protocol_up,
    stream_addresses,
    stream_devices,
)
from flannel_udp.host.netlink import stop_ipv6_addresses
from flannel_udp.host.rtnetlink import Message, Refusal, Rtnetlink, open_rtnetlink
from flannel_udp.model import Address, Interface

logger = logging.getLogger(__name__)

REPAIRS = ("tunnel", "settings", "master", "mac", "mtu", "ipv6", "address", "link")
"""What is counted: the device made anew, what its kind is told, taken out of a bridge or VRF, MAC, MTU, no IPv6
address, address, link put right."""
TAKES_ENTRIES = frozenset({"tunnel", "settings", "master", "mac", "address", "link"})
"""When one of these is wrong the kernel has removed routes or neighbours of the device, or does so when it is put
right."""


class TunnelKind(Protocol):
    """What is different from one kind of tunnel device to another."""

    @property
    def kind(self) -> str:
        """As `ip link` calls it: ``vxlan``."""
        ...

    @property
    def name(self) -> str:
        """The device's."""
        ...

    @property
    def version(self) -> int:
        """The IP version of what it carries, and of its outer packets."""
        ...

    @property
    def changeable(self) -> Set[int]:
        """Of the attributes in `details` those that the kernel changes on a device that is there."""
        ...

    @property
    def not_compared(self) -> Set[int]:
        """Those that a device may have as it likes."""
        ...

    def details(self, external: Interface) -> Mapping[int, bytes | None]:
        """Return its IFLA_INFO_DATA as it has to be; ``None``: must not be there."""
        ...

    def describe(self, netlink: Rtnetlink, details: Mapping[int, bytes]) -> str:
        """Return what `ip -d link` shows of such settings."""
        ...

    def is_kin(self, found: Device) -> bool:
        """Tell whether a device of this kind is for the same IP version."""
        ...

    def claims(self, found: Device) -> bool:
        """Tell whether a device is ours to change, although it bears neither our mark nor our MAC address."""
        ...

    def rivals(self, netlink: Rtnetlink, code: int) -> list[Device]:
        """Return the devices for which the kernel may have refused ours with this `errno` value."""
        ...

    def explain(self, code: int, rivals: Iterable[Device]) -> str | None:
        """Say why it was refused, and what to do; ``None``: the kernel's words are all there is."""
        ...


class TunnelDevice:
    """One tunnel device; also what routes hang on, as a `LeaseEnd`. Methods block for milliseconds.

    It is opened as it is found, or made, down, without an address; nothing that is there is changed before `take`.
    `mac` is the address that it is to have where it is not there yet, 0: none. `claimed` is the one that our entry
    names. Raises `KindUnknown` where the kernel has no such devices, and as all methods other `FlannelError`.
    """

    def __init__(self, kind: TunnelKind, external: Interface, mtu: int, *, mac: int = 0, claimed: int = 0) -> None:
        self._kind = kind
        self._external, self._mtu = external, mtu
        self._claimed = claimed
        self._address: Address | None = None
        self._until_s: float | None = None  # when the address is to go, by CLOCK_BOOTTIME
        self._told = False  # the kernel was told so
        self.name = kind.name
        self.index = 0
        self.mac = 0
        self.source: Address | None = None
        """See `LeaseEnd.source`: for routes through another device."""
        self.fault: str | None = None
        """See `LeaseEnd.fault`."""
        with open_rtnetlink(f"opening {kind.name}") as netlink:
            found = device_named(netlink, kind.name)
            if found is None:
                self.mac = mac
                self._make(netlink)
                self._try_up(netlink)
            else:
                self._adopt(netlink, found)

    def take(self, address: Address, until_s: float | None, claimed: int = 0) -> None:
        """Give it its shape, with this address as its only one, whatever a killed run or an earlier lease left on it.

        See `live_until` for `until_s`, and `claimed` above.
        """
        self._address, self._until_s, self._told = address, until_s, False
        self._claimed = claimed or self._claimed
        with open_rtnetlink(f"marking {self.name}") as netlink:
            netlink.do(set_device(self.index, alias=MARK), fine=(errno.ENODEV,))
        for _ in REPAIRS:  # one may bring forth another: a new device has no address
            wrong = self.look()
            if not wrong:
                break
            self.put_right(wrong[0])
        with open_rtnetlink(f"configuring {self.name}") as netlink:
            self._set_sysctls(self.name)
            for found in self._others(netlink):
                remove_address(netlink, self.index, found.address, far_end=found.far_end, prefix_len=found.prefix_len)

    def follow(self, external: Interface, mtu: int) -> None:
        """From now on it is to be as this interface asks; the next look finds what is not."""
        self._external, self._mtu = external, mtu

    def look(self) -> list[str]:
        """Return what is not as it has to be, see `REPAIRS`, in the order in which to put it right."""
        with open_rtnetlink(f"looking at {self.name}") as netlink:
            found = device(netlink, self.index) if self.index else None
            differing = None if found is None or found.kind != self._kind.kind else self._differing(found)
            if found is None or differing is None or differing - self._kind.changeable:
                return ["tunnel"]
            self.name = found.name
            carries = self._address is not None and life_until(self._until_s) is not None
            right = {
                "settings": not differing,
                "master": not found.master,
                "mac": found.mac == self.mac,
                "mtu": found.mtu == self._mtu,
                "ipv6": not makes_own_ipv6(found),
                "address": not carries or any(map(self._is_its, list(self._addresses(netlink)))),
                "link": not carries or (found.up and found.carrier),
            }
            wrong = [what for what, is_right in right.items() if not is_right]
            # The kernel takes packets to an IPv6 address that has an end only if it came while the device was up.
            last = "link" if self._kind.version == 4 else "address"
            return sorted(wrong, key=lambda what: what == last)

    def put_right(self, what: str) -> None:
        """Put right one of these, and nothing else of the device."""
        with open_rtnetlink(f"putting right {what} of {self.name}") as netlink:
            match what:
                case "tunnel":
                    self._make_anew(netlink)
                case "settings":
                    self._change_settings(netlink)
                case "master":
                    netlink.do(set_device(self.index, master=0))
                case "mac":
                    (refusal,) = netlink.apply([set_device(self.index, mac=self.mac)])
                    if refusal is not None:  # EBUSY: not while it is up, on some kernels
                        netlink.do(set_device(self.index, up=False))
                        netlink.do(set_device(self.index, mac=self.mac))
                        self._attempt(netlink, set_device(self.index, up=True))
                case "mtu":
                    netlink.do(set_device(self.index, mtu=self._mtu))
                    stop_ipv6_addresses(netlink, self.index)
                case "ipv6":
                    stop_ipv6_addresses(netlink, self.index)
                case "address":
                    self._put_address(netlink)
                case "link":
                    self._attempt(netlink, set_device(self.index, up=True))
                    if (found := device(netlink, self.index)) is not None and not found.carrier:
                        netlink.do(set_protocol_up(self.index))

    def delete(self) -> None:
        """Remove the device, with all that is on it; none is fine."""
        with open_rtnetlink(f"removing {self.name}") as netlink:
            if device(netlink, self.index) is not None:
                netlink.do(delete_device(self.index), fine=(errno.ENODEV,))
        self.index = 0

    # What routes hang on

    @property
    def ending(self) -> Ending:
        """See `LeaseEnd.ending`."""
        return Ending(source=self.source) if self._kind.version == 4 else Ending(at_s=self._until_s)

    def hold(self, address: Address | None) -> None:
        """See `LeaseEnd.hold`: ``None`` where the lease does not end, and routes elsewhere need no source."""
        self.source = address

    def live_until(self, boottime_s: float | None) -> None:
        """See `LeaseEnd.live_until`."""
        if self._address is None or not self.index:
            return
        self._told &= boottime_s == self._until_s
        self._until_s = boottime_s
        life = life_until(boottime_s)
        if life is None:
            self.remove()
            return
        with open_rtnetlink(f"keeping the address of {self.name}") as netlink:
            found = [item for item in self._addresses(netlink) if self._is_its(item)]
            # What the kernel says is rounded, too.
            if not found or not self._told or abs(found[0].valid_s - life["valid_s"]) > 1:
                self._put_address(netlink)
            other = next(iter(self._others(netlink)), None)
            why = other and f"{other.address} is an address of {self.name}, too{NO_END}: remove it there"
            self.fault = why or None

    def remove(self) -> None:
        """Carry nothing any more: without an address the device has no routes nor neighbours, down it takes nothing."""
        if self._address is None or not self.index:
            return
        with open_rtnetlink(f"taking {self.name} down") as netlink:
            if device(netlink, self.index) is not None:
                remove_address(netlink, self.index, self._address)
                netlink.do(set_device(self.index, up=False), fine=(errno.ENODEV,))

    def remove_former(self) -> None:
        """Remove what earlier runs had their routes hang on: other devices of ours, and a `LeaseEnd`'s address."""
        with open_rtnetlink("removing former devices") as netlink:
            for found in list(stream_devices(netlink, self._kind.kind)):
                if found.index != self.index and self._kind.is_kin(found) and self._is_ours(found):
                    netlink.do(delete_device(found.index), fine=(errno.ENODEV,))
                    logger.info("removed what an earlier run left: the device %s", found.name)
        LeaseEnd().remove_former()

    # In detail

    def _details(self) -> Mapping[int, bytes | None]:
        return self._kind.details(self._external)

    def _differing(self, found: Device) -> set[int]:
        """Return the attributes that are not as they have to be; a number that an older kernel does not tell is 0."""
        return {
            number
            for number, wanted in self._details().items()
            if number not in self._kind.not_compared
            and found.details.get(number) != wanted
            and not (number not in found.details and wanted is not None and wanted.strip(b"\0") == b"" != wanted)
        }

    def _is_ours(self, found: Device) -> bool:
        known = found.mac != 0 and found.mac in (self.mac, self._claimed)
        return found.alias == MARK or known or self._kind.claims(found)

    def _addresses(self, netlink: Rtnetlink) -> Iterator[links.Address]:
        return stream_addresses(netlink, self.index, version=self._kind.version)

    def _is_its(self, found: links.Address) -> bool:
        alone = found.prefix_len == found.address.max_prefixlen
        return alone and (found.address, found.far_end) == (self._address, self._address)

    def _others(self, netlink: Rtnetlink) -> list[links.Address]:
        return [found for found in self._addresses(netlink) if not self._is_its(found)]

    def _adopt(self, netlink: Rtnetlink, found: Device) -> None:
        """Take a device of our name. Raises `FlannelError` for somebody else's."""
        foreign = found.kind != self._kind.kind
        if foreign or (self._differing(found) and not self._is_ours(found)):
            raise FlannelError(self._not_ours(netlink, found))
        self.index, self.mac = found.index, self.mac or found.mac

    def _not_ours(self, netlink: Rtnetlink, found: Device) -> str:
        name, kind = found.name, self._kind.kind
        remedy = f"remove it with 'ip link del {name}', if nobody needs it"
        if found.kind != kind:
            return f"there is a device {name} already, and it is no {kind} device: {remedy}"
        has = self._kind.describe(netlink, found.details)
        wanted = self._kind.describe(netlink, _set_only(self._details()))
        return f"there is {_a(kind)} device {name} already, and it is not ours: it has {has}, not {wanted}: {remedy}"

    def _make_anew(self, netlink: Rtnetlink) -> None:
        """Make it once more, or take what somebody has put in its place if that is as ours has to be."""
        found = device_named(netlink, self._kind.name)
        if found is not None:
            self._adopt(netlink, found)
            if not self._differing(found) - self._kind.changeable:
                return
            netlink.do(delete_device(found.index), fine=(errno.ENODEV,))
        self._make(netlink)

    def _change_settings(self, netlink: Rtnetlink) -> None:
        wanted = {
            number: value for number, value in _set_only(self._details()).items() if number in self._kind.changeable
        }
        (refusal,) = netlink.apply([change_device(self.index, self._kind.kind, wanted)])
        if refusal is None:
            return
        if refusal.code == errno.ENODEV:
            raise self._refused(netlink, refusal, [])
        netlink.do(delete_device(self.index), fine=(errno.ENODEV,))  # a kernel that changes none of it
        self._make(netlink)

    def _make(self, netlink: Rtnetlink) -> None:
        """Make the device, with its MAC from the first moment on: a program that gives new ones theirs leaves it."""
        name, kind = self._kind.name, self._kind.kind
        self._attempt(netlink, make_device(name, kind, _set_only(self._details()), mtu=self._mtu, mac=self.mac))
        found = device_named(netlink, name)
        if found is None:
            raise FlannelError(f"{name} was deleted as soon as it was made: `ip -ts monitor link` shows when")
        self.name, self.index, self.mac = name, found.index, self.mac or found.mac
        netlink.do(set_device(self.index, alias=MARK))
        stop_ipv6_addresses(netlink, self.index)
        self._set_sysctls(name)

    def _try_up(self, netlink: Rtnetlink) -> None:
        """Find out, before anything else is made, whether it can be up: the kernel opens its port only then."""
        try:
            self._attempt(netlink, set_device(self.index, up=True))
        except FlannelError:
            netlink.do(delete_device(self.index), fine=(errno.ENODEV,))
            raise
        netlink.do(set_device(self.index, up=False))

    def _attempt(self, netlink: Rtnetlink, message: Message) -> None:
        """Have the kernel do this, if need be without a former device of ours that has what this one needs."""
        (refusal,) = netlink.apply([message])
        if refusal is None:
            return
        rivals = self._kind.rivals(netlink, refusal.code)
        ours = [found for found in rivals if found.index != self.index and self._is_ours(found)]
        if ours:
            netlink.apply([delete_device(found.index) for found in ours])
            (refusal,) = netlink.apply([message])
            if refusal is None:
                return
        raise self._refused(netlink, refusal, [found for found in rivals if found not in ours])

    def _refused(self, netlink: Rtnetlink, refusal: Refusal, rivals: Iterable[Device]) -> FlannelError:
        if refusal.code == errno.EOPNOTSUPP and not self.index:
            return KindUnknown(f"this kernel has no {self._kind.kind}")
        if refusal.code == errno.ENODEV and device(netlink, self._external.index) is None:
            return FlannelError(f"interface {self._external.name} is gone: waiting for it")
        why = self._kind.explain(refusal.code, rivals)
        return FlannelError(why or f"{self._kind.name} cannot be set up: {refusal.why}")

    def _put_address(self, netlink: Rtnetlink) -> None:
        life = life_until(self._until_s)
        if self._address is None or life is None:
            return
        message = put_address(self.index, self._address, **life)
        (refusal,) = netlink.apply([message])
        if refusal is not None and refusal.code == errno.EACCES:  # somebody has switched IPv6 off there
            self._set_sysctls(self.name)
            (refusal,) = netlink.apply([message])
        if refusal is not None and refusal.code == errno.EACCES:
            raise FlannelError(why_no_ipv6(self.name))
        if refusal is not None:
            raise OSError(refusal.code, refusal.why)
        self._told = True

    def _set_sysctls(self, name: str) -> None:
        """Take no router advertisements; a host without IPv6 on new devices gets it on this one, as far as we may."""
        refuse_advertisements(name)
        if self._kind.version == 6:
            allow_ipv6(name)


def remove_marked(kind: str, chosen: Callable[[Device], bool] = lambda _: True) -> list[str]:
    """Remove all devices of this kind that bear our mark, if `chosen`; say which. Blocks; raises `FlannelError`."""
    with open_rtnetlink(f"removing {kind} devices of earlier runs") as netlink:
        found = [item for item in list(stream_devices(netlink, kind)) if item.alias == MARK and chosen(item)]
        for item in found:
            netlink.do(delete_device(item.index), fine=(errno.ENODEV,))
        return [f"the device {item.name}" for item in found]


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _set_only(details: Mapping[int, bytes | None]) -> dict[int, bytes]:
    return {number: value for number, value in details.items() if value is not None}
