"""This process as a host of a VPC of Tencent Cloud: what its environment says, and nothing that is there by chance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from flannel_udp.backend.cloud.provider import Account, CloudError
from flannel_udp.backend.cloud.tencent import TencentProvider, retrying
from flannel_udp.errors import ConfigError
from flannel_udp.netconf.config import NetworkConfig
from tests.support.backends import parse_config
from tests.support.patience import PATIENCE_S
from tests.support.served import PROXIES, external
from tests.support.tencent_vpc import KEYS, TencentVpc, tencent_metadata_on_loopback, tencent_on_loopback

VARIABLES = ("ACCESS_KEY_ID", "ACCESS_KEY_SECRET", "TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY")


@contextmanager
def on_tencent_host(vpc: TencentVpc, metadata: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be there, as root of the account; afterwards nothing of the VPC fails, and its default table is empty."""
    for name in (*PROXIES, *VARIABLES):
        patch.delenv(name, raising=False)
    patch.setattr(retrying, "FIRST_PAUSE_S", 0.01)
    patch.setattr("flannel_udp.backend.cloud.metadata.TIMEOUT_S", PATIENCE_S)
    patch.setenv("FLANNEL_UDP_TENCENT_METADATA", metadata)
    patch.setenv("FLANNEL_UDP_TENCENT_ENDPOINT", vpc.url)
    patch.setenv("ACCESS_KEY_ID", "AKIDroot")
    patch.setenv("ACCESS_KEY_SECRET", "of-root")
    yield
    vpc.fail()
    vpc.order("/test/clock", 0)
    vpc.order("/test/keys", KEYS)
    vpc.order("/test/clear", vpc.main)


def fixtures(*others: str) -> tuple[Any, Any, Any, Any]:
    """Return the fixtures `vpc`, `host`, `metadata` and `here` of a module whose tests are all on such a host.

    `others` are the addresses of further hosts.
    """

    @pytest.fixture(scope="module")
    def vpc() -> Iterator[TencentVpc]:
        with tencent_on_loopback() as vpc:
            for address in others:
                vpc.add_host(address)
            yield vpc

    @pytest.fixture(scope="module")
    def host(vpc: TencentVpc) -> dict[str, Any]:
        return vpc.add_host("192.0.2.1")

    @pytest.fixture(scope="module")
    def metadata(host: dict[str, Any]) -> Iterator[str]:
        with tencent_metadata_on_loopback(host) as url:
            yield url

    @pytest.fixture(autouse=True)
    def here(vpc: TencentVpc, metadata: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with on_tencent_host(vpc, metadata, monkeypatch):
            yield

    return vpc, host, metadata, here


def config_of(**options: Any) -> NetworkConfig:
    backend = {"Type": "tencent-vpc", **options}
    return parse_config(json.dumps({"Network": "10.1.0.0/16", "Backend": backend})).config


def connect(address: str = "192.0.2.1", **options: Any) -> Account:
    return TencentProvider().connect(config_of(**options), external(address))


def fault_of(**options: Any) -> str:
    """Return what is said where asking for the tables is refused."""
    with pytest.raises((CloudError, ConfigError)) as caught, closing(connect(**options)) as account:
        account.tables()
    assert "\n" not in str(caught.value)
    return str(caught.value)
