"""This process as a host of a VPC: what an SDK looks for in the environment, and nothing that is there by chance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.patience import PATIENCE_S
from tests.support.served import PROXIES
from tests.support.vpc import Vpc

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE")


@contextmanager
def on_host(vpc: Vpc, metadata: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be there, as root of the account; afterwards nothing of the VPC fails, and its main table is empty."""
    for name in (*PROXIES, *CREDENTIALS):
        patch.delenv(name, raising=False)
    patch.setattr("flannel_udp.backend.cloud.metadata.TIMEOUT_S", PATIENCE_S)
    patch.setenv("AWS_METADATA_SERVICE_TIMEOUT", str(int(PATIENCE_S)))
    patch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata)
    patch.setenv("AWS_ENDPOINT_URL_EC2", vpc.url)
    patch.setenv("AWS_ACCESS_KEY_ID", "root")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "root")
    patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    yield
    vpc.fail()
    vpc.order("/test/blackholes", [])
    for destination in vpc.routes():
        vpc.unlead(destination)
