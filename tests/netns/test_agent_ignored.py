"""Hosts whose entries are ignored, as the network configuration was changed and agents were started again on some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import wait_for, wait_for_peers
from tests.support.by_hand import by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

UDP, OTHER_TYPE, OTHER_NETWORK = (
    {"Network": str(OVERLAY)},
    {"Network": str(OVERLAY), "Backend": {"Type": "host-gw"}},
    {"Network": "10.99.0.0/16"},
)


@pytest.fixture
def duo() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=2, pods=0, config=UDP)) as lab:
        yield lab


def problems_of(host: Host) -> list[str]:
    problems: list[str] = host.control("/v1/status")["problems"]
    return problems


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (OTHER_TYPE, ("its backend is 'host-gw', ours is udp", "its backend is '', ours is host-gw")),
        (OTHER_NETWORK, ("outside the overlay network 10.244.0.0/16", "outside the overlay network 10.99.0.0/16")),
    ],
    ids=["another type", "another network"],
)
def test_both_name_each_other_until_both_have_one_configuration(
    duo: Lab, config: dict[str, Any], why: tuple[str, str]
) -> None:
    by_hand(duo).configure(config)
    former, changed = duo.hosts
    changed.stop_agent()
    changed.start_agent()
    changed.wait_ready()
    for host, other, text in zip(duo.hosts, reversed(duo.hosts), why, strict=True):
        start = f"no packets travel to the pods of {other.underlay}: entry '"
        end = "; if the network configuration was changed, start the agents again that have the former one"
        wait_for(f"{host.name} names {other.name}", lambda: len(problems_of(host)) == 1)  # noqa: B023 - called at once
        (problem,) = problems_of(host)
        assert (problem.startswith(start), text in problem, problem.endswith(end)) == (True, True, True), problem
        assert host.is_ready()
    former.stop_agent()
    former.start_agent()
    former.wait_ready()
    wait_for_peers(duo.hosts)
    for host in duo.hosts:
        wait_for(f"{host.name} has nothing to say", lambda: problems_of(host) == [])  # noqa: B023 - called at once
