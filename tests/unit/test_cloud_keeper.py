"""How a provider's route tables are kept right: the keeper, the real SDK and moto's server, with shorter pauses."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Any

import pytest

from flannel_udp.backend.cloud import keeper as keeper_module
from flannel_udp.backend.cloud.aws import AwsProvider
from flannel_udp.backend.cloud.aws.account import AwsAccount
from flannel_udp.backend.cloud.keeper import RouteKeeper
from flannel_udp.errors import RegistryError
from flannel_udp.model import Peer, Prefix, Subnet
from tests.support.aws_host import on_host
from tests.support.backends import parse_config
from tests.support.patience import PATIENCE_S, promised
from tests.support.served import external
from tests.support.vpc import Vpc, interface_of, metadata_on_loopback, vpc_on_loopback

CONFIG = parse_config(json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": "aws-vpc"}})).config
OWN, PEER, GONE = (IPv4Network(f"10.1.{number}.0/24") for number in (15, 16, 17))
ITS_HOST = IPv4Address("192.0.2.3")
THE_PEER = Peer(PEER, IPv4Address("192.0.2.2"))
A_MOMENT_S = 1.0


@pytest.fixture(scope="module")
def vpc() -> Iterator[Vpc]:
    with vpc_on_loopback() as vpc:
        yield vpc


@pytest.fixture(scope="module")
def ours(vpc: Vpc) -> dict[str, Any]:
    return vpc.add_host("192.0.2.1")


@pytest.fixture(scope="module")
def other(vpc: Vpc) -> str:
    """The network interface of the host that had `GONE`."""
    return interface_of(vpc.add_host(str(ITS_HOST)))


@pytest.fixture(scope="module")
def metadata(ours: dict[str, Any]) -> Iterator[str]:
    with metadata_on_loopback(ours) as url:
        yield url


@pytest.fixture(autouse=True)
def here(vpc: Vpc, metadata: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"LOOK_S": (0.1, 0.2), "FIRST_RETRY_S": 0.1, "LAST_RETRY_S": 0.3, "GRACE_S": 0.5}.items():
        monkeypatch.setattr(keeper_module, name, value)
    with on_host(vpc, metadata, monkeypatch):
        yield


class World:
    """A keeper that runs; `listed` is what the registry has, ``None``: it is away."""

    def __init__(self, address: str) -> None:
        self.listed: list[Subnet] | None = [Subnet(OWN), Subnet(PEER)]
        self.told = 0
        connect = partial(AwsProvider().connect, CONFIG, external(address))
        assert CONFIG.v4 is not None
        self.keeper = RouteKeeper(connect, CONFIG.v4, self._list, self._tell)

    async def _list(self) -> list[Subnet]:
        if self.listed is None:
            raise RegistryError("it is away")
        return self.listed

    def _tell(self) -> None:
        self.told += 1

    def verdicts(self) -> dict[str, str]:
        return {row.destination: row.verdict for row in self.keeper.facts().routes}


@asynccontextmanager
async def world(address: str = "192.0.2.1") -> AsyncIterator[World]:
    """Have a keeper that runs for the block."""
    made = World(address)
    running = asyncio.create_task(made.keeper.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.wait((running,))
        made.keeper.close()


async def until(what: str, condition: Callable[[], object]) -> None:
    """Wait for it; what asks the server does so in a thread."""
    async with asyncio.timeout(PATIENCE_S):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


async def stood(made: World) -> None:
    """Have our own route made, and wait for it."""
    made.keeper.know_peers([THE_PEER])
    made.keeper.want(OWN)
    async with asyncio.timeout(PATIENCE_S):
        await made.keeper.stands()


async def looks(made: World, n: int = 2) -> None:
    """Wait until it has looked so often."""
    for _ in range(n):
        before = made.keeper.facts().looked_s
        await until("a look", lambda before=before: made.keeper.facts().looked_s != before)  # type: ignore[misc]


async def test_nothing_is_asked_before_there_is_a_subnet(vpc: Vpc) -> None:
    asked = len(vpc.asked())
    async with world():
        await asyncio.sleep(A_MOMENT_S)
    assert len(vpc.asked()) == asked


async def test_our_route_stands_and_the_check_is_off_before_we_are_ready(vpc: Vpc, ours: dict[str, Any]) -> None:
    async with world() as made:
        await stood(made)
        assert await asyncio.to_thread(vpc.routes) == {str(OWN): interface_of(ours)}
        assert await asyncio.to_thread(vpc.may_forward, interface_of(ours))
        assert (made.keeper.obstacles, made.keeper.problems) == ((), ())
        assert made.told > 0


async def test_a_route_that_somebody_deletes_is_made_again_and_counted(vpc: Vpc, ours: dict[str, Any]) -> None:
    async with world() as made:
        await stood(made)
        await asyncio.to_thread(vpc.unlead, str(OWN))
        await until("it is back", lambda: vpc.routes() == {str(OWN): interface_of(ours)})
        await until("it is counted", lambda: made.keeper.repairs["route"] == 1)


async def test_a_foreign_route_is_an_obstacle_until_somebody_removes_it(
    vpc: Vpc, ours: dict[str, Any], other: str
) -> None:
    vpc.lead(str(OWN), other)
    async with world() as made:
        made.keeper.want(OWN)
        await until("it is named", lambda: made.keeper.obstacles)
        (obstacle,) = made.keeper.obstacles
        assert obstacle == (
            f"{vpc.main} leads our subnet {OWN} to {other}: that route is not ours, and is left alone: "
            "remove it if nobody needs it"
        )
        await looks(made)
        assert await asyncio.to_thread(vpc.routes) == {str(OWN): other}
        await asyncio.to_thread(vpc.unlead, str(OWN))
        async with asyncio.timeout(PATIENCE_S):
            await made.keeper.stands()
        await until("nothing is in the way", lambda: made.keeper.obstacles == ())


async def test_a_black_hole_in_our_place_is_replaced(vpc: Vpc, ours: dict[str, Any], other: str) -> None:
    vpc.lead(str(OWN), other)
    vpc.order("/test/blackholes", [other])
    async with world() as made:
        await stood(made)
        assert await asyncio.to_thread(vpc.routes) == {str(OWN): interface_of(ours)}


async def test_withdrawn_the_route_goes_and_with_another_subnet_the_former_one_s(
    vpc: Vpc, ours: dict[str, Any]
) -> None:
    async with world() as made:
        await stood(made)
        made.keeper.want(PEER)
        async with asyncio.timeout(PATIENCE_S):
            await made.keeper.stands()
        assert await asyncio.to_thread(vpc.routes) == {str(PEER): interface_of(ours)}
        made.keeper.want(None)
        async with asyncio.timeout(PATIENCE_S):
            await made.keeper.gone()
        assert await asyncio.to_thread(vpc.routes) == {}


async def test_of_two_hosts_with_one_subnet_after_another_the_second_one_has_the_route(
    vpc: Vpc, ours: dict[str, Any], other: str
) -> None:
    vpc.lead(str(OWN), other)
    async with world() as made:
        made.keeper.know_peers([Peer(OWN, ITS_HOST)])
        await stood(made)
        assert await asyncio.to_thread(vpc.routes) == {str(OWN): interface_of(ours)}


async def test_two_agents_of_one_host_with_an_interface_each_leave_each_other_s_route(
    vpc: Vpc, ours: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = vpc.add_host("192.0.2.5")
    both = {**ours, "interfaces": [*ours["interfaces"], *beside["interfaces"]]}
    with metadata_on_loopback(both) as url:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        async with world() as first, world("192.0.2.5") as second:
            for made, subnet in ((first, OWN), (second, PEER)):
                made.keeper.want(subnet)
                async with asyncio.timeout(PATIENCE_S):
                    await made.keeper.stands()
            for made in (first, second):
                await looks(made)
            led = {str(OWN): interface_of(ours), str(PEER): interface_of(beside)}
            assert await asyncio.to_thread(vpc.routes) == led
            assert [made.keeper.repairs["route"] for made in (first, second)] == [0, 0]
            assert first.verdicts() == {str(OWN): "own", str(PEER): "peer"}


# --- hosts that are gone ------------------------------------------------------------------------------------------


async def test_the_route_of_a_host_whose_lease_is_gone_goes_after_the_grace_time(vpc: Vpc, other: str) -> None:
    vpc.lead(str(GONE), other)
    async with world() as made:
        made.keeper.know_peers([THE_PEER, Peer(GONE, ITS_HOST)])
        made.listed = [Subnet(OWN), Subnet(PEER), Subnet(GONE)]
        made.keeper.want(OWN)
        await until("it is a peer's", lambda: made.verdicts().get(str(GONE)) == "peer")
        made.keeper.know_peers([THE_PEER])
        await asyncio.sleep(A_MOMENT_S)  # longer than the grace time
        await looks(made)
        assert str(GONE) in await asyncio.to_thread(vpc.routes)  # the registry still has an entry for it
        assert made.verdicts()[str(GONE)] == "peer"
        made.listed = [Subnet(OWN), Subnet(PEER)]
        await until("it is gone", lambda: str(GONE) not in vpc.routes())


async def test_a_black_hole_without_a_lease_goes_and_while_the_registry_is_away_nothing_does(
    vpc: Vpc, other: str
) -> None:
    vpc.lead(str(GONE), other)
    vpc.order("/test/blackholes", [other])
    async with world() as made:
        made.listed = None
        await stood(made)
        await asyncio.sleep(A_MOMENT_S)
        await looks(made)
        assert str(GONE) in await asyncio.to_thread(vpc.routes)
        made.listed = [Subnet(OWN), Subnet(PEER)]
        await until("it is gone", lambda: str(GONE) not in vpc.routes())


async def test_a_route_that_somebody_needs_since_the_look_is_not_removed(
    vpc: Vpc, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed, loop, remove = IPv4Network("10.1.18.0/24"), asyncio.get_running_loop(), AwsAccount.remove
    for at in (GONE, needed):
        vpc.lead(str(at), other)
    vpc.order("/test/blackholes", [other])
    async with world() as made:

        def get() -> None:
            made.keeper.know_peers([THE_PEER, Peer(needed, ITS_HOST)])
            made.listed = [Subnet(OWN), Subnet(PEER), Subnet(needed)]

        def remove_slowly(account: AwsAccount, table: str, destination: Prefix) -> None:
            loop.call_soon_threadsafe(get)
            remove(account, table, destination)

        monkeypatch.setattr(AwsAccount, "remove", remove_slowly)
        await stood(made)
        await until("the first one is gone", lambda: str(GONE) not in vpc.routes())
        await looks(made)
        assert str(needed) in await asyncio.to_thread(vpc.routes)


async def test_a_route_that_somebody_has_led_elsewhere_since_a_look_that_is_long_past_is_not_removed(
    vpc: Vpc, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    again, remove = IPv4Network("10.1.18.0/24"), AwsAccount.remove
    stranger = interface_of(vpc.add_host("192.0.2.6"))
    for at in (GONE, again):
        vpc.lead(str(at), other)
    vpc.order("/test/blackholes", [other])
    left: list[Prefix] = []

    def remove_slowly(account: AwsAccount, table: str, destination: Prefix) -> None:
        if not left:
            left.append(again if destination == GONE else GONE)
            vpc.unlead(str(left[0]))
            vpc.lead(str(left[0]), stranger)
            time.sleep(A_MOMENT_S)
        remove(account, table, destination)

    monkeypatch.setattr(AwsAccount, "remove", remove_slowly)
    monkeypatch.setattr(keeper_module, "FRESH_S", A_MOMENT_S / 2)
    async with world() as made:
        await stood(made)
        await until("the first one is gone", lambda: left and set(vpc.routes()) == {str(OWN), str(left[0])})
        await looks(made)
        assert (await asyncio.to_thread(vpc.routes))[str(left[0])] == stranger
        assert made.verdicts()[str(left[0])] == "unknown"


async def test_a_host_that_is_not_the_lowest_one_removes_nothing(vpc: Vpc, other: str) -> None:
    vpc.lead(str(GONE), other)
    vpc.order("/test/blackholes", [other])
    async with world() as made:
        made.keeper.know_peers([Peer(ip_network("10.1.2.0/24"), IPv4Address("192.0.2.4"))])
        made.keeper.want(OWN)
        await until("it is stale", lambda: made.verdicts().get(str(GONE)) == "stale")
        await asyncio.sleep(A_MOMENT_S)
        await looks(made)
        assert str(GONE) in await asyncio.to_thread(vpc.routes)
        facts = made.keeper.facts()
        assert (facts.cleaner, facts.cleans) == ("10.1.2.0/24", False)


async def test_a_route_to_a_host_that_nobody_knows_stays(vpc: Vpc, other: str) -> None:
    vpc.lead(str(GONE), other)
    async with world() as made:
        await stood(made)
        await asyncio.sleep(A_MOMENT_S)
        await looks(made)
        assert made.verdicts()[str(GONE)] == "unknown"
        assert str(GONE) in await asyncio.to_thread(vpc.routes)


# --- what goes wrong ----------------------------------------------------------------------------------------------


async def test_what_keeps_us_from_our_route_is_an_obstacle_said_once_and_tried_again(
    vpc: Vpc, caplog: pytest.LogCaptureFixture
) -> None:
    vpc.fail({"action": "CreateRoute", "status": 400, "code": "RouteLimitExceeded"})
    line = f"{vpc.main} has as many routes as it may have: ask AWS to raise the quota (routes per table)"
    with caplog.at_level(logging.INFO, logger=keeper_module.__name__):
        async with world() as made:
            made.keeper.want(OWN)
            await until("it is said", lambda: made.keeper.obstacles == (line,))
            await looks(made, 3)
            said = [record.getMessage() for record in caplog.records if line in record.getMessage()]
            assert said == [f"cloud routes: {line} (trying again)"]
            await asyncio.to_thread(vpc.fail)
            async with asyncio.timeout(PATIENCE_S):
                await made.keeper.stands()
            assert made.keeper.obstacles == ()
            assert "cloud routes: works now" in [record.getMessage() for record in caplog.records]


async def test_once_it_stands_a_look_that_fails_is_a_problem_and_no_obstacle(vpc: Vpc) -> None:
    async with world() as made:
        await stood(made)
        await asyncio.to_thread(
            vpc.fail, {"action": "DescribeRouteTables", "status": 403, "code": "UnauthorizedOperation"}
        )
        await until("it is a problem", lambda: made.keeper.problems)
        assert made.keeper.obstacles == ()
        await asyncio.to_thread(vpc.fail)
        await until("it works again", lambda: made.keeper.problems == ())


async def test_a_check_that_cannot_be_switched_off_is_a_problem_and_the_route_is_made(vpc: Vpc) -> None:
    right = "ec2:DescribeNetworkInterfaceAttribute"
    vpc.fail({"action": right[4:], "status": 403, "code": "UnauthorizedOperation"})
    async with world() as made:
        await stood(made)
        assert any(f"no right to {right} on eni-" in problem for problem in made.keeper.problems)
        await asyncio.to_thread(vpc.fail)
        await until("nobody misses it any more", lambda: made.keeper.problems == ())


async def test_one_thing_that_cannot_be_done_keeps_nothing_else_from_being_done(vpc: Vpc, ours: dict[str, Any]) -> None:
    vpc.lead(str(GONE), interface_of(ours))  # of a former lease of ours
    vpc.fail({"action": "DeleteRoute", "status": 403, "code": "UnauthorizedOperation"})
    async with world() as made:
        made.keeper.want(OWN)
        async with asyncio.timeout(PATIENCE_S):
            await made.keeper.stands()
        assert await asyncio.to_thread(vpc.routes) == dict.fromkeys((str(OWN), str(GONE)), interface_of(ours))
        await until("the other one is named", lambda: any("ec2:DeleteRoute" in text for text in made.keeper.problems))


async def test_what_was_written_is_read_again_before_we_are_ready(vpc: Vpc) -> None:
    async with world() as made:
        asked = len(await asyncio.to_thread(vpc.asked))
        await stood(made)
        actions = (await asyncio.to_thread(vpc.asked))[asked:]
        assert "DescribeRouteTables" in actions[actions.index("CreateRoute") :]


async def test_a_peer_without_a_route_is_a_fault_of_that_peer_once_two_looks_have_missed_it(
    vpc: Vpc, other: str
) -> None:
    async with world() as made:
        await stood(made)
        await until("it is named", lambda: made.keeper.faults)
        assert made.keeper.faults == {PEER: f"{vpc.main} has no route to a host for {PEER}"}
        await asyncio.to_thread(vpc.lead, str(PEER), other)
        await until("it is no more", lambda: not made.keeper.faults)


async def test_who_ends_while_the_provider_is_silent_is_not_held_up(vpc: Vpc) -> None:
    bound_s = promised(1.0)
    silent_s = 2 * bound_s + 1.0
    vpc.fail({"action": "DescribeRouteTables", "delay_s": silent_s, "times": 1})
    asked = vpc.asked().count("DescribeRouteTables")
    async with world() as made:
        made.keeper.want(OWN)
        await until("it is asked", lambda: vpc.asked().count("DescribeRouteTables") > asked)
        began_s = time.monotonic()
    assert time.monotonic() - began_s < bound_s
    await asyncio.sleep(silent_s)  # until the thread has its answer
