"""The seam's half that all providers share: who is asked how often, and what people see of it."""

from __future__ import annotations

import io
from ipaddress import ip_address
from typing import Any

import pytest

from flannel_udp.admin.show_cloud import show_cloud_routes
from flannel_udp.backend.cloud import backend as backend_module
from flannel_udp.backend.cloud.aws import AwsProvider
from flannel_udp.backend.cloud.backend import CloudBackend
from flannel_udp.backend.cloud.provider import Account, CloudError
from flannel_udp.model import Interface
from flannel_udp.netconf.config import NetworkConfig
from tests.support.backends import parse_config
from tests.support.served import external
from tests.support.status import CLOUD_ROUTES

CONFIG = parse_config('{"Network": "10.1.0.0/16", "Backend": {"Type": "aws-vpc"}}').config


class Refusing(AwsProvider):
    """A provider that knows nobody."""

    def __init__(self) -> None:
        self.asked = 0

    def connect(self, config: NetworkConfig, external: Interface) -> Account:  # noqa: ARG002
        self.asked += 1
        raise CloudError("who are you?")


async def asked(n: int, monkeypatch: pytest.MonkeyPatch, pause_s: float) -> int:
    """Return how often a provider is asked that refuses, where it is to be left alone for so long after each time."""
    monkeypatch.setattr(backend_module, "FIRST_ASK_S", pause_s)
    monkeypatch.setattr(backend_module, "LAST_ASK_S", pause_s)
    provider = Refusing()
    backend = CloudBackend(provider)
    for _ in range(n):
        with pytest.raises(CloudError, match="who are you"):
            await backend.check(CONFIG, external())
    if pause_s:
        with pytest.raises(CloudError):  # from another address it is another question
            await backend.check(CONFIG, external("192.0.2.9"))
        return provider.asked - 1
    return provider.asked


async def test_a_provider_that_refuses_is_not_asked_again_at_each_question(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await asked(3, monkeypatch, pause_s=1e9) == 1
    assert await asked(3, monkeypatch, pause_s=0.0) == 3


async def test_an_answer_that_nobody_expects_is_one_line_and_asked_for_again() -> None:
    class Stumbling(AwsProvider):
        def connect(self, config: NetworkConfig, external: Interface) -> Account:  # noqa: ARG002
            return ip_address("<html>")  # type: ignore[return-value]

    with pytest.raises(CloudError, match=r"^looking at the provider's route tables failed: ValueError"):
        await CloudBackend(Stumbling()).check(CONFIG, external())


def shown(**changes: Any) -> list[str]:
    stream = io.StringIO()
    show_cloud_routes({**CLOUD_ROUTES, **changes}, stream)  # type: ignore[typeddict-item]
    return stream.getvalue().splitlines()


def test_people_see_each_route_what_it_is_and_what_is_done_about_it() -> None:
    assert shown() == [
        "aws-vpc: i-0abc, eni-0abc in eu-central-1",
        "looked 12 s ago",
        "the host that removes routes of hosts that are gone: this one",
        "rtb-0abc: 4 routes of 50",
        "",
        "TABLE     DESTINATION   LEADS TO  IS     DOES             WHY",
        "rtb-0abc  10.1.15.0/24  eni-0abc  own    -                to this host",
        "rtb-0abc  10.1.17.0/24  eni-0def  stale  remove in 240 s  leads nowhere",
    ]


def test_a_table_beyond_what_is_usual_is_shown_without_a_limit() -> None:
    assert "vtb-0abc: 250 routes" in shown(tables=[{"id": "vtb-0abc", "routes": 250, "limit": None}])


def test_before_the_first_look_and_after_one_that_failed_that_is_said() -> None:
    lines = shown(here=None, looked_ago_s=None, error="no right to\nask", cleaner=None, tables=[], routes=[])
    assert lines == [
        "aws-vpc: who this host is, is not known yet",
        "no look yet",
        "fault: 'no right to\\nask'",
    ]


def test_another_host_that_removes_is_named() -> None:
    assert "the host that removes routes of hosts that are gone: that of 10.1.2.0/24" in shown(
        cleaner="10.1.2.0/24", cleans=False
    )
