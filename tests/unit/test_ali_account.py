"""What ali-vpc asks of Alibaba's VPC API, and what it says when that says no: with the real SDK, against our server."""

from __future__ import annotations

import json
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.backend.cloud.ali import account, identity
from flannel_udp.backend.cloud.plan import Known, make_plan
from flannel_udp.backend.cloud.provider import CloudError, CloudRoute, Leads
from tests.support.ali_host import config_of, connect, fault_of, fixtures, overlay_routes
from tests.support.ali_vpc import (
    FAR_TABLE,
    KEY,
    MAIN,
    OTHER_TABLE,
    REGION,
    VPC,
    VSWITCH,
    AliVpc,
    metadata_on_loopback,
)  # fmt: skip
from tests.support.served import UNUSABLE_PROXIES

POLICY = Path(__file__).parents[2] / "examples" / "cloud" / "ali-policy.json"
AT, OTHER = IPv4Network("10.1.15.0/24"), IPv4Network("10.1.16.0/24")
LIST = "DescribeRouteTableList"
place, vpc, host, here = fixtures()


# --- what there is ------------------------------------------------------------------------------------------------


def test_the_host_is_the_instance_whose_network_interface_has_our_address(host: dict[str, Any]) -> None:
    assert connect().here == f"{host['instance']}, {host['interfaces'][0]['id']} in {REGION}"


def test_a_route_is_made_read_replaced_and_removed(vpc: AliVpc, host: dict[str, Any]) -> None:
    account = connect()
    account.create(MAIN, AT)
    assert overlay_routes(account) == [CloudRoute(AT, host["instance"], Leads.HERE, marked=True)]
    assert [entry["RouteEntryName"] for entry in vpc.entries()] == ["flannel-udp"]
    account.remove(MAIN, AT)
    assert vpc.routes() == {}
    account.remove(MAIN, AT)  # it is gone, as it was to be
    vpc.lead(str(AT), "i-bp1former")
    account.tables()
    account.replace(MAIN, AT)
    assert overlay_routes(account) == [CloudRoute(AT, host["instance"], Leads.HERE, marked=True)]


def test_what_is_removed_is_the_entry_that_was_read_and_none_that_came_in_its_place(vpc: AliVpc) -> None:
    account = connect()
    vpc.lead(str(AT), "i-bp1stale")
    account.tables()
    vpc.unlead(str(AT))
    vpc.lead(str(AT), "i-bp1new")
    account.remove(MAIN, AT)
    assert vpc.routes() == {str(AT): "i-bp1new"}


def test_a_change_that_is_under_way_is_waited_for(
    vpc: AliVpc, host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    account_ = connect()
    vpc.settle_after(3)
    account_.create(MAIN, AT)
    assert [entry["Status"] for entry in vpc.entries()] == ["Pending"]
    assert overlay_routes(account_) == [CloudRoute(AT, host["instance"], Leads.HERE, marked=True)]
    account_.remove(MAIN, AT)
    assert [entry["Status"] for entry in vpc.entries()] == ["Deleting"]
    assert overlay_routes(account_) == []
    vpc.settle_after(1_000)
    vpc.make_world()
    account_.create(MAIN, AT)
    monkeypatch.setattr(account, "SETTLE_S", 0.05)
    with pytest.raises(CloudError) as caught:
        account_.tables()
    assert str(caught.value) == f"our route to {AT} in {MAIN} is Pending for 0.05 s now"


def test_what_somebody_else_has_under_way_is_not_waited_for(vpc: AliVpc, host: dict[str, Any]) -> None:
    vpc.settle_after(1_000)
    vpc.lead("0.0.0.0/0", host["instance"], status="Modifying")
    assert [str(route.destination) for route in connect().tables()[0].routes][-1] == "0.0.0.0/0"


def test_routes_are_told_apart_by_where_they_lead_and_by_our_mark(vpc: AliVpc, host: dict[str, Any]) -> None:
    made: list[tuple[str, str, dict[str, Any], Leads, bool]] = [
        ("10.1.8.0/24", "vsw-bp1", {"kind": "local", "type": "System"}, Leads.ELSEWHERE, False),
        ("10.1.1.0/24", "i-bp1flannel", {}, Leads.TO_HOST, False),
        ("10.1.2.0/24", "i-bp1peer", {"name": "flannel-udp"}, Leads.TO_HOST, True),
        ("10.1.3.0/24", "eni-bp1peer", {"kind": "NetworkInterface", "name": "theirs"}, Leads.TO_HOST, False),
        ("10.1.4.0/24", "ngw-bp1nat", {"kind": "NatGateway"}, Leads.ELSEWHERE, False),
        ("10.1.5.0/24", host["instance"], {}, Leads.HERE, False),
        ("10.1.6.0/24", host["interfaces"][0]["id"], {"kind": "NetworkInterface"}, Leads.HERE, False),
        ("10.1.7.0/24", "i-bp1peer", {"service": "TR"}, Leads.ELSEWHERE, False),
    ]
    for destination, target, more, _, _ in made:
        vpc.lead(destination, target, **more)
    vpc.lead("10.1.9.0/24", "", hops=[["RouterInterface", "ri-1"], ["RouterInterface", "ri-2"]])
    vpc.lead("2001:db8::/64", host["instance"])
    account = connect()
    assert overlay_routes(account) == [
        *(CloudRoute(IPv4Network(at), target, leads, marked=marked) for at, target, _, leads, marked in made),
        CloudRoute(IPv4Network("10.1.9.0/24"), "ri-1 and ri-2", Leads.ELSEWHERE),
    ]
    assert [table.n_counted for table in account.tables()] == [9]  # custom ones, those of IPv6 too


def test_a_learnt_route_to_the_same_destination_does_not_hide_ours(vpc: AliVpc, host: dict[str, Any]) -> None:
    account = connect()
    account.create(MAIN, AT)
    vpc.lead(str(AT), "tr-attach-1", kind="Attachment", type="CEN")
    assert overlay_routes(account) == [CloudRoute(AT, host["instance"], Leads.HERE, marked=True)]


def test_a_default_route_to_this_host_is_never_touched(vpc: AliVpc, host: dict[str, Any]) -> None:
    vpc.lead("0.0.0.0/0", host["instance"], name="flannel-udp")  # flannel's users have one, for NAT
    config, account = config_of(), connect()
    assert config.v4 is not None
    known = Known(AT, config.v4, (), (AT,), stale_for_s={})
    assert [step.action for step in make_plan(account.tables(), known, account.limits).steps] == ["create"]


def test_a_host_whose_address_is_a_further_interface_s_is_led_to_by_that(
    vpc: AliVpc, host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    second = {**host["interfaces"][0], "mac": "00:16:3e:00:00:99", "id": "eni-bp1second", "addresses": ["192.0.2.8"]}
    v6_only = {**second, "mac": "00:16:3e:00:00:98", "id": "eni-bp1v6", "addresses": []}
    with metadata_on_loopback({**host, "interfaces": [*host["interfaces"], second, v6_only]}) as url:
        monkeypatch.setattr(identity, "URL", url)
        vpc.lead(str(OTHER), host["instance"])
        account = connect("192.0.2.8")
        account.create(MAIN, AT)
        assert overlay_routes(account) == [
            CloudRoute(OTHER, host["instance"], Leads.HERE_BEFORE),
            CloudRoute(AT, "eni-bp1second", Leads.HERE, marked=True),
        ]
    (entry,) = [entry for entry in vpc.entries() if entry["DestinationCidrBlock"] == str(AT)]
    assert entry["NextHops"]["NextHop"][0]["NextHopType"] == "NetworkInterface"


def test_all_pages_are_read(vpc: AliVpc) -> None:
    custom = {f"vtb-bp1n{n}": {"vpc": VPC, "type": "Custom", "vswitches": []} for n in range(55)}
    vpc.make_world(tables={**custom, MAIN: {"vpc": VPC, "type": "System", "vswitches": [VSWITCH]}})
    for n in range(130):
        vpc.lead(f"10.1.{n}.0/24", "i-bp1peer")
    asked = len(vpc.asked())
    (table,) = connect().tables()
    assert (table.id, table.n_counted, len(table.routes)) == (MAIN, 130, 131)
    assert vpc.asked()[asked:] == [LIST] * 2 + ["DescribeRouteEntryList"] * 2


# --- which tables -------------------------------------------------------------------------------------------------


def test_the_vswitch_s_own_table_comes_before_the_system_one_and_named_ones_before_both(vpc: AliVpc) -> None:
    system = {"vpc": VPC, "type": "System", "vswitches": ["vsw-bp1other"]}
    gateway = {"vpc": VPC, "type": "Custom", "vswitches": [], "associate": "Gateway"}
    vpc.make_world(tables={MAIN: system, "vtb-bp1gate": gateway})
    assert [table.id for table in connect().tables()] == [MAIN]
    vpc.make_world(tables={MAIN: system, OTHER_TABLE: {"vpc": VPC, "type": "Custom", "vswitches": [VSWITCH]}})
    assert [table.id for table in connect().tables()] == [OTHER_TABLE]
    assert [table.id for table in connect(RouteTableID=[MAIN, OTHER_TABLE]).tables()] == [MAIN, OTHER_TABLE]


def test_a_table_that_is_not_there_or_of_another_vpc_is_named(vpc: AliVpc) -> None:
    assert fault_of(RouteTableID="vtb-0") == "there is no such route table as vtb-0: correct Backend.RouteTableID"
    assert fault_of(RouteTableID=FAR_TABLE) == (
        f"{FAR_TABLE} is a table of vpc-bp1far, and this host is in {VPC}: correct Backend.RouteTableID"
    )


def test_a_table_that_goes_while_we_use_it_is_named(vpc: AliVpc) -> None:
    account = connect(RouteTableID=OTHER_TABLE)
    account.tables()
    vpc.make_world(tables={})
    with pytest.raises(CloudError) as caught:
        account.create(OTHER_TABLE, AT)
    assert str(caught.value) == (
        f"there is no such route table as {OTHER_TABLE}: correct Backend.RouteTableID "
        "(Specified route table does not exist.)"
    )


def test_two_tables_that_match_or_none_are_named(vpc: AliVpc) -> None:
    bound = {"vpc": VPC, "type": "Custom", "vswitches": [VSWITCH]}
    vpc.make_world(tables={MAIN: bound, OTHER_TABLE: bound})
    assert fault_of() == f"{MAIN} and {OTHER_TABLE} are both of {VSWITCH}: name one by Backend.RouteTableID"
    vpc.make_world(tables={})
    assert fault_of() == f"{VPC} has no system route table, and {VSWITCH} none"


# --- what the API refuses -----------------------------------------------------------------------------------------


REFUSALS = [
    (
        {"status": 403, "code": "Forbidden.RAM"},
        f"no right to vpc:{LIST} on {VPC}: give it to the instance's RAM role, see examples/cloud/ali-policy.json",
    ),
    (
        {"status": 403, "code": "MissingSecurityToken"},
        "Alibaba Cloud does not take our credentials (MissingSecurityToken): correct the RAM role, or the access key",
    ),
    ({"status": 400, "code": "Odd", "message": "two\nlines"}, f"{LIST} failed on {VPC}: Odd: two lines"),
    ({"status": 500, "code": "InternalError"}, f"{LIST} failed on {VPC}: InternalError: no"),
]


@pytest.mark.parametrize(("order", "line"), REFUSALS)
def test_what_is_refused_is_one_line(vpc: AliVpc, order: dict[str, Any], line: str) -> None:
    vpc.fail({"action": LIST, **order})
    assert fault_of() == line


def test_half_an_answer_is_named(vpc: AliVpc) -> None:
    vpc.fail({"action": LIST, "cut": True})
    assert fault_of() == f"the answer of {vpc.url} to {LIST} makes no sense: is a proxy in the way?"


@pytest.mark.parametrize(("status", "code"), [(400, "Throttling.User"), (503, "ServiceUnavailable")])
def test_throttling_and_faults_of_the_server_s_are_borne(vpc: AliVpc, status: int, code: str) -> None:
    vpc.fail({"action": LIST, "status": status, "code": code, "times": 3})
    assert len(connect().tables()) == 1


def test_throttling_is_named_where_it_lasts(vpc: AliVpc) -> None:
    vpc.fail({"action": LIST, "status": 400, "code": "Throttling.User"})
    asked = len(vpc.asked())
    assert fault_of() == f"Alibaba Cloud is asked too often in this account (Throttling.User to {LIST})"
    assert vpc.asked()[asked:].count(LIST) == 4


def test_that_others_are_changing_routes_is_borne_and_named_where_it_lasts(vpc: AliVpc) -> None:
    account = connect()
    vpc.fail({"action": "CreateRouteEntry", "status": 400, "code": "TaskConflict", "times": 3})
    account.create(MAIN, AT)
    assert str(AT) in vpc.routes()
    vpc.settle_after(1_000)
    account.create(MAIN, OTHER)  # and this one is under way for long
    with pytest.raises(CloudError) as caught:
        account.create(MAIN, IPv4Network("10.1.17.0/24"))
    assert str(caught.value) == (
        "others are changing the VPC's routes, which Alibaba does one at a time "
        f"(IncorrectRouteEntryStatus to CreateRouteEntry on {MAIN})"
    )


@pytest.mark.parametrize("proxy", UNUSABLE_PROXIES)
def test_a_proxy_s_password_is_not_told(
    proxy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with caplog.at_level(1):
        line = fault_of()
    assert "geheim" not in line + caplog.text


def test_a_token_that_can_be_none_is_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ACCESS_KEY_ID", "ACCESS_KEY_SECRET"):
        monkeypatch.delenv(name)
        monkeypatch.setenv(f"ALIBABA_CLOUD_{name}", KEY["key"])
    monkeypatch.setenv("ALIBABA_CLOUD_SECURITY_TOKEN", "geheim\nx")
    with caplog.at_level(1):
        line = fault_of()
    assert "geheim" not in line + caplog.text


def test_a_full_table_and_a_route_that_is_there_already_say_so(vpc: AliVpc) -> None:
    vpc.make_world(tables={MAIN: {"vpc": VPC, "type": "System", "vswitches": [VSWITCH], "quota": 1}})
    account = connect()
    account.create(MAIN, AT)
    with pytest.raises(CloudError, match=f"^somebody made that route in {MAIN} at the same moment$"):
        account.create(MAIN, AT)
    with pytest.raises(CloudError) as caught:
        account.create(MAIN, OTHER)
    assert str(caught.value) == (
        f"{MAIN} has as many routes as it may have: raise the quota vpc_quota_route_entrys_num (QuotaExceeded)"
    )


def test_a_range_that_the_table_does_not_take_is_named(vpc: AliVpc) -> None:
    vpc.fail({"action": "CreateRouteEntry", "status": 400, "code": "InvalidCidrBlock", "message": "not valid."})
    with pytest.raises(CloudError) as caught:
        connect().create(MAIN, AT)
    assert str(caught.value) == (
        f"{MAIN} takes no such route: does Network overlap a vSwitch, or another range of the VPC? "
        "(InvalidCidrBlock: not valid.)"
    )


# --- rights -------------------------------------------------------------------------------------------------------


def allowed() -> list[str]:
    """Return the actions that the policy file allows."""
    found: list[str] = []
    for statement in json.loads(POLICY.read_text())["Statement"]:
        actions = statement["Action"]
        found += [actions] if isinstance(actions, str) else actions
    return found


@pytest.mark.parametrize("lacking", [None, *allowed()])
def test_the_policy_file_has_every_right_that_is_needed_and_none_else(vpc: AliVpc, lacking: str | None) -> None:
    rights = [action.removeprefix("vpc:") for action in allowed() if action != lacking]
    tables = {MAIN: {"vpc": VPC, "type": "System", "vswitches": [VSWITCH]}}
    vpc.make_world({KEY["key"]: {"secret": KEY["secret"]}, "LTAIhost": {"secret": "x", "allowed": rights}}, tables)
    vpc.lead(str(AT), "i-bp1former", name="flannel-udp")
    whole, account = connect(), connect(AccessKeyID="LTAIhost", AccessKeySecret="x")
    whole.tables()
    read = dict(whole._entry_ids)  # type: ignore[attr-defined]
    refused = []
    for call in (
        account.tables,
        lambda: account._entry_ids.update(read),  # type: ignore[attr-defined]  # whether or not it may read
        partial(account.replace, MAIN, AT),
        partial(account.remove, MAIN, AT),
        partial(account.create, MAIN, OTHER),
        account.permit,
        partial(account.addresses_of, ["i-bp1former"]),
    ):
        try:
            call()
        except CloudError as error:
            refused.append(str(error).partition(" on ")[0])
    assert refused == ([] if lacking is None else [f"no right to {lacking}"])
