"""A set of IPv6 routes against a real kernel: how they change and end is not as with IPv4."""

from __future__ import annotations

import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from flannel_udp.backend.routes import ROUTE_PROTOCOL, Hop, RouteSet
from flannel_udp.lab.netns import wait_until
from flannel_udp.model import Prefix
from tests.support.counting_socket import CountingSocket, counted
from tests.support.labs import NEEDS_NETNS
from tests.support.many_peers import N_PEERS, host_of, subnet_of
from tests.support.one_host import OneHost, one_host
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

ETH0 = 42
A, B, C = (IPv6Network(f"fd00:1:{n}::/64") for n in (16, 17, 18))
OURS = f"proto {ROUTE_PROTOCOL} metric 1024 pref medium"


@pytest.fixture
def host() -> Iterator[OneHost]:
    with one_host() as made:
        made.add_link("eth0", ETH0)
        made.ip("address add 2001:db8::1/64 dev eth0 nodad")
        yield made


def via(gateway: str, *, onlink: bool = False) -> Hop:
    return Hop(IPv6Address(gateway), ETH0, None, onlink)


def routes_of(host: OneHost, of: str = f"proto {ROUTE_PROTOCOL}") -> list[str]:
    return host.show(f"-6 route show {of}")


def loaded(
    host: OneHost, hops: Mapping[Prefix, Hop] | Mapping[IPv6Network, Hop], ends_s: float | None = None
) -> RouteSet:
    routes = RouteSet(6)
    routes.ends_s = ends_s
    host.call(routes.load, hops)
    return routes


def now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_route_is_flannels_but_for_its_protocol_number(host: OneHost) -> None:
    routes = loaded(host, {A: via("2001:db8::2"), B: via("fd00:1:17::", onlink=True)})
    assert routes_of(host, "root fd00::/16") == [
        f"{A} via 2001:db8::2 dev eth0 {OURS}",
        f"{B} via fd00:1:17:: dev eth0 proto {ROUTE_PROTOCOL} metric 1024 onlink pref medium",
    ]
    assert (routes.faults, host.call(routes.repair)) == ({}, 0)


def test_a_change_replaces_ours_in_one_step_and_touches_nothing_else(host: OneHost) -> None:
    routes = loaded(host, {A: via("2001:db8::2"), B: via("2001:db8::3")})
    assert host.call(routes.apply, {A: None, B: via("2001:db8::4"), C: via("2001:db8::5")}) == 3
    assert routes_of(host) == [
        f"{at} via {gateway} dev eth0 metric 1024 pref medium"
        for at, gateway in ((B, "2001:db8::4"), (C, "2001:db8::5"))
    ]
    assert host.call(routes.repair) == 0


def test_a_route_moves_to_another_device_in_one_step_and_back(host: OneHost) -> None:
    host.ip("link add eth1 index 43 type veth peer name far1", "link set far1 up", "link set eth1 up")
    direct, tunnelled = via("2001:db8::2"), Hop(A.network_address, 43, None, onlink=True)
    routes = loaded(host, {A: direct})
    for hop, way in ((tunnelled, f"{A} via fd00:1:16:: dev eth1"), (direct, f"{A} via 2001:db8::2 dev eth0")):
        assert host.call(routes.apply, {A: hop}) == 1
        assert [line.split(" metric")[0] for line in routes_of(host)] == [way]
        assert (routes.faults, host.call(routes.repair)) == ({}, 0)


def test_what_a_killed_run_left_is_kept_changed_or_removed(host: OneHost) -> None:
    loaded(host, {A: via("2001:db8::2"), B: via("2001:db8::3"), C: via("2001:db8::4")})
    assert host.call(RouteSet(6).load, {A: via("2001:db8::2"), B: via("2001:db8::33")}) == 2
    assert [line.split(" dev")[0] for line in routes_of(host)] == [f"{A} via 2001:db8::2", f"{B} via 2001:db8::33"]


def test_flannelds_routes_become_ours(host: OneHost) -> None:
    host.ip(f"route add {A} via 2001:db8::2", f"route add {B} via 2001:db8::9")
    routes = RouteSet(6)
    routes.inherit(elsewhere=True)
    assert host.call(routes.load, {A: via("2001:db8::2"), B: via("2001:db8::3")}) == 1
    assert routes_of(host) == [f"{A} via 2001:db8::2 dev eth0 metric 1024 pref medium"]
    assert list(routes.faults) == [B]


def test_a_foreign_route_in_place_of_ours_is_never_overwritten_by_a_change(host: OneHost) -> None:
    routes = loaded(host, {A: via("2001:db8::2"), B: via("2001:db8::3")})
    host.ip(f"route replace {A} via 2001:db8::9", f"route del {B}", f"route add blackhole {B} metric 1024")
    host.call(routes.apply, {A: via("2001:db8::22"), B: via("2001:db8::23")})
    assert routes_of(host) == []
    assert "via 2001:db8::9 dev eth0 (proto boot) is not ours" in routes.faults[A]
    assert routes.faults[B] == f"a route to {B} is not ours: remove it; `ip -6 route show exact {B}` shows it"
    host.ip(f"route del {A}", f"route del {B}")
    assert host.call(routes.repair) == 2
    assert routes.faults == {}


def test_a_second_next_hop_that_somebody_adds_is_removed(host: OneHost) -> None:
    routes = loaded(host, {A: via("2001:db8::2")})
    host.ip(f"route append {A} via 2001:db8::9 proto {ROUTE_PROTOCOL}")
    assert host.call(routes.repair) == 1
    assert routes_of(host) == [f"{A} via 2001:db8::2 dev eth0 metric 1024 pref medium"]
    assert host.call(routes.repair) == 0


def test_a_gateway_off_link_is_named_and_the_others_stand(host: OneHost) -> None:
    routes = loaded(host, {A: via("2001:db8:9::9"), B: via("2001:db8::3")})
    why = "2001:db8:9::9 is not on-link, that is in a network of eth0's own"
    assert routes.faults == {A: f"no route to {A} via 2001:db8:9::9 dev eth0: {why}"}
    assert len(routes_of(host)) == 1


def test_a_host_without_ipv6_on_the_interface_is_told_so(host: OneHost) -> None:
    host.call(lambda: open("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "w").write("1"))  # noqa: SIM115, PTH123
    (fault,) = loaded(host, {A: via("2001:db8::2")}).faults.values()
    assert fault.startswith(f"no route to {A} via 2001:db8::2 dev eth0: ")


def test_both_families_keep_to_themselves(host: OneHost) -> None:
    host.ip("address add 192.0.2.1/24 dev eth0")
    four, six = RouteSet(), loaded(host, {A: via("2001:db8::2")})
    host.call(four.load, {IPv4Network("10.1.16.0/24"): Hop(IPv4Address("192.0.2.2"), ETH0)})
    assert (host.call(four.repair), host.call(six.repair)) == (0, 0)
    host.call(four.clear)
    assert (host.routes(), len(routes_of(host))) == ([], 1)


# The end of the lease


def test_a_route_ends_with_the_lease_by_the_kernel_alone(host: OneHost) -> None:
    hops = {A: via("2001:db8::2")}
    routes = loaded(host, hops, now_s() + 100)
    reached_s = 0.0

    def reached() -> bool:
        nonlocal reached_s
        asked_s = now_s()
        try:
            assert "dev eth0" in host.show("-6 route get fd00:1:16::5")[0]
        except subprocess.CalledProcessError:
            return False
        reached_s = asked_s
        return True

    assert reached()
    routes.ends_s = ends_s = now_s() + 4
    host.call(routes.load, hops)
    assert wait_until(lambda: not reached(), PATIENCE_S)
    assert reached_s < ends_s + 1


def test_a_renewal_gives_routes_another_life_and_nothing_is_written_meanwhile(host: OneHost) -> None:
    hops = {A: via("2001:db8::2"), B: via("2001:db8::3")}
    routes = loaded(host, hops, now_s() + 100)
    with host.news() as news:
        assert [host.call(routes.repair) for _ in range(2)] == [0, 0]
        assert news() == []
    routes.ends_s = now_s() + 5_000
    assert host.call(routes.load, hops) == 2
    assert [host.call(routes.repair) for _ in range(2)] == [0, 0]
    assert all(4_900 < int(line.split("expires ")[1].split("sec")[0]) <= 5_000 for line in routes_of(host))


def test_ten_thousand_get_another_life_in_one_step_each_while_packets_take_them(
    host: OneHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flannel_udp.host.rtnetlink.socket.socket", CountingSocket)
    hops = {subnet_of(6, number): via(str(host_of(6, number))) for number in range(N_PEERS)}
    routes = loaded(host, hops, now_s() + 100)
    host.call(routes.repair)
    with host.news() as news, host.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        # A neighbour for each is kept for seconds, and more than 1,024 the kernel does not keep, of all namespaces.
        some = random.sample(range(N_PEERS), 100)
        ended, sent = threading.Event(), []

        def send() -> None:
            while not ended.is_set():
                at = subnet_of(6, random.choice(some))
                sent.append(sender.sendto(b"", (str(at[1]), 9)))

        with ThreadPoolExecutor(1) as thread:
            sending = thread.submit(send)
            for ends_s in (now_s() + 5_000, None):
                counted()
                routes.ends_s = ends_s
                assert host.call(routes.follow_life) == N_PEERS
                assert counted() <= N_PEERS / 20 + N_PEERS / 100  # is it ours that is in force? then its successor
                assert [told for told in news() if "route" in told] == N_PEERS * ["new route"]
            ended.set()
            sending.result()  # raises where there was no route
        assert sent
    assert [host.call(routes.repair) for _ in range(2)] == [0, 0]
    assert not any("expires" in line for line in routes_of(host))


def test_another_life_counts_for_what_is_being_set_just_then(host: OneHost, monkeypatch: pytest.MonkeyPatch) -> None:
    hops = {subnet_of(6, number): via(str(host_of(6, number))) for number in range(N_PEERS)}
    routes = RouteSet(6)
    routes.ends_s = now_s() + 100

    class RenewedMidway(CountingSocket):
        """At the 50th of some 100 calls the lease is renewed."""

        def send(self, *arguments: Any) -> int:
            if self.sent == 50:
                routes.ends_s = now_s() + 5_000
            return super().send(*arguments)

    monkeypatch.setattr("flannel_udp.host.rtnetlink.socket.socket", RenewedMidway)
    counted()
    assert host.call(routes.load, hops) == N_PEERS
    assert host.call(routes.follow_life) == 0
    assert all(left_s > 100 for left_s in lives_of(host))


def test_those_that_have_a_short_life_get_a_longer_one_before_all_others(
    host: OneHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    hops = {subnet_of(6, number): via(str(host_of(6, number))) for number in range(2_000)}
    routes = loaded(host, hops, now_s() + 10_000)
    lives_s: list[int] = []

    class DoubtIsOver(CountingSocket):
        """The lease was in doubt, and is renewed at the 45th call; some 30 calls are for 500 routes."""

        def send(self, *arguments: Any) -> int:
            if self.sent == 45:
                routes.ends_s = now_s() + 20_000
            if self.sent == 125:
                lives_s.extend(lives_of(host))
            return super().send(*arguments)

    monkeypatch.setattr("flannel_udp.host.rtnetlink.socket.socket", DoubtIsOver)
    counted()
    routes.ends_s = now_s() + 1_000
    assert host.call(routes.follow_life) == len(hops)
    assert len(lives_s) == len(hops)
    assert {left_s > 9_000 for left_s in lives_s} == {True}  # as before, or as it is now
    assert all(left_s > 19_000 for left_s in lives_of(host))


def lives_of(host: OneHost) -> list[int]:
    """Return for how many seconds each of our routes stays."""
    return [int(line.split("expires ")[1].split("sec")[0]) for line in routes_of(host)]


def test_a_life_goes_to_no_route_of_others_and_puts_back_what_is_gone(host: OneHost) -> None:
    routes = loaded(host, {A: via("2001:db8::2"), B: via("2001:db8::3")}, now_s() + 100)
    host.ip(f"route replace {A} via 2001:db8::9", f"route del {B}")
    routes.ends_s = None
    assert host.call(routes.follow_life) == 1
    assert list(routes.faults) == [A]
    assert host.show(f"-6 route show {A}") == [f"{A} via 2001:db8::9 dev eth0 metric 1024 pref medium"]
    assert routes_of(host) == [f"{B} via 2001:db8::3 dev eth0 metric 1024 pref medium"]


def test_routes_stay_once_they_have_no_end_and_end_again_with_the_next_run(host: OneHost) -> None:
    hops = {A: via("2001:db8::2")}
    routes = loaded(host, hops, now_s() + 100)
    routes.ends_s = None
    assert host.call(routes.load, hops) == 1
    assert "expires" not in routes_of(host)[0]
    assert host.call(loaded(host, hops, now_s() + 100).repair) == 0
    assert "expires" in routes_of(host)[0]


def test_a_life_that_somebody_changes_is_put_right(host: OneHost) -> None:
    routes = loaded(host, {A: via("2001:db8::2")}, now_s() + 100)
    host.ip(f"route replace {A} via 2001:db8::2 proto {ROUTE_PROTOCOL} expires 50000")
    assert host.call(routes.repair) == 1
    assert [host.call(routes.repair) for _ in range(2)] == [0, 0]
    assert int(routes_of(host)[0].split("expires ")[1].split("sec")[0]) <= 100


def test_a_life_that_is_over_means_no_route(host: OneHost) -> None:
    routes = loaded(host, {A: via("2001:db8::2")}, now_s() + 100)
    routes.ends_s = now_s() - 1
    host.call(routes.load, {A: via("2001:db8::2")})
    assert routes_of(host) == []
    assert host.call(routes.repair) == 0
