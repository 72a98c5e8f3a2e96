"""What is done in a provider's route tables: decisions, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_network

import pytest

from flannel_udp.backend.cloud.plan import Known, Plan, Stale, Step, make_plan, to_ask_about
from flannel_udp.backend.cloud.provider import CloudRoute, CloudTable, Leads
from flannel_udp.model import Prefix
from tests.support.backends import parse_config

SUBNETS = parse_config('{"Network": "10.1.0.0/16"}').config.v4
assert SUBNETS is not None
OWN = ip_network("10.1.15.0/24")
PEER = ip_network("10.1.16.0/24")
GONE = ip_network("10.1.17.0/24")
ITS_HOST = IPv4Address("192.0.2.3")
KNOWN = Known(OWN, SUBNETS, (PEER,), grace_s=300.0)
LIMITS = (50, 500, 1000)
TO_PEER = CloudRoute(PEER, "eni-2", Leads.TO_HOST)
OURS = CloudRoute(OWN, "eni-1", Leads.HERE)


def plan(*routes: CloudRoute, known: Known = KNOWN, n_counted: int = 3) -> Plan:
    return make_plan([CloudTable("rtb-1", (TO_PEER, *routes), n_counted)], known, LIMITS)


def verdict_of(made: Plan, destination: Prefix) -> str:
    (found,) = [row.verdict for row in made.rows if row.destination == str(destination)]
    return found


def done(made: Plan) -> list[tuple[str, Prefix]]:
    return [(step.action, step.destination) for step in made.steps]


def after_grace(*stale: CloudRoute, known: Known = KNOWN, for_s: float = 301.0) -> Known:
    ages: Mapping[Stale, float] = {Stale("rtb-1", route.destination, route.target): for_s for route in stale}
    return replace(known, stale_for_s=ages, leased=(OWN, PEER))


# --- our own route ------------------------------------------------------------------------------------------------


def test_a_route_that_stands_is_left_as_it_is() -> None:
    made = plan(OURS)
    assert (made.steps, made.lacking, made.obstacles, made.faults) == ((), (), (), {})
    assert [row.verdict for row in made.rows] == ["peer", "own"]


def test_one_that_is_missing_is_made_in_each_table_that_lacks_it() -> None:
    tables = [CloudTable("rtb-1", (TO_PEER, OURS), 2), CloudTable("rtb-2", (TO_PEER,), 1)]
    made = make_plan(tables, KNOWN, LIMITS)
    assert made.steps == (Step("create", "rtb-2", OWN, "there is none yet"),)
    assert made.lacking == ("rtb-2",)


@pytest.mark.parametrize(
    "route",
    [
        CloudRoute(OWN, "eni-9", Leads.TO_HOST, blackhole=True),
        CloudRoute(OWN, "nat-9", Leads.ELSEWHERE, blackhole=True),
        CloudRoute(OWN, "eni-1", Leads.HERE, blackhole=True),
        CloudRoute(OWN, "eni-1b", Leads.HERE_BEFORE),
    ],
)
def test_one_that_leads_nowhere_or_to_our_former_interface_is_replaced(route: CloudRoute) -> None:
    made = plan(route)
    assert done(made) == [("replace", OWN)]
    assert made.lacking == ("rtb-1",)


@pytest.mark.parametrize("leads", [Leads.TO_HOST, Leads.ELSEWHERE])
def test_a_foreign_route_for_our_subnet_is_named_and_left_alone(leads: Leads) -> None:
    made = plan(CloudRoute(OWN, "eni-9", leads))
    assert made.steps == ()
    assert made.lacking == ("rtb-1",)
    (obstacle,) = made.obstacles
    assert obstacle == (
        "rtb-1 leads our subnet 10.1.15.0/24 to eni-9: that route is not ours, and is left alone: "
        "remove it if nobody needs it"
    )


def test_a_route_to_the_host_that_had_our_subnet_before_is_replaced_if_it_is_that_host() -> None:
    route = CloudRoute(OWN, "eni-3", Leads.TO_HOST)
    known = replace(KNOWN, former={OWN: ITS_HOST})
    assert to_ask_about([CloudTable("rtb-1", (route, TO_PEER), 2)], {OWN: ITS_HOST}) == {"eni-3"}
    assert done(plan(route, known=replace(known, addresses={"eni-3": frozenset({ITS_HOST})}))) == [("replace", OWN)]
    other = frozenset({IPv4Address("192.0.2.77")})
    assert verdict_of(plan(route, known=replace(known, addresses={"eni-3": other})), OWN) == "foreign"


def test_a_narrower_foreign_route_inside_our_subnet_is_a_problem() -> None:
    made = plan(OURS, CloudRoute(IPv4Network("10.1.15.128/25"), "igw-1", Leads.ELSEWHERE))
    assert made.steps == ()
    assert made.problems == (
        "rtb-1 leads 10.1.15.128/25, a part of our subnet, to igw-1: remove that route if it is not meant to",
    )


# --- what is stale ------------------------------------------------------------------------------------------------


def test_a_route_here_for_a_subnet_that_is_not_ours_any_more_goes_at_once() -> None:
    assert done(plan(OURS, CloudRoute(GONE, "eni-1", Leads.HERE))) == [("remove", GONE)]
    assert done(plan(CloudRoute(GONE, "eni-1", Leads.HERE), known=replace(KNOWN, own=None))) == [("remove", GONE)]


TO_OUR_OTHER_INTERFACE = CloudRoute(GONE, "eni-1b", Leads.HERE_BEFORE)


def test_a_route_to_our_other_interface_for_a_subnet_that_somebody_has_is_another_agent_s_of_this_host() -> None:
    beside = replace(KNOWN, peers=(PEER, GONE))
    entered = replace(KNOWN, leased=(OWN, PEER, GONE))  # we have not heard of it
    for known in (beside, entered, replace(beside, own=None)):
        made = plan(OURS, TO_OUR_OTHER_INTERFACE, known=known)
        assert GONE not in [step.destination for step in made.steps]
        assert verdict_of(made, GONE) == "peer"
    assert plan(OURS, TO_OUR_OTHER_INTERFACE, known=beside).faults == {}


def test_one_that_nobody_has_goes_once_the_registry_has_said_so() -> None:
    made = plan(OURS, TO_OUR_OTHER_INTERFACE)
    assert (done(made), verdict_of(made, GONE), made.waits) == ([], "stale", True)
    made = plan(OURS, TO_OUR_OTHER_INTERFACE, known=replace(KNOWN, leased=(OWN, PEER)))
    assert (done(made), made.waits) == ([("remove", GONE)], False)


def test_without_a_lease_what_leads_to_our_other_interface_goes_without_a_question() -> None:
    made = plan(TO_OUR_OTHER_INTERFACE, known=replace(KNOWN, own=None))
    assert (done(made), made.waits) == ([("remove", GONE)], False)


BLACKHOLE = CloudRoute(GONE, "eni-3", Leads.TO_HOST, blackhole=True)


def test_a_black_hole_that_nobody_has_a_lease_for_goes_after_the_grace_time() -> None:
    assert done(plan(OURS, BLACKHOLE, known=after_grace(BLACKHOLE, for_s=299.0))) == []
    assert done(plan(OURS, BLACKHOLE, known=after_grace(BLACKHOLE))) == [("remove", GONE)]


def test_nothing_of_another_s_is_removed_before_the_registry_was_asked() -> None:
    known = replace(after_grace(BLACKHOLE), leased=None)
    assert done(plan(OURS, BLACKHOLE, known=known)) == []


def test_a_black_hole_whose_subnet_has_an_entry_is_left_even_if_that_is_no_peer() -> None:
    known = replace(after_grace(BLACKHOLE), leased=(OWN, PEER, GONE))
    made = plan(OURS, BLACKHOLE, known=known)
    assert done(made) == []
    assert verdict_of(made, GONE) == "peer"


def test_only_the_host_of_the_lowest_subnet_removes_what_is_stale() -> None:
    known = replace(after_grace(BLACKHOLE), peers=(PEER, ip_network("10.1.2.0/24")))
    made = plan(OURS, BLACKHOLE, known=known)
    assert done(made) == []
    assert [row.text for row in made.rows if row.verdict == "stale"] == [
        "leads nowhere: the host of 10.1.2.0/24 removes it"
    ]


def test_a_route_to_a_living_host_without_a_lease_goes_if_that_host_had_it() -> None:
    route = CloudRoute(GONE, "eni-3", Leads.TO_HOST)
    known = replace(after_grace(route), former={GONE: ITS_HOST}, addresses={"eni-3": frozenset({ITS_HOST})})
    assert done(plan(OURS, route, known=known)) == [("remove", GONE)]


MARKED = CloudRoute(GONE, "i-3", Leads.TO_HOST, marked=True)


def test_a_route_with_our_mark_and_without_a_lease_goes_though_nobody_has_heard_of_its_host() -> None:
    assert to_ask_about([CloudTable("rtb-1", (MARKED,), 1)], {GONE: ITS_HOST}) == set()
    assert done(plan(OURS, MARKED, known=after_grace(MARKED, for_s=299.0))) == []
    assert done(plan(OURS, MARKED, known=after_grace(MARKED))) == [("remove", GONE)]
    assert done(plan(OURS, MARKED, known=replace(after_grace(MARKED), leased=None))) == []


def test_a_route_with_our_mark_that_leads_our_subnet_to_another_host_is_replaced() -> None:
    assert done(plan(replace(MARKED, destination=OWN))) == [("replace", OWN)]


def test_a_mark_on_what_is_no_route_as_ours_are_says_nothing() -> None:
    made = plan(OURS, replace(MARKED, leads=Leads.ELSEWHERE), known=after_grace(MARKED))
    assert (done(made), verdict_of(made, GONE)) == ([], "foreign")
    made = plan(replace(MARKED, destination=OWN, leads=Leads.ELSEWHERE))
    assert (done(made), verdict_of(made, OWN), len(made.obstacles)) == ([], "foreign", 1)


def test_a_route_to_a_host_of_which_nobody_has_heard_is_left_alone() -> None:
    route = CloudRoute(GONE, "eni-3", Leads.TO_HOST)
    made = plan(OURS, route, known=after_grace(route))
    assert done(made) == []
    assert verdict_of(made, GONE) == "unknown"


@pytest.mark.parametrize(
    "route",
    [
        CloudRoute(GONE, "tgw-1", Leads.ELSEWHERE),
        CloudRoute(GONE, "tgw-1", Leads.ELSEWHERE, blackhole=True),
        CloudRoute(IPv4Network("10.1.64.0/20"), "eni-3", Leads.TO_HOST, blackhole=True),
        CloudRoute(IPv4Network("10.1.0.0/24"), "eni-3", Leads.TO_HOST, blackhole=True),
        CloudRoute(IPv4Network("10.1.0.0/16"), "eni-3", Leads.TO_HOST, blackhole=True),
        CloudRoute(IPv4Network("10.1.0.0/16"), "eni-1", Leads.HERE),
    ],
)
def test_what_is_no_route_as_ours_are_is_left_alone(route: CloudRoute) -> None:
    made = plan(OURS, route, known=after_grace(route))
    assert done(made) == []
    assert verdict_of(made, route.destination) == "foreign"


def test_routes_outside_the_overlay_are_nobody_s_business() -> None:
    others = [
        CloudRoute(IPv4Network(at), "igw-1", Leads.ELSEWHERE) for at in ("0.0.0.0/0", "10.0.0.0/8", "10.2.0.0/24")
    ]
    assert [row.destination for row in plan(OURS, *others).rows] == ["10.1.16.0/24", "10.1.15.0/24"]


def test_what_makes_room_comes_before_what_needs_it() -> None:
    assert done(plan(BLACKHOLE, known=after_grace(BLACKHOLE))) == [("remove", GONE), ("create", OWN)]


# --- what is said -------------------------------------------------------------------------------------------------


def test_a_peer_without_a_route_is_a_fault_of_that_peer() -> None:
    made = make_plan([CloudTable("rtb-1", (OURS,), 1)], KNOWN, LIMITS)
    assert made.faults == {PEER: "rtb-1 has no route to a host for 10.1.16.0/24"}


@pytest.mark.parametrize(
    ("n_counted", "said"),
    [
        (44, ()),
        (45, ("rtb-1 has 45 routes, and the limit is 50, unless it was raised",)),
        (51, ()),
        (450, ("rtb-1 has 450 routes, and the limit is 500, unless it was raised",)),
        (900, ("rtb-1 has 900 routes, and the limit is 1000",)),
        (1100, ("rtb-1 has 1100 routes, and the limit is 1000",)),
    ],
)
def test_a_limit_is_named_before_it_is_hit(n_counted: int, said: tuple[str, ...]) -> None:
    assert plan(OURS, n_counted=n_counted).near_limits == said


@pytest.mark.parametrize(
    ("n_counted", "limit", "n_said"), [(179, 200, 0), (200, 200, 1), (201, None, 0), (9999, None, 0)]
)
def test_beyond_a_limit_of_which_nobody_says_how_far_it_can_be_raised_none_is_named(
    n_counted: int, limit: int | None, n_said: int
) -> None:
    made = make_plan([CloudTable("vtb-1", (OURS,), n_counted)], KNOWN, (48, 200, None))
    assert (made.tables[0].limit, len(made.near_limits)) == (limit, n_said)
