"""Who a host in a VPC of Alibaba Cloud is, what it asks with, and what stands in its way before it is answered."""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime
from importlib.util import find_spec
from ipaddress import IPv4Address
from typing import Any

import pytest
from alibabacloud_tea_openapi.utils import Utils

from flannel_udp.backend.cloud import refusals
from flannel_udp.backend.cloud.ali import account, credentials, identity
from flannel_udp.backend.cloud.ali.identity import identify
from flannel_udp.backend.cloud.metadata import TokenMetadata
from flannel_udp.backend.cloud.provider import CloudError
from tests.support.ali_host import connect, fault_of, fixtures
from tests.support.ali_vpc import (
    KEY,
    REGION,
    ROLE,
    VARIABLES,
    VPC,
    AliVpc,
    metadata_on_loopback,
)  # fmt: skip

LIST = "DescribeRouteTableList"
place, vpc, host, here = fixtures()


# --- what is refused ----------------------------------------------------------------------------------------------


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sdk = "alibabacloud_vpc20160428"
    monkeypatch.setattr(refusals, "find_spec", lambda name: None if name == sdk else find_spec(name))
    assert fault_of() == f"Backend.Type is ali-vpc, and {sdk} is not installed: pip install 'flannel-udp[ali]'"


def test_another_region_than_the_instance_s_is_refused() -> None:
    connect(Region=REGION)
    assert fault_of(Region="cn-beijing").startswith(f"Backend.Region is cn-beijing, and this instance is in {REGION}: ")


@pytest.mark.parametrize(
    ("changes", "network", "range_"),
    [
        ({"cidr": "10.1.128.0/20"}, "10.1.0.0/16", "10.1.128.0/20"),
        ({"vswitch_cidr": "10.1.2.0/24"}, "10.1.0.0/16", "10.1.2.0/24"),
        ({}, "100.64.0.0/16", "100.64.0.0/10"),
    ],
)
def test_a_network_that_overlaps_the_vpc_s_ranges_or_alibaba_s_own_is_refused(
    host: dict[str, Any], monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], network: str, range_: str
) -> None:
    interface = {**host["interfaces"][0], **changes}
    with metadata_on_loopback({**host, **changes, "interfaces": [interface]}) as url:
        monkeypatch.setattr(identity, "URL", url)
        assert fault_of(network=network) == (
            f"Network {network} overlaps {range_} of {VPC}, which the VPC routes itself: choose another Network"
        )


def test_an_address_that_no_interface_of_the_instance_has_is_named(host: dict[str, Any]) -> None:
    with pytest.raises(CloudError) as caught:
        connect("192.0.2.99")
    assert str(caught.value) == (
        f"no network interface of {host['instance']} has our address 192.0.2.99: they have 192.0.2.1: see --iface"
    )


def test_no_metadata_service_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "URL", "http://127.0.0.1:9")
    assert fault_of() == (
        "no metadata service at http://127.0.0.1:9: Connection refused: is this an ECS instance in a VPC, and its "
        "metadata service on?"
    )


def test_a_metadata_service_that_is_switched_off_or_speaks_nonsense_is_named(
    host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with metadata_on_loopback({**host, "refuses": True}) as url:
        monkeypatch.setattr(identity, "URL", url)
        assert fault_of() == f"the metadata service at {url} gives no token (status 403): is it switched on?"
    with metadata_on_loopback({**host, "cidr": "<html>"}) as url:
        monkeypatch.setattr(identity, "URL", url)
        assert fault_of().startswith(f"the metadata service at {url} has no IPv4 range at /latest/meta-data/network/")


def test_no_proxy_is_asked_for_the_metadata_service_and_one_in_the_api_s_way_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert identify(IPv4Address("192.0.2.1")).region == REGION
    assert fault_of() == (
        f"the proxy that HTTPS_PROXY or HTTP_PROXY names does not let {LIST} pass: correct it, or unset it: "
        "Alibaba's SDK knows no NO_PROXY"
    )
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert "does not let" in fault_of()


def test_an_api_that_cannot_be_reached_or_is_slow_is_named(vpc: AliVpc, monkeypatch: pytest.MonkeyPatch) -> None:
    advice = "may this host reach it, through a NAT gateway or a VPC endpoint?"
    monkeypatch.setattr(account, "READ_MS", 300)
    vpc.fail({"action": LIST, "delay_s": 1.5})
    assert fault_of() == f"{vpc.url} does not answer {LIST}: {advice}"
    monkeypatch.setenv("FLANNEL_UDP_ALI_ENDPOINT", "http://127.0.0.1:9")
    assert fault_of() == f"http://127.0.0.1:9 does not answer {LIST}: {advice}"


@pytest.mark.parametrize("wrong", ["ftp://vpc.aliyuncs.com", "https://", "vpc.aliyuncs.com/x", "two words"])
def test_an_endpoint_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("FLANNEL_UDP_ALI_ENDPOINT", wrong)
    assert fault_of() == f"FLANNEL_UDP_ALI_ENDPOINT is {wrong!r}: expected a host name, or http://HOST:PORT"


def test_an_endpoint_without_a_scheme_is_asked_by_https(vpc: AliVpc, monkeypatch: pytest.MonkeyPatch) -> None:
    where = vpc.url.removeprefix("http://")
    monkeypatch.setenv("FLANNEL_UDP_ALI_ENDPOINT", where)
    assert fault_of().startswith(f"{where} has no certificate that this host trusts: is a proxy in the way? (")


# --- credentials --------------------------------------------------------------------------------------------------


@pytest.fixture
def keyless(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_no_credentials_are_named(keyless: None, host: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with metadata_on_loopback({key: value for key, value in host.items() if key != "credentials"}) as url:
        monkeypatch.setattr(identity, "URL", url)
        assert fault_of() == (
            "no credentials for Alibaba Cloud: give the instance a RAM role, see examples/cloud/ali-policy.json; "
            "or ACCESS_KEY_ID and ACCESS_KEY_SECRET"
        )


def test_half_a_pair_of_variables_is_named(keyless: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCESS_KEY_SECRET", "of-root")
    assert fault_of() == (
        "ACCESS_KEY_ID and ACCESS_KEY_SECRET belong together: set both, or neither for the instance's role"
    )


def test_keys_may_be_the_configuration_s_or_in_either_s_variables(
    keyless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connect(AccessKeyID=KEY["key"], AccessKeySecret=KEY["secret"]).tables()
    assert "InvalidAccessKeyId.NotFound" in fault_of(AccessKeyID="LTAInobody", AccessKeySecret="x")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", str(ROLE["AccessKeyId"]))
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", str(ROLE["AccessKeySecret"]))
    assert "InvalidSecurityToken.Expired" in fault_of()
    monkeypatch.setenv("ALIBABA_CLOUD_SECURITY_TOKEN", str(ROLE["SecurityToken"]))
    assert connect().tables()
    monkeypatch.setenv("ACCESS_KEY_ID", KEY["key"])  # flannel's come first
    monkeypatch.setenv("ACCESS_KEY_SECRET", "another")
    assert "SignatureDoesNotMatch" in fault_of()


def test_a_role_s_keys_are_renewed_before_they_end_and_no_thread_is_left(
    keyless: None, host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def counted() -> TokenMetadata:
        asked.append("asked")
        return identity.conversation()

    monkeypatch.setattr(credentials, "conversation", counted)
    threads = threading.active_count()
    lasting = connect()
    assert all(lasting.tables() for _ in range(2))
    assert len(asked) == 1
    soon = datetime.fromtimestamp(time.time() + credentials.RENEW_BEFORE_S - 1, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with metadata_on_loopback({**host, "credentials": {**ROLE, "Expiration": soon}}) as url:
        monkeypatch.setattr(identity, "URL", url)
        ending = connect()
        asked.clear()
        assert ending.tables()
    assert len(asked) == 2  # before each call
    with pytest.raises(CloudError, match="no metadata service at "):
        ending.tables()
    assert threading.active_count() == threads


def test_a_role_without_keys_is_named(keyless: None, host: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with metadata_on_loopback({**host, "credentials": {"Code": "Failed"}}) as url:
        monkeypatch.setattr(identity, "URL", url)
        assert fault_of() == f"the metadata service at {url} gives no keys of the RAM role hosts"


def test_a_clock_that_is_off_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Utils, "get_timestamp", lambda: "2026-01-01T00:00:00Z")
    line = fault_of()
    assert line.startswith("our clock says 20")
    assert line.endswith(
        ", and Alibaba Cloud takes no signature that is 15 minutes off (InvalidTimeStamp.Expired): set the clock"
    )


def test_no_line_of_a_log_has_a_key(
    keyless: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEBUG", "sdk")
    with caplog.at_level(1):
        connect().tables()
    said = caplog.text + "".join(capfd.readouterr())
    assert [word for word in ("token-of-a-role", "of-the-role", "STS.hosts") if word in said] == []
    assert logging.getLogger("darabonba-core").handlers == []
