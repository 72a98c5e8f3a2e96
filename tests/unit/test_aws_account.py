"""What aws-vpc asks of EC2, and what it says when that says no: against moto's server, with the real SDK."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.backend.cloud import refusals
from flannel_udp.backend.cloud.aws import AwsProvider, identity
from flannel_udp.backend.cloud.metadata import Metadata
from flannel_udp.backend.cloud.provider import Account, CloudError, CloudRoute, Leads
from flannel_udp.errors import ConfigError
from flannel_udp.netconf.config import NetworkConfig
from tests.support.aws_host import CREDENTIALS, on_host
from tests.support.backends import parse_config
from tests.support.served import UNUSABLE_PROXIES, external
from tests.support.vpc import REGION, Vpc, interface_of, metadata_on_loopback, vpc_on_loopback

POLICY = Path(__file__).parents[2] / "examples" / "cloud" / "aws-policy.json"
AT = IPv4Network("10.1.15.0/24")
POLICY_NAME = "examples/cloud/aws-policy.json"


@pytest.fixture(scope="module")
def vpc() -> Iterator[Vpc]:
    with vpc_on_loopback() as vpc:
        yield vpc


@pytest.fixture(scope="module")
def host(vpc: Vpc) -> dict[str, Any]:
    return vpc.add_host("192.0.2.1")


@pytest.fixture(scope="module")
def metadata(host: dict[str, Any]) -> Iterator[str]:
    with metadata_on_loopback(host) as url:
        yield url


@pytest.fixture(autouse=True)
def here(vpc: Vpc, metadata: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with on_host(vpc, metadata, monkeypatch):
        yield


def config_of(**options: Any) -> NetworkConfig:
    backend = {"Type": "aws-vpc", **options}
    return parse_config(json.dumps({"Network": "10.1.0.0/16", "Backend": backend})).config


def connect(address: str = "192.0.2.1", **options: Any) -> Account:
    return AwsProvider().connect(config_of(**options), external(address))


def fault_of(**options: Any) -> str:
    """Return what is said where asking for the tables is refused."""
    with pytest.raises((CloudError, ConfigError)) as caught, closing(connect(**options)) as account:
        account.tables()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def overlay_routes(account: Account) -> list[CloudRoute]:
    return [route for table in account.tables() for route in table.routes if route.destination.overlaps(AT)]


# --- what there is ------------------------------------------------------------------------------------------------


def test_the_host_is_the_instance_whose_network_interface_has_our_address(host: dict[str, Any]) -> None:
    with closing(connect()) as account:
        assert account.here == f"{host['instance']}, {interface_of(host)} in {REGION}"


def test_a_route_is_made_read_replaced_and_removed(vpc: Vpc, host: dict[str, Any]) -> None:
    ours = interface_of(host)
    with closing(connect()) as account:
        account.create(vpc.main, AT)
        assert overlay_routes(account) == [CloudRoute(AT, ours, Leads.HERE)]
        account.replace(vpc.main, AT)
        assert vpc.routes() == {str(AT): ours}
        account.remove(vpc.main, AT)
        assert vpc.routes() == {}
        account.remove(vpc.main, AT)  # it is gone, as it was to be


def test_routes_are_told_apart_by_where_they_lead(vpc: Vpc, host: dict[str, Any]) -> None:
    other = interface_of(vpc.add_host("192.0.2.7"))
    gateway = vpc.ask("create_internet_gateway")["InternetGateway"]["InternetGatewayId"]
    vpc.ask("attach_internet_gateway", InternetGatewayId=gateway, VpcId=vpc.vpc)
    vpc.lead("10.1.15.0/25", other)
    vpc.ask("create_route", RouteTableId=vpc.main, DestinationCidrBlock="10.1.15.128/25", GatewayId=gateway)
    with closing(connect()) as account:
        assert overlay_routes(account) == [
            CloudRoute(IPv4Network("10.1.15.0/25"), other, Leads.TO_HOST),
            CloudRoute(IPv4Network("10.1.15.128/25"), gateway, Leads.ELSEWHERE),
        ]
        assert account.addresses_of([other, "eni-12345678"]) == {other: frozenset({IPv4Address("192.0.2.7")})}
        vpc.order("/test/blackholes", [other])
        assert overlay_routes(account)[0].blackhole


def test_a_route_to_another_interface_of_this_instance_is_one_to_here(
    vpc: Vpc, host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    second = interface_of(vpc.add_host("192.0.2.8"))
    more = {**host["interfaces"][0], "mac": "02:00:00:00:00:08", "id": second, "addresses": ["192.0.2.8"]}
    vpc.lead(str(AT), second)
    with metadata_on_loopback({**host, "interfaces": [*host["interfaces"], more]}) as url:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        with closing(connect()) as account:
            assert [route.leads for route in overlay_routes(account)] == [Leads.HERE_BEFORE]


def test_an_interface_without_ipv4_addresses_is_in_nobody_s_way(
    host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    v6_only = {**host["interfaces"][0], "mac": "02:00:00:00:00:06", "id": "eni-66666666", "addresses": []}
    with metadata_on_loopback({**host, "interfaces": [v6_only, *host["interfaces"]]}) as url:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        assert identity.identify(IPv4Address("192.0.2.1")).interfaces == {"eni-66666666", interface_of(host)}


def test_the_source_destination_check_is_asked_for_first_and_then_switched_off(
    vpc: Vpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = vpc.add_host("192.0.2.9")
    asked = len(vpc.asked())
    with metadata_on_loopback(new) as url:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        with closing(connect("192.0.2.9")) as account:
            assert account.permit()
            assert vpc.may_forward(interface_of(new))
            assert not account.permit()
    ours = [action for action in vpc.asked()[asked:] if action.startswith("Modify")]
    assert ours == ["ModifyNetworkInterfaceAttribute"]


# --- which tables -------------------------------------------------------------------------------------------------


def test_the_subnet_s_own_table_comes_before_the_main_one_and_named_ones_before_both(vpc: Vpc) -> None:
    with closing(connect()) as account:
        assert [table.id for table in account.tables()] == [vpc.main]
    second, third = (vpc.ask("create_route_table", VpcId=vpc.vpc)["RouteTable"]["RouteTableId"] for _ in range(2))
    made = vpc.ask("associate_route_table", RouteTableId=second, SubnetId=vpc.subnet)["AssociationId"]
    try:
        with closing(connect()) as account:
            assert [table.id for table in account.tables()] == [second]
        with closing(connect(RouteTableID=[vpc.main, third])) as account:
            assert {table.id for table in account.tables()} == {vpc.main, third}
    finally:
        vpc.ask("disassociate_route_table", AssociationId=made)


def test_a_table_that_is_not_there_or_of_another_vpc_is_named(vpc: Vpc) -> None:
    assert fault_of(RouteTableID="rtb-00000000").startswith(
        f"there is no such route table in {REGION}: correct Backend.RouteTableID ("
    )
    other = vpc.ask("create_vpc", CidrBlock="198.51.100.0/24")["Vpc"]["VpcId"]
    its = vpc.ask("create_route_table", VpcId=other)["RouteTable"]["RouteTableId"]
    assert fault_of(RouteTableID=its) == (
        f"{its} is a table of {other}, and this host is in {vpc.vpc}: correct Backend.RouteTableID"
    )


def test_two_tables_that_match_are_named(vpc: Vpc, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [vpc.ask("create_route_table", VpcId=vpc.vpc)["RouteTable"]["RouteTableId"] for _ in range(2)]
    with closing(connect()) as account:
        found = vpc.ask("describe_route_tables", RouteTableIds=tables)["RouteTables"]
        monkeypatch.setattr(account, "_describe", lambda **_: found)  # EC2 lets no subnet have two: nor does moto
        with pytest.raises(CloudError) as caught:
            account.tables()
    names = " and ".join(sorted(tables))
    assert str(caught.value) == f"{names} are both of {vpc.subnet}: name one by Backend.RouteTableID"


# --- what is refused ----------------------------------------------------------------------------------------------


def test_without_boto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "find_spec", lambda name: None if name == "boto3" else find_spec(name))
    assert fault_of() == "Backend.Type is aws-vpc, and boto3 is not installed: pip install 'flannel-udp[aws]'"


def test_another_region_than_the_instance_s_is_refused() -> None:
    connect(Region=REGION).close()
    assert fault_of(Region="us-east-1") == (
        f"Backend.Region is us-east-1, and this instance is in {REGION}: a route leads to interfaces of its own region "
        "only: leave Region out"
    )


def test_a_network_that_overlaps_the_vpc_s_range_is_refused(
    host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with metadata_on_loopback({**host, "cidrs": ["192.0.2.0/24", "10.1.128.0/20"]}) as url:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        assert fault_of() == (
            f"Network 10.1.0.0/16 overlaps 10.1.128.0/20 of {host['vpc']}, which the VPC routes itself: "
            "choose another Network"
        )


def test_an_address_that_no_interface_of_the_instance_has_is_named(host: dict[str, Any]) -> None:
    with pytest.raises(CloudError) as caught:
        connect("192.0.2.99")
    assert str(caught.value) == (
        f"no network interface of {host['instance']} has our address 192.0.2.99: they have 192.0.2.1: see --iface"
    )


def test_no_metadata_service_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    assert fault_of() == (
        "no metadata service at http://127.0.0.1:9: Connection refused: is this an EC2 instance, and its metadata "
        "service on? In a container without the host's network the answer needs a hop limit of 2 "
        "(http-put-response-hop-limit)"
    )


def test_a_metadata_service_that_is_switched_off_is_named(
    host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with metadata_on_loopback({**host, "refuses": True}) as url:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        assert fault_of() == f"the metadata service at {url} gives no token (status 403): is it switched on?"


@pytest.mark.parametrize("token", ["geheim\nx", "geheim\ufffd"])
def test_a_metadata_token_that_can_be_none_is_not_told(token: str, metadata: str) -> None:
    with pytest.raises(CloudError) as caught:
        Metadata(metadata).ask("/latest/meta-data/", {"X-aws-ec2-metadata-token": token})
    assert str(caught.value) == f"the metadata service at {metadata} gave a token that is not one line"


def test_no_proxy_is_asked_for_the_metadata_service() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("http_proxy", "http://127.0.0.1:9")
        assert identity.identify(IPv4Address("192.0.2.1")).region == REGION


def test_a_proxy_in_the_way_is_named(metadata: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("http_proxy", "http://127.0.0.1:9")
        patch.setenv("no_proxy", "registry.example")
        line = fault_of()
        assert os.environ["no_proxy"] == f"registry.example,{metadata.removeprefix('http://')}"
    assert line == (
        "the proxy that HTTPS_PROXY or HTTP_PROXY names does not let DescribeRouteTables pass: correct it, or NO_PROXY"
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
    monkeypatch.setenv("AWS_SESSION_TOKEN", "geheim\nx")
    with caplog.at_level(1):
        assert fault_of() == (
            "DescribeRouteTables cannot be sent: is AWS_SESSION_TOKEN one line, is each access key, and is what "
            "HTTPS_PROXY or HTTP_PROXY names like http://HOST:PORT?"
        )
    assert "geheim" not in caplog.text


def test_no_credentials_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    assert fault_of() == (
        "no credentials for AWS: give the instance a role, see examples/cloud/aws-policy.json; "
        "or AWS_ACCESS_KEY_ID and so on"
    )


@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9"])
def test_credentials_may_be_the_instance_s_role_and_no_proxy_is_asked_for_them(
    vpc: Vpc, host: dict[str, Any], monkeypatch: pytest.MonkeyPatch, proxy: str | None
) -> None:
    if proxy is not None:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("no_proxy", vpc.url.removeprefix("http://"))
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    credentials = {
        "Code": "Success",
        "AccessKeyId": "ASIAROLE",
        "SecretAccessKey": "of-the-role",
        "Token": "token",
        "Expiration": "2099-01-01T00:00:00Z",
    }
    with metadata_on_loopback({**host, "credentials": credentials}) as url:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        with closing(connect()) as account:
            assert len(account.tables()) == 1


REFUSALS = [
    (
        {"status": 403, "code": "UnauthorizedOperation"},
        f"no right to ec2:DescribeRouteTables on {REGION}: give it to the instance's role, see {POLICY_NAME}",
    ),
    (
        {"status": 401, "code": "AuthFailure"},
        "AWS does not take our credentials (AuthFailure): correct the role, or the access key",
    ),
    (
        {"status": 400, "code": "ExpiredToken"},
        "AWS does not take our credentials (ExpiredToken): correct the role, or the access key",
    ),
    ({"cut": True}, "AWS's answer to DescribeRouteTables makes no sense: is a proxy in the way?"),
    (
        {"status": 400, "code": "Odd", "message": "two\nlines"},
        "DescribeRouteTables failed on eu-central-1: Odd: two lines",
    ),
]


@pytest.mark.parametrize(("order", "line"), REFUSALS)
def test_what_ec2_refuses_is_one_line(vpc: Vpc, order: dict[str, Any], line: str) -> None:
    vpc.fail({"action": "DescribeRouteTables", **order})
    assert fault_of() == line


@pytest.mark.parametrize(("off_s", "way"), [(600, "behind"), (-600, "ahead")])
def test_a_clock_that_is_off_is_named(vpc: Vpc, off_s: int, way: str) -> None:
    vpc.fail({"action": "DescribeRouteTables", "status": 400, "code": "RequestExpired", "clock_off_s": off_s})
    line = fault_of()
    assert line.startswith("AWS does not take our credentials (RequestExpired), and our clock is ")
    assert f" s {way}, which signatures do not stand: " in line


def test_throttling_is_borne_and_named_where_it_lasts(vpc: Vpc) -> None:
    throttled = {"action": "DescribeRouteTables", "status": 503, "code": "RequestLimitExceeded"}
    vpc.fail({**throttled, "times": 1})
    with closing(connect()) as account:
        assert len(account.tables()) == 1
    vpc.fail(throttled)
    asked = len(vpc.asked())
    assert fault_of() == "AWS is asked too often in this account (RequestLimitExceeded to DescribeRouteTables)"
    assert vpc.asked()[asked:].count("DescribeRouteTables") == 4


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("RouteLimitExceeded", " has as many routes as it may have: ask AWS to raise the quota (routes per table)"),
        ("RouteAlreadyExists", "somebody made that route in "),
        ("UnauthorizedOperation", "no right to ec2:CreateRoute on rtb-"),
    ],
)
def test_a_route_that_cannot_be_made_says_why(vpc: Vpc, code: str, line: str) -> None:
    vpc.fail({"action": "CreateRoute", "status": 400, "code": code})
    with closing(connect()) as account, pytest.raises(CloudError) as caught:
        account.create(vpc.main, AT)
    assert line in str(caught.value)


def test_no_line_of_a_log_has_a_session_token(
    host: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-a-role")
    with caplog.at_level(1), closing(connect()) as account:
        account.tables()
    assert "token-of-a-role" not in caplog.text


# --- rights -------------------------------------------------------------------------------------------------------


def allowed() -> list[str]:
    """Return the actions that the policy file allows."""
    found: list[str] = []
    for statement in json.loads(POLICY.read_text())["Statement"]:
        actions = statement["Action"]
        found += [actions] if isinstance(actions, str) else actions
    return found


@dataclass(frozen=True)
class Guarded:
    """A VPC that asks for rights, and by the right that is lacking, ``None``: none, a host and its access key.

    moto does not know which resource a call of EC2's is about, so the rights are to all of them.
    """

    vpc: Vpc
    hosts: dict[str | None, tuple[dict[str, Any], dict[str, str]]]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    with vpc_on_loopback() as vpc:
        hosts = {}
        for number, lacking in enumerate([None, *allowed()], start=10):
            actions = [action for action in allowed() if action != lacking]
            document = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
            user = {"service": "iam", "UserName": f"host{number}"}
            vpc.ask("create_user", **user)
            vpc.ask("put_user_policy", **user, PolicyName="least", PolicyDocument=json.dumps(document))
            made = vpc.ask("create_access_key", **user)["AccessKey"]
            key = {"AccessKeyID": made["AccessKeyId"], "AccessKeySecret": made["SecretAccessKey"]}
            hosts[lacking] = vpc.add_host(f"192.0.2.{number}"), key
        vpc.order("/moto-api/reset-auth", 0)  # from now on it asks for rights
        yield Guarded(vpc, hosts)


@pytest.mark.parametrize("lacking", [None, *allowed()])
def test_the_policy_file_has_every_right_that_is_needed_and_none_else(
    guarded: Guarded, lacking: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, key = guarded.hosts[lacking]
    with metadata_on_loopback(host) as url:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", guarded.vpc.url)
        with closing(connect(host["interfaces"][0]["addresses"][0], **key)) as account:
            if lacking is None:
                use_all(account, guarded.vpc.main)
            else:
                with pytest.raises(CloudError, match=f"no right to {lacking} on "):
                    use_all(account, guarded.vpc.main)


def use_all(account: Account, table: str) -> None:
    """Do everything that is ever done, each whether or not what came before was let; raise what was not, at last."""
    refused: list[CloudError] = []
    for call in (
        account.tables,
        account.permit,
        partial(account.addresses_of, ["eni-12345678"]),
        partial(account.create, table, AT),
        partial(account.replace, table, AT),
        partial(account.remove, table, AT),
    ):
        try:
            call()
        except CloudError as error:
            if "no right to" in str(error):
                refused.append(error)
    if refused:
        raise refused[0]
