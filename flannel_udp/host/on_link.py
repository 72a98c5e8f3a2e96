"""Which hosts are on the external interface's link: those that the kernel hands packets to itself, through no gateway.

One question a host (RTM_GETROUTE, some 5 µs each), and another one whenever the answer may have changed:

1. `OnLink.ask` the hosts that are new
2. the kernel's news of routes, rules, links and addresses say for which of them that is; the others are left alone
3. `OnLink.look` asks these again and tells whose answer is another one now

The kernel reports a route's coming and going, but for those that go with a device, an address or a nexthop object.
What it is asked is an unmarked packet of this host, as by ``ip route get``: rules for marks take no part.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Set
from ipaddress import IPv4Address, IPv6Address

from flannel_udp.errors import FlannelError
from flannel_udp.host.family import family_of
from flannel_udp.host.links import device
from flannel_udp.host.listener import Listener, open_groups
from flannel_udp.host.lookup.prefixes import destination_of
from flannel_udp.host.lookup.question import Question, ask
from flannel_udp.host.route_query import next_hop_devices
from flannel_udp.host.rtnetlink import RTMSG, RTN_UNICAST, attributes, open_rtnetlink
from flannel_udp.model import Address

# linux/rtnetlink.h
_RTNLGRP_LINK, _RTNLGRP_NEXTHOP = 1, 32
_GROUPS = {4: (5, 7, 8), 6: (9, 11, 19)}  # by IP version, RTNLGRP_… of addresses, routes and rules
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_NEWROUTE, _RTM_DELROUTE = 16, 17, 20, 24, 25
_RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA, _RTA_ENCAP = 5, 9, 18, 22

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length with this header, type, flags, sequence number, port
_LINK = struct.Struct("=BxHi")  # the head of struct ifinfomsg: family, hardware type, index

ADDRESSES: dict[int, Callable[[int], Address]] = {4: IPv4Address, 6: IPv6Address}
"""What makes an address of a number, by IP version."""
REST_FACTOR = 10
"""After a look that took so much processor time none follows for that many times as long: with 100,000 hosts one of
all of them takes a second or so."""


def is_on_link(answer: bytes | int, index: int) -> bool:
    """Tell from the kernel's answer about a host, a route or an errno, whether the device of this index leads to it.

    One next hop, which is the host itself: no gateway (of IPv6 neither), and no tunnel of the route's own.
    """
    if isinstance(answer, int) or answer[7] != RTN_UNICAST or next_hop_devices(answer) != [index]:
        return False
    said = {kind for kind, _ in attributes(answer, RTMSG.size)}
    return said.isdisjoint((_RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA, _RTA_ENCAP))


class OnLink:
    """Asks about hosts of one IP version, addresses as numbers in host order.

    ``host in on_link``, in any thread, tells the last answer. Made on the running loop, where `look()` is called when
    there is something to look for: call the method of that name soon. `news` is from `open_news`, `index` the external
    interface's. `ask`, `keep_only` and `look` block: one at a time, in a thread.
    """

    def __init__(self, news: socket.socket, index: int, look: Callable[[], None], version: int = 4) -> None:
        self._address = ADDRESSES[version]
        self._n_bits = family_of(version).n_bits
        self._everything = (0, (1 << self._n_bits) - 1)
        self._index = index
        self._known: list[int] = []  # hosts, sorted
        self._unasked: set[int] = set()
        self._on_link: set[int] = set()
        self._changed: set[int] = set()  # whose answer is another one, and `look` has not told yet
        self._devices: Set[int] = {index}  # that any answer named
        self._news: set[tuple[int, int]] = set()  # first and last address of destinations whose routes changed
        self._news_lock = threading.Lock()
        self._rest_until_s = 0.0
        self._listener = Listener(news, self._hear, look, self._doubt_all)

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def follow(self, index: int) -> None:
        """Another external interface, which any host may be on the link of: `look` asks about all of them."""
        if index != self._index:
            self._index, self._rest_until_s = index, 0.0
            self._doubt_all()

    def __contains__(self, host: object) -> bool:
        return host in self._on_link

    @property
    def again_s(self) -> float | None:
        """After how many seconds a look is due that was put off, or failed; ``None``: none was."""
        due = self._news or self._unasked or self._changed
        return max(0.0, self._rest_until_s - time.monotonic()) if due else None

    # What may have changed

    def _doubt(self, first: int, last: int) -> None:
        with self._news_lock:
            self._news.add((first, last))

    def _doubt_all(self) -> None:
        self._doubt(*self._everything)

    def _hear(self, datagram: bytes) -> bool:
        """Note which hosts' answers the messages of a datagram may have changed; tell whether there are any."""
        news = False
        for kind, body in _messages(datagram):
            span = self._span(kind, body)
            if span is not None and self._any_within(*span):
                self._doubt(*span)
                news = True
        return news

    def _span(self, kind: int, body: bytes) -> tuple[int, int] | None:
        """Return the first and the last address whose way a message may have changed."""
        if kind in (_RTM_NEWROUTE, _RTM_DELROUTE) and len(body) >= RTMSG.size:
            first = destination_of(body)
            return first, first + (1 << self._n_bits - body[1]) - 1
        if kind in (_RTM_NEWLINK, _RTM_DELLINK) and len(body) >= _LINK.size:
            # Its routes go without a word where it goes down. No other device's are in use.
            return self._everything if _LINK.unpack_from(body)[2] in self._devices else None
        # What comes with an address is reported as routes; what goes with one, a rule or a nexthop object is not.
        return None if kind == _RTM_NEWADDR else self._everything

    def _any_within(self, first: int, last: int) -> bool:
        known = self._known
        at = bisect_left(known, first)
        return at < len(known) and known[at] <= last

    # Asking

    def ask(self, hosts: Iterable[int]) -> None:
        """Ask about those that are new. Raises `FlannelError`; `look` asks about them then."""
        known = set(self._known)
        if new := set(hosts) - known:
            self._unasked |= new
            self._known = sorted(known | new)  # before the question: news that come meanwhile must not be missed
        if self._unasked:
            self._ask()
            self._changed -= new  # the caller asked for them

    def keep_only(self, hosts: Iterable[int]) -> None:
        """Forget all others."""
        kept = set(hosts)
        self._known = [host for host in self._known if host in kept]
        self._unasked &= kept
        self._on_link &= kept
        self._changed &= kept

    def look(self) -> set[int]:
        """Ask again about the hosts that news concern; return those whose answer is another one now.

        Raises `FlannelError`; they are asked about the next time then.
        """
        if time.monotonic() < self._rest_until_s:
            return set()
        with self._news_lock:
            spans, self._news = self._news, set()
        began_s, known = time.thread_time(), self._known
        if self._everything in spans:
            self._devices = {self._index}
            self._unasked.update(known)
        else:
            for first, last in spans:
                self._unasked.update(known[bisect_left(known, first) : bisect_left(known, last + 1)])
        if self._unasked:
            self._ask()
        self._rest_until_s = time.monotonic() + REST_FACTOR * (time.thread_time() - began_s)
        changed, self._changed = self._changed, set()
        return changed

    def _ask(self) -> None:
        asked = self._unasked.copy()
        hosts = list(asked)
        with open_rtnetlink("asking which hosts are on the link") as netlink:
            link = device(netlink, self._index)
            answers = ask(netlink, [Question(self._address(host)) for host in hosts])
        # A device without ARP or the like, a tunnel, has no link to hand a packet to one host of.
        index = self._index if link is not None and link.resolves else 0
        entries = set(answers)  # one for all hosts that it leads to
        self._devices |= {at for entry in entries if isinstance(entry, bytes) for at in next_hop_devices(entry)}
        straight = {entry for entry in entries if is_on_link(entry, index)}
        now = {host for host, answer in zip(hosts, answers, strict=True) if answer in straight}
        self._changed ^= (self._on_link & asked) ^ now
        self._on_link = (self._on_link - asked) | now
        self._unasked -= asked


def open_news(version: int = 4) -> socket.socket:
    """Open a socket to which the kernel tells what may change its answers about one IP version in this namespace."""
    groups = (_RTNLGRP_LINK, *_GROUPS[version])
    try:
        return open_groups(socket.NETLINK_ROUTE, (*groups, _RTNLGRP_NEXTHOP))
    except FlannelError:  # before Linux 5.3 there are no nexthop objects
        return open_groups(socket.NETLINK_ROUTE, groups)


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each message; type 0 for what is not understood."""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, *_ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size:
            yield 0, b""
            return
        yield kind, datagram[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3  # NLMSG_ALIGN
