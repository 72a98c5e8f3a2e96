"""A network of both families: what each of them is told, and what one's misfortune costs the other."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flannel_udp.backend import late
from flannel_udp.backend.alloc import AllocNetwork
from flannel_udp.backend.ends import join_attrs
from flannel_udp.backend.families import open_families
from flannel_udp.backend.protocol import Context, Handed, Network, NetworkFacts
from flannel_udp.backend.vxlan.hop import vxlan_attrs
from flannel_udp.errors import Claimed, ConfigError, FlannelError
from flannel_udp.host.monitor import Interest, OwnRoutes
from flannel_udp.host.repair import STANDS, Standing
from flannel_udp.model import Delta, Ends, Interface, LeaseAttrs, Peer, Prefix, Subnet
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.options import Options
from tests.unit.test_config import parse_config

V4, V6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
EXTERNAL = Interface("eth0", 2, 1500, Ends(V4, V4), Ends(V6, V6))
OWN = Subnet(IPv4Network("10.1.15.0/24"), IPv6Network("fd00:1:2::/64"))
FOUR = Peer(IPv4Network("10.1.16.0/24"), IPv4Address("192.0.2.2"))
SIX = Peer(IPv6Network("fd00:1:3::/64"), IPv6Address("2001:db8::2"))


def config_of(**keys: object) -> NetworkConfig:
    document = {"Network": "10.1.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:1::/48", **keys}
    return parse_config(json.dumps(document)).config


class Part(AllocNetwork):
    """A real network of one family that carries nothing, and remembers."""

    def __init__(self, context: Context, version: int) -> None:
        super().__init__(context, LeaseAttrs(None), version)
        self.told: list[tuple[str, object]] = []
        self.fails: str | None = None
        self.standing = STANDS
        self.until_s: float | None = None

    def _note(self, what: str, value: object = None) -> None:
        self.told.append((what, value))
        if self.fails is not None:
            raise FlannelError(self.fails)

    async def publish(self, own: Subnet, deltas: object, *, whole: bool) -> None:
        self._note("publish", (deltas, whole))
        await super().publish(own, deltas, whole=whole)  # type: ignore[arg-type]

    async def hold(self, subnet: Subnet, former: LeaseAttrs | None) -> None:  # noqa: ARG002
        self._note("hold", subnet.of(self._version))

    async def withdraw(self) -> None:
        self._note("withdraw")

    async def follow(self, external: Interface) -> None:
        self._note("follow", external.of(self._version))

    def forward_until(self, boottime_s: float | None) -> None:
        self.until_s = boottime_s

    async def close(self, *, keep: bool) -> None:
        self._note("close", keep)

    async def repair(self) -> Standing:
        self._note("repair")
        return self.standing

    def interest(self) -> Interest:
        def wanted(destination: Prefix) -> IPv4Address | IPv6Address | None:
            peer = self._peers.get(destination)
            return None if peer is None else peer.public_ip

        return Interest({self._version}, {self._version * 10}, OwnRoutes(82, wanted))

    def facts(self) -> NetworkFacts:
        return replace(
            super().facts(),
            device=f"device{self._version}",
            direct=1,
            kernel_drops={"tunnel_out": 1, "interface_in": 7},
            problems=("both say this", f"only {self._version}"),
            faults={peer.subnet: "gone" for peer in self.peers()},
        )


async def opened(config: NetworkConfig, external: Interface = EXTERNAL) -> tuple[Network, dict[int, Part]]:
    parts: dict[int, Part] = {}

    async def open_one(context: Context, version: int) -> Network:
        parts[version] = Part(context, version)
        return parts[version]

    return await open_families(Context(Options(), config, external, lambda: None), open_one), parts


@pytest.fixture
async def pair() -> tuple[Network, Part, Part]:
    network, parts = await opened(config_of())
    return network, parts[4], parts[6]


async def test_a_network_of_one_family_has_nothing_around_it() -> None:
    network, parts = await opened(config_of(EnableIPv6=False))
    assert network is parts[4]
    network, parts = await opened(config_of(EnableIPv4=False))
    assert network is parts[6]
    assert network.attrs == LeaseAttrs(None, V6)


async def test_a_host_without_an_ipv6_address_takes_part_by_ipv4_alone() -> None:
    network, parts = await opened(config_of(), replace(EXTERNAL, v6=None))
    assert list(parts) == [4]
    assert network.attrs == LeaseAttrs(V4)
    await network.publish(OWN, [Delta(added=(FOUR, SIX))], whole=True)
    assert network.peers() == [FOUR]
    assert network.route(SIX.subnet[5]).peer is None
    assert network.ways(6) is None


async def test_without_an_address_of_any_family_it_is_one_line() -> None:
    with pytest.raises(FlannelError, match="interface eth0 has no address of a family that is on"):
        await opened(config_of(EnableIPv4=False), replace(EXTERNAL, v6=None))


class Opening:
    """Opens real networks, but for the IP versions that something is in the way of."""

    def __init__(self, **in_the_way: FlannelError) -> None:
        self.in_the_way = {int(name[1]): error for name, error in in_the_way.items()}
        self.tried: list[int] = []
        self.parts: dict[int, Part] = {}

    async def __call__(self, context: Context, version: int) -> Network:
        self.tried.append(version)
        if version in self.in_the_way:
            raise self.in_the_way[version]
        self.parts[version] = Part(context, version)
        return self.parts[version]

    async def network(
        self, external: Interface = EXTERNAL, carried: tuple[int, ...] = (), handed: Handed | None = None
    ) -> Network:
        return await open_families(Context(Options(), config_of(), external, lambda: None, handed), self, carried)


async def test_what_keeps_one_family_from_being_opened_costs_the_other_nothing_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opening = Opening(v6=FlannelError("the port is in use"))
    network = await opening.network()
    network.forward_until(77.0)
    assert network.attrs == LeaseAttrs(V4)
    standing = await network.repair()
    assert standing.problems == ("no IPv6 traffic (trying again): the port is in use",)
    assert standing.again_s is not None
    tried = len(opening.tried)
    await network.repair()
    assert len(opening.tried) == tried  # not before its time
    opening.in_the_way.clear()
    monkeypatch.setattr(late, "time", Later())
    assert await network.repair() == STANDS
    assert (network.attrs, network.repairs["family"]) == (LeaseAttrs(V4, V6), 1)
    assert opening.parts[6].until_s == 77.0


class Later:
    """A clock that is an hour ahead."""

    @staticmethod
    def monotonic() -> float:
        return time.monotonic() + 3600


@pytest.mark.parametrize("version", [4, 6])
async def test_a_family_whose_address_comes_late_is_opened_with_it(version: int) -> None:
    opening = Opening()
    lacks = replace(EXTERNAL, v4=None) if version == 4 else replace(EXTERNAL, v6=None)
    network = await opening.network(lacks)
    assert await network.repair() == STANDS
    assert version not in opening.parts
    await network.follow(EXTERNAL)
    assert await network.repair() == STANDS
    assert network.attrs == LeaseAttrs(V4, V6)
    assert await network.repair() == STANDS
    assert opening.tried == [10 - version, version]


async def test_another_address_is_a_reason_to_try_at_once() -> None:
    opening = Opening(v6=FlannelError("the port is in use"))
    network = await opening.network()
    await network.repair()
    opening.in_the_way.clear()
    other = IPv6Address("2001:db8::9")
    await network.follow(replace(EXTERNAL, v6=Ends(other, other)))
    assert await network.repair() == STANDS
    assert network.attrs == LeaseAttrs(V4, other)


async def test_where_no_family_can_be_opened_the_first_ones_reason_is_said() -> None:
    with pytest.raises(FlannelError, match="four"):
        await Opening(v4=FlannelError("four"), v6=FlannelError("six")).network()


@pytest.mark.parametrize("error", [Claimed("another agent has it"), ConfigError(["a wrong key"])])
async def test_what_no_family_can_go_on_without_ends_both(error: FlannelError) -> None:
    opening = Opening(v6=error)
    with pytest.raises(type(error), match=str(error)):
        await opening.network()
    assert opening.parts[4].told == [("close", False)]


async def test_what_was_handed_over_and_is_refused_is_refused_once() -> None:
    opening = Opening(v4=FlannelError("no packet path here"), v6=FlannelError("no packet path here"))
    with pytest.raises(FlannelError, match="no packet path here"):
        await opening.network(handed=Handed({}))
    assert opening.tried == [4]


async def test_what_was_handed_over_goes_on_all_of_it_or_nothing() -> None:
    opening = Opening(v6=FlannelError("no"))
    with pytest.raises(FlannelError, match="no"):
        await opening.network(carried=(4, 6))
    assert opening.parts[4].told == [("close", True)]
    assert (await opening.network(carried=(4,))).attrs == LeaseAttrs(V4)


async def test_each_family_is_told_of_its_own_peers_only(pair: tuple[Network, Part, Part]) -> None:
    network, four, six = pair
    await network.publish(OWN, [Delta(added=(FOUR, SIX))], whole=True)
    await network.publish(OWN, [Delta(removed=(SIX,), warnings=("w",))], whole=False)
    assert four.told == [("publish", ([Delta(added=(FOUR,))], True))]
    assert six.told == [("publish", ([Delta(added=(SIX,))], True)), ("publish", ([Delta(removed=(SIX,))], False))]
    assert network.peers() == [FOUR]


async def test_a_subnet_of_one_family_leaves_the_other_alone(pair: tuple[Network, Part, Part]) -> None:
    network, four, six = pair
    only_v4 = Subnet(OWN.v4)
    await network.hold(only_v4, None)
    await network.publish(only_v4, [Delta(added=(FOUR,))], whole=True)
    assert [what for what, _ in four.told] == ["hold", "publish"]
    assert six.told == []


@pytest.mark.parametrize("failing", [4, 6])
async def test_what_fails_of_one_family_is_done_for_the_other(pair: tuple[Network, Part, Part], failing: int) -> None:
    network, *parts = pair
    ill, well = sorted(parts, key=lambda part: part._version != failing)
    ill.fails = "no room"
    for doing, what in (
        (network.hold(OWN, None), "hold"),
        (network.publish(OWN, [], whole=True), "publish"),
        (network.follow(EXTERNAL), "follow"),
        (network.withdraw(), "withdraw"),
        (network.close(keep=False), "close"),
    ):
        with pytest.raises(FlannelError, match=r"^no room$"):
            await doing
        assert well.told[-1][0] == what


async def test_what_is_in_one_familys_way_is_an_obstacle_only_if_both_have_one(
    pair: tuple[Network, Part, Part],
) -> None:
    network, four, six = pair
    six.fails = "no device"
    standing = await network.repair()
    assert (standing.obstacles, standing.problems) == ((), ("no device",))
    assert standing.again_s is not None
    four.standing = Standing(("no route",), ("slow",))
    standing = await network.repair()
    assert (standing.obstacles, standing.problems) == (("no route", "no device"), ("slow",))


async def test_a_family_whose_address_has_gone_stays_as_it_is(pair: tuple[Network, Part, Part]) -> None:
    network, four, six = pair
    await network.follow(replace(EXTERNAL, v6=None))
    assert ([what for what, _ in four.told], six.told) == (["follow"], [])


async def test_what_is_asked_is_answered_for_both(pair: tuple[Network, Part, Part]) -> None:
    network, four, six = pair
    await network.publish(OWN, [Delta(added=(FOUR, SIX))], whole=True)
    assert network.peers() == [FOUR, SIX]
    assert network.find({int(FOUR.public_ip), int(SIX.public_ip), 7}) == {
        int(FOUR.public_ip): FOUR,
        int(SIX.public_ip): SIX,
    }
    assert [network.route(peer.subnet[5]).peer for peer in (FOUR, SIX)] == [FOUR, SIX]
    assert all(network.route(part[5]).own for part in OWN.prefixes)
    four.repairs["route"], six.repairs["route"] = 2, 3
    assert network.repairs["route"] == 5
    four.mtu, six.mtu = 1450, 1430
    assert network.mtu == 1430


async def test_news_of_either_family_are_of_interest(pair: tuple[Network, Part, Part]) -> None:
    network, _, _ = pair
    await network.publish(OWN, [Delta(added=(FOUR, SIX))], whole=True)
    interest = network.interest()
    assert (interest.devices, interest.prefix_lens) == ({4, 6}, {40, 60})
    assert interest.own is not None
    assert [interest.own.wanted(peer.subnet) for peer in (FOUR, SIX)] == [FOUR.public_ip, SIX.public_ip]
    assert interest.own.wanted(IPv6Network("fd00:9::/64")) is None


async def test_facts_are_those_of_both(pair: tuple[Network, Part, Part]) -> None:
    network, _, _ = pair
    await network.publish(OWN, [Delta(added=(FOUR, SIX))], whole=True)
    facts = network.facts()
    assert (facts.device, facts.device_v6, facts.direct) == ("device4", "device6", 2)
    assert facts.kernel_drops == {"tunnel_out": 2, "interface_in": 7}
    assert facts.problems == ("both say this", "only 4", "only 6")
    assert facts.faults == {FOUR.subnet: "gone", SIX.subnet: "gone"}


def test_a_lease_says_of_both_families_what_each_says_of_itself() -> None:
    parts = [replace(vxlan_attrs(1, 0xA), public_ip=V4), replace(vxlan_attrs(1, 0xB, 6), public_ipv6=V6)]
    assert join_attrs(parts) == LeaseAttrs(
        V4,
        V6,
        "vxlan",
        {"VNI": 1, "VtepMAC": "00:00:00:00:00:0a"},
        {"VNI": 1, "VtepMAC": "00:00:00:00:00:0b"},
    )
