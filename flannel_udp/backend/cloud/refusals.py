"""What a host of any provider is refused for before its API is asked anything."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.util import find_spec
from ipaddress import IPv4Network

from flannel_udp.backend.cloud.provider import CloudError
from flannel_udp.errors import ConfigError
from flannel_udp.netconf.config import NetworkConfig


def refuse_without(package: str, kind: str, extra: str) -> None:
    """Raise `CloudError` unless the SDK's package is there; `extra` is the one of ours that brings it."""
    importlib.invalidate_caches()  # it may have been installed since we looked last
    if find_spec(package) is None:
        raise CloudError(f"Backend.Type is {kind}, and {package} is not installed: pip install 'flannel-udp[{extra}]'")


def refuse_other_region(config: NetworkConfig, region: str) -> None:
    """Raise `ConfigError` if the configuration names another region than this instance's."""
    configured = config.backend.options.get("Region", region)
    if configured != region:
        fault = f"Backend.Region is {configured}, and this instance is in {region}"
        raise ConfigError([f"{fault}: a route leads to interfaces of its own region only: leave Region out"])


def refuse_overlap(config: NetworkConfig, ranges: Iterable[IPv4Network], vpc: str) -> None:
    """Raise `ConfigError` if pods' addresses are some that the VPC has itself."""
    for each in ranges:
        if config.overlay.overlaps(each):
            fault = f"Network {config.overlay} overlaps {each} of {vpc}, which the VPC routes itself"
            raise ConfigError([f"{fault}: choose another Network"])
