"""This process as an instance in a VPC of Alibaba Cloud, as far as the code under test can tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

import pytest

from flannel_udp.backend.cloud.ali import AliProvider, account, identity
from flannel_udp.backend.cloud.provider import Account, CloudError, CloudRoute
from flannel_udp.errors import ConfigError
from flannel_udp.netconf.config import NetworkConfig
from tests.support.ali_vpc import KEY, ROLE, VARIABLES, AliVpc, metadata_on_loopback, vpc_on_loopback
from tests.support.backends import parse_config
from tests.support.patience import PATIENCE_S
from tests.support.served import PROXIES, external

_open: list[Account] = []


@dataclass(frozen=True)
class Place:
    """A VPC, and what an instance's metadata service at `metadata` says."""

    vpc: AliVpc
    host: dict[str, Any]
    metadata: str


@contextmanager
def place_on_loopback() -> Iterator[Place]:
    """Have both for the block; the instance has a RAM role."""
    with vpc_on_loopback() as vpc:
        host = {**vpc.add_host("192.0.2.1"), "credentials": ROLE}
        with metadata_on_loopback(host) as url:
            yield Place(vpc, host, url)


@contextmanager
def on_host(place: Place, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be there, with root's access key and little patience; afterwards the VPC is as at the beginning."""
    for name in (*PROXIES, *VARIABLES):
        patch.delenv(name, raising=False)
    patch.setattr("flannel_udp.backend.cloud.metadata.TIMEOUT_S", PATIENCE_S)
    patch.setattr(identity, "URL", place.metadata)  # the real one is an address: no SDK has a variable for it
    patch.setattr(account, "RETRY_MS", 5)
    patch.setattr(account, "SETTLE_EVERY_S", 0.01)
    patch.setenv("FLANNEL_UDP_ALI_ENDPOINT", place.vpc.url)
    patch.setenv("ACCESS_KEY_ID", KEY["key"])
    patch.setenv("ACCESS_KEY_SECRET", KEY["secret"])
    yield
    while _open:
        _open.pop().close()
    place.vpc.fail()
    place.vpc.settle_after(0)
    place.vpc.make_world()


def fixtures() -> tuple[Any, Any, Any, Any]:
    """Return the fixtures `place`, `vpc`, `host` and `here` of a module whose tests are all on such a host."""

    @pytest.fixture(scope="module")
    def place() -> Iterator[Place]:
        with place_on_loopback() as place:
            yield place

    @pytest.fixture
    def vpc(place: Place) -> AliVpc:
        return place.vpc

    @pytest.fixture
    def host(place: Place) -> dict[str, Any]:
        return place.host

    @pytest.fixture(autouse=True)
    def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with on_host(place, monkeypatch):
            yield

    return place, vpc, host, here


def config_of(network: str = "10.1.0.0/16", **options: Any) -> NetworkConfig:
    """Return a configuration with these options of the backend."""
    backend = {"Type": "ali-vpc", **options}
    return parse_config(json.dumps({"Network": network, "Backend": backend})).config


def connect(address: str = "192.0.2.1", **options: Any) -> Account:
    """Return what the host with that address sees; it is closed at the end."""
    _open.append(AliProvider().connect(config_of(**options), external(address)))
    return _open[-1]


def fault_of(**options: Any) -> str:
    """Return what is said where asking for the tables is refused."""
    with pytest.raises((CloudError, ConfigError)) as caught:
        connect(**options).tables()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def overlay_routes(account: Account) -> list[CloudRoute]:
    """Return the routes that a look finds in 10.1.0.0/16."""
    overlay = IPv4Network("10.1.0.0/16")
    return [route for table in account.tables() for route in table.routes if route.destination.overlaps(overlay)]
