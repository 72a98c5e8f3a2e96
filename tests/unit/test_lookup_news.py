"""What is kept of the kernel's news until somebody asks: new routes inside the overlay, and not without end."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannel_udp.host.lookup import news as module
from flannel_udp.host.lookup.news import ROUTES_MAX, News

NEW, GONE = 24, 25  # RTM_NEWROUTE, RTM_DELROUTE


def route(destination: str, kind: int = NEW) -> bytes:
    prefix = IPv4Network(destination)
    body = struct.pack("=BBBBBBBBI", 2, prefix.prefixlen, 0, 0, 254, 3, 0, 1, 0)
    body += struct.pack("=HHI", 8, 15, 254) + struct.pack("=HH", 8, 1) + prefix.network_address.packed
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


class Kernel:
    """Tells what a test wants; stands for the netlink socket and its `Listener`."""

    tell: Callable[[bytes], bool]
    lose: Callable[[], None]

    def listener(
        self, _netlink: None, concerns: Callable[[bytes], bool], _changed: object, lost: Callable[[], None]
    ) -> None:
        self.tell, self.lose = concerns, lost


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(module, "open_groups", lambda *_: None)
    monkeypatch.setattr(module, "Listener", kernel.listener)
    return kernel


@pytest.fixture
def news(kernel: Kernel) -> News:
    return News(IPv4Network("10.1.0.0/16"), lambda: None)


def test_new_routes_inside_the_overlay_are_told_once(kernel: Kernel, news: News) -> None:
    assert kernel.tell(route("10.1.2.0/24"))
    assert kernel.tell(route("10.1.3.0/24", GONE))
    assert not kernel.tell(route("10.2.0.0/24"))
    assert news.take_routes() == [(int(IPv4Address("10.1.2.0")), 24)]
    assert news.take_routes() == []


def test_after_a_loss_all_are_to_be_read(kernel: Kernel, news: News) -> None:
    kernel.lose()
    assert kernel.tell(route("10.1.2.0/24"))
    assert news.take_routes() is None
    assert news.take_routes() == []


def test_so_many_that_nobody_asked_about_are_no_list_but_all_to_be_read(kernel: Kernel, news: News) -> None:
    for _ in range(ROUTES_MAX):
        kernel.tell(route("10.1.2.0/24"))
    assert kernel.tell(route("10.1.2.0/24"))
    assert kernel.tell(route("10.1.3.0/24"))
    assert news.take_routes() is None
    assert kernel.tell(route("10.1.3.0/24"))
    assert news.take_routes() == [(int(IPv4Address("10.1.3.0")), 24)]
