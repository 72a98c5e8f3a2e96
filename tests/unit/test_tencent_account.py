"""What tencent-vpc asks of its API, and what it says when that says no: against our own server, with the real SDK."""

from __future__ import annotations

import json
from contextlib import closing
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from flannel_udp.backend.cloud import refusals
from flannel_udp.backend.cloud.provider import Account, CloudError, CloudRoute, Leads
from flannel_udp.backend.cloud.tencent import account as account_module
from flannel_udp.backend.cloud.tencent import retrying
from tests.support.served import UNUSABLE_PROXIES, served
from tests.support.tencent_host import connect, fault_of, fixtures
from tests.support.tencent_server import LIMIT, REGION
from tests.support.tencent_vpc import SUBNET, TencentVpc, tencent_metadata_on_loopback, tencent_on_loopback

AT = IPv4Network("10.1.15.0/24")
OTHER, THIRD = "192.0.2.7", "192.0.2.8"
AWS = {"region": "eu-central-1", "instance": "i-1", "interfaces": []}
vpc, host, metadata, here = fixtures(OTHER, THIRD)


def routes(account: Account) -> list[CloudRoute]:
    return [route for table in account.tables() for route in table.routes]


# --- what there is ------------------------------------------------------------------------------------------------


def test_the_host_is_the_instance_whose_network_interface_has_our_address(
    vpc: TencentVpc, host: dict[str, Any]
) -> None:
    with closing(connect()) as account:
        assert account.here == f"{host['instance']}, 192.0.2.1 of {vpc.vpc} in {REGION}"


def test_a_route_is_made_read_replaced_and_removed(vpc: TencentVpc) -> None:
    with closing(connect()) as account:
        account.create(vpc.main, AT)
        assert routes(account) == [CloudRoute(AT, "192.0.2.1", Leads.HERE, marked=True)]
        (made,) = vpc.found()
        assert (made["GatewayType"], made["Enabled"], made["RouteDescription"]) == ("NORMAL_CVM", True, "flannel-udp")
        vpc.unlead(str(AT))
        vpc.lead(str(AT), OTHER)
        assert routes(account) == [CloudRoute(AT, OTHER, Leads.TO_HOST)]
        asked = len(vpc.asked())
        account.replace(vpc.main, AT)
        assert vpc.asked()[asked:] == ["ReplaceRoutes"]  # there was a route at every moment
        assert routes(account) == [CloudRoute(AT, "192.0.2.1", Leads.HERE, marked=True)]
        account.remove(vpc.main, AT)
        assert vpc.routes() == {}
        account.remove(vpc.main, AT)  # it is gone, as it was to be


def test_a_route_that_went_since_the_last_look_is_gone_as_it_was_to_be(vpc: TencentVpc) -> None:
    vpc.lead(str(AT), OTHER)
    with closing(connect()) as account:
        account.tables()
        vpc.unlead(str(AT))
        account.remove(vpc.main, AT)
        assert vpc.asked()[-1] == "DeleteRoutes"


def test_routes_are_told_apart_by_what_they_are_and_where_they_lead(vpc: TencentVpc) -> None:
    vpc.lead("10.1.1.0/24", OTHER)
    vpc.lead("10.1.2.0/24", "havip-00000001", GatewayType="HAVIP")
    vpc.lead("10.1.3.0/24", OTHER, RouteType="NETD")
    vpc.lead("10.1.4.0/24", "ccn-00000001", GatewayType="CCN", RouteType="CCN")
    vpc.lead("10.1.5.0/24", "0", GatewayType="EIP")
    with closing(connect()) as account:
        (table,) = account.tables()
        assert {str(route.destination): (route.target, route.leads) for route in table.routes} == {
            "10.1.1.0/24": (OTHER, Leads.TO_HOST),
            "10.1.2.0/24": ("havip-00000001", Leads.ELSEWHERE),
            "10.1.3.0/24": (OTHER, Leads.ELSEWHERE),
            "10.1.4.0/24": ("ccn-00000001", Leads.ELSEWHERE),
            "10.1.5.0/24": ("0", Leads.ELSEWHERE),
        }
        assert table.n_counted == 3  # what users have made
        assert account.addresses_of([OTHER]) == {OTHER: frozenset({IPv4Address(OTHER)})}


def test_a_disabled_route_of_ours_is_made_anew_and_any_other_one_is_as_if_it_was_not_there(vpc: TencentVpc) -> None:
    vpc.lead("10.1.1.0/24", OTHER)
    vpc.lead(str(AT), "192.0.2.1")
    for each in ("10.1.1.0/24", str(AT)):
        vpc.disable(each)
    with closing(connect()) as account:
        assert routes(account) == [CloudRoute(AT, "192.0.2.1", Leads.HERE, blackhole=True)]
        account.replace(vpc.main, AT)
        assert vpc.routes() == {str(AT): "192.0.2.1"}
        assert len(vpc.found()) == 2


def test_several_routes_to_one_destination_are_nobody_s_of_ours(vpc: TencentVpc) -> None:
    vpc.lead(str(AT), "192.0.2.1")
    vpc.lead(str(AT), OTHER)
    with closing(connect()) as account:
        assert routes(account) == [CloudRoute(AT, f"192.0.2.1 and {OTHER}", Leads.ELSEWHERE)]
        vpc.disable(str(AT))
        assert routes(account) == [CloudRoute(AT, "192.0.2.1", Leads.HERE, blackhole=True)]


def test_a_route_to_another_address_of_this_instance_is_one_to_here(
    host: dict[str, Any], vpc: TencentVpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = {**host["interfaces"][0], "mac": "52:54:00:00:00:08", "addresses": [THIRD], "subnet": "subnet-2"}
    vpc.lead(str(AT), THIRD)
    with tencent_metadata_on_loopback({**host, "interfaces": [*host["interfaces"], second]}) as url:
        monkeypatch.setenv("FLANNEL_UDP_TENCENT_METADATA", url)
        with closing(connect()) as account:
            assert [route.leads for route in routes(account)] == [Leads.HERE_BEFORE]


def test_nothing_has_to_be_switched_off_for_pods_packets() -> None:
    with closing(connect()) as account:
        assert not account.permit()


# --- which tables -------------------------------------------------------------------------------------------------


def test_the_subnet_s_own_table_comes_before_the_default_one_and_named_ones_before_both(vpc: TencentVpc) -> None:
    with closing(connect()) as account:
        assert [table.id for table in account.tables()] == [vpc.main]
    second, third = (vpc.ask("CreateRouteTable", VpcId=vpc.vpc)["RouteTable"]["RouteTableId"] for _ in range(2))
    vpc.ask("ReplaceRouteTableAssociation", SubnetId=SUBNET, RouteTableId=second)
    try:
        with closing(connect()) as account:
            assert [table.id for table in account.tables()] == [second]
        with closing(connect(RouteTableID=[vpc.main, third])) as account:
            assert {table.id for table in account.tables()} == {vpc.main, third}
    finally:
        vpc.ask("ReplaceRouteTableAssociation", SubnetId=SUBNET, RouteTableId="")


def test_a_table_beyond_the_first_page_is_found() -> None:
    with tencent_on_loopback() as vpc, pytest.MonkeyPatch.context() as patch:
        tables = [vpc.ask("CreateRouteTable", VpcId=vpc.vpc)["RouteTable"]["RouteTableId"] for _ in range(100)]
        vpc.ask("ReplaceRouteTableAssociation", SubnetId=SUBNET, RouteTableId=tables[-1])
        with tencent_metadata_on_loopback(vpc.add_host("192.0.2.1")) as url:
            patch.setenv("FLANNEL_UDP_TENCENT_METADATA", url)
            patch.setenv("FLANNEL_UDP_TENCENT_ENDPOINT", vpc.url)
            with closing(connect()) as account:
                assert [table.id for table in account.tables()] == [tables[-1]]
        assert vpc.asked().count("DescribeRouteTables") == 2


def test_a_table_that_is_not_there_or_of_another_vpc_is_named(vpc: TencentVpc) -> None:
    assert fault_of(RouteTableID="rtb-00000000") == (
        "there is no such route table: rtb-00000000: correct Backend.RouteTableID (rtb-00000000 not found)"
    )
    other = vpc.ask("CreateVpc", CidrBlock="198.51.100.0/24")["Vpc"]["VpcId"]
    its = vpc.ask("CreateRouteTable", VpcId=other)["RouteTable"]["RouteTableId"]
    assert fault_of(RouteTableID=its) == (
        f"{its} is a table of {other}, and this host is in {vpc.vpc}: correct Backend.RouteTableID"
    )


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lacking", ["tencentcloud", "tencentcloud.vpc"])
def test_without_the_sdk_the_extra_is_named(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "find_spec", lambda name: None if name == lacking else find_spec(name))
    assert fault_of() == (
        f"Backend.Type is tencent-vpc, and {lacking} is not installed: pip install 'flannel-udp[tencent]'"
    )


def test_another_region_than_the_instance_s_is_refused() -> None:
    connect(Region=REGION).close()
    assert fault_of(Region="ap-shanghai") == (
        f"Backend.Region is ap-shanghai, and this instance is in {REGION}: a route leads to interfaces of its own "
        "region only: leave Region out"
    )


def test_a_network_that_overlaps_a_range_of_the_vpc_s_is_refused(
    host: dict[str, Any], vpc: TencentVpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = vpc.ask("CreateVpc", CidrBlock="198.51.100.0/24")["Vpc"]["VpcId"]
    vpc.ask("CreateAssistantCidr", VpcId=wide, CidrBlocks=["10.1.128.0/20"])
    interfaces = [{**host["interfaces"][0], "vpc": wide}]
    with tencent_metadata_on_loopback({**host, "interfaces": interfaces}) as url:
        monkeypatch.setenv("FLANNEL_UDP_TENCENT_METADATA", url)
        assert fault_of() == (
            f"Network 10.1.0.0/16 overlaps 10.1.128.0/20 of {wide}, which the VPC routes itself: choose another Network"
        )


def test_an_address_that_no_interface_of_the_instance_has_is_named(host: dict[str, Any]) -> None:
    with pytest.raises(CloudError) as caught:
        connect("192.0.2.99")
    assert str(caught.value) == (
        f"no network interface of {host['instance']} has our address 192.0.2.99: they have 192.0.2.1: see --iface"
    )


def test_no_metadata_service_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNEL_UDP_TENCENT_METADATA", "http://127.0.0.1:9")
    assert fault_of() == (
        "no metadata service at http://127.0.0.1:9: Connection refused: is this an instance of Tencent Cloud, and may "
        "it reach that address?"
    )


def test_a_metadata_service_that_is_another_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with served("metadata_server", "127.0.0.1", "0", json.dumps(AWS)) as port:
        monkeypatch.setenv("FLANNEL_UDP_TENCENT_METADATA", f"http://127.0.0.1:{port}")
        assert fault_of() == (
            f"the metadata service at http://127.0.0.1:{port} answers /latest/meta-data/placement/region with status "
            "401: is this an instance of Tencent Cloud, and may it reach that address?"
        )


def test_a_proxy_in_the_way_is_named_and_none_is_asked_for_the_metadata_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert fault_of() == (
        "the proxy that HTTPS_PROXY or HTTP_PROXY names does not let DescribeVpcs pass: correct it, or NO_PROXY"
    )


@pytest.mark.parametrize("proxy", UNUSABLE_PROXIES)
def test_a_proxy_s_password_is_not_told(
    proxy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with caplog.at_level(1):
        line = fault_of()
    assert "geheim" not in line + caplog.text


def test_an_api_that_is_none_is_named(vpc: TencentVpc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNEL_UDP_TENCENT_ENDPOINT", "http://127.0.0.1:9")
    assert fault_of() == (
        "http://127.0.0.1:9 does not answer DescribeVpcs: may this host reach it, by a NAT gateway or the address for "
        "inside a VPC?"
    )
    monkeypatch.setenv("FLANNEL_UDP_TENCENT_ENDPOINT", "vpc.internal.tencentcloudapi.com")
    assert fault_of() == (
        "FLANNEL_UDP_TENCENT_ENDPOINT is 'vpc.internal.tencentcloudapi.com': expected a URL such as "
        "https://vpc.tencentcloudapi.com"
    )
    secure = vpc.url.replace("http:", "https:")
    monkeypatch.setenv("FLANNEL_UDP_TENCENT_ENDPOINT", secure)
    assert fault_of().startswith(
        f"{secure} has no certificate that this host trusts: is a proxy in the way? (SSLError("
    )


REFUSALS = [
    ("UnauthorizedOperation", "no right to vpc:DescribeRouteTables on {vpc}: give it to the instance's role, see "),
    ("AuthFailure.UnauthorizedOperation", "no right to vpc:DescribeRouteTables on {vpc}: give it to the"),
    ("AuthFailure.TokenFailure", "Tencent Cloud does not take our credentials (AuthFailure.TokenFailure): correct"),
    ("ResourceNotFound", "there is no such route table: {vpc}: correct Backend.RouteTableID (two lines)"),
    ("Odd", "DescribeRouteTables failed on {vpc}: Odd: two lines"),
]


@pytest.mark.parametrize(("code", "line"), REFUSALS)
def test_what_the_api_refuses_is_one_line(vpc: TencentVpc, code: str, line: str) -> None:
    vpc.fail({"action": "DescribeRouteTables", "status": 200, "code": code, "message": "two\nlines"})
    assert fault_of().startswith(line.format(vpc=vpc.vpc))


def test_an_api_that_is_slow_is_named(vpc: TencentVpc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account_module, "_TIMEOUT_S", 0.2)
    vpc.fail({"action": "DescribeVpcs", "delay_s": 2.0, "times": 1})
    assert fault_of().startswith(f"{vpc.url} does not answer DescribeVpcs: may this host reach it, ")


def test_half_an_answer_is_named(vpc: TencentVpc) -> None:
    vpc.fail({"action": "DescribeRouteTables", "cut": True})
    assert fault_of() == "Tencent's answer to DescribeRouteTables makes no sense: is a proxy in the way?"


def test_a_fault_of_the_server_s_is_borne_and_named_where_it_lasts(vpc: TencentVpc) -> None:
    fault = {"action": "DescribeRouteTables", "status": 502, "code": "no", "message": "bad gateway"}
    vpc.fail({**fault, "times": 1})
    with closing(connect()) as account:
        assert len(account.tables()) == 1
    vpc.fail(fault)
    line = fault_of()
    assert line.startswith(f"DescribeRouteTables failed at {vpc.url}, by an HTTP error: is a proxy in the way? (")
    assert "bad gateway" in line


def test_throttling_is_borne_and_named_where_it_lasts(vpc: TencentVpc) -> None:
    throttled = {"action": "CreateRoutes", "status": 200, "code": "RequestLimitExceeded.UinLimitExceeded"}
    vpc.fail({**throttled, "times": 1})
    with closing(connect()) as account:
        account.tables()
        asked = len(vpc.asked())
        account.create(vpc.main, AT)
        assert vpc.asked()[asked:] == ["CreateRoutes"] * 2  # once more, and not after it had worked
        vpc.fail(throttled)
        asked = len(vpc.asked())
        with pytest.raises(CloudError) as caught:
            account.create(vpc.main, AT)
        assert str(caught.value) == (
            "Tencent Cloud is asked too often in this account (RequestLimitExceeded.UinLimitExceeded to CreateRoutes)"
        )
        assert vpc.asked()[asked:] == ["CreateRoutes"] * retrying.ATTEMPTS


@pytest.mark.parametrize("off_s", [600, -600])
def test_a_clock_that_is_off_is_named(vpc: TencentVpc, off_s: int) -> None:
    vpc.order("/test/clock", off_s)
    assert fault_of() == (
        "Tencent Cloud does not take our credentials (AuthFailure.SignatureExpire): our clock is more than five "
        "minutes off, which signatures do not stand: set it (timedatectl set-ntp true)"
    )


def test_a_table_that_is_full_says_so(vpc: TencentVpc) -> None:
    for number in range(LIMIT):
        vpc.lead(f"10.2.{number}.0/24", OTHER)
    with closing(connect()) as account:
        assert [table.n_counted for table in account.tables()] == [LIMIT]
        with pytest.raises(CloudError) as caught:
            account.create(vpc.main, AT)
    assert str(caught.value) == (
        f"{vpc.main} has as many routes as it may have: ask Tencent Cloud to raise the quota (the limit is {LIMIT})"
    )


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("InvalidParameterValue.Duplicate", "somebody made that route in {main} at the same moment"),
        ("InvalidParameterValue.VpcCidrConflict", "Network overlaps a range of the VPC's: choose another (no)"),
        ("UnsupportedOperation.EcmpWithCcnRoute", "{main} has another route to our subnet already (UnsupportedOp"),
    ],
)
def test_a_route_that_cannot_be_made_says_why(vpc: TencentVpc, code: str, line: str) -> None:
    vpc.fail({"action": "CreateRoutes", "status": 200, "code": code})
    with closing(connect()) as account, pytest.raises(CloudError) as caught:
        account.create(vpc.main, AT)
    assert str(caught.value).startswith(line.format(main=vpc.main))
