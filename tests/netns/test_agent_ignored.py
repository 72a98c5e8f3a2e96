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


@pytest.mark.parametrize("datapath", ["kernel", "userspace"])
def test_hosts_of_another_vni_name_each_other(datapath: str) -> None:
    config: dict[str, Any] = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    with Lab(Plan(fresh_name(), hosts=2, pods=0, config=config, agent_args=(f"--datapath={datapath}",))) as lab:
        h1, h2 = lab.hosts
        by_hand(lab).configure({**config, "Backend": {"Type": "vxlan", "VNI": 2}})
        h2.stop_agent()
        h2.start_agent()
        h2.wait_ready()
        end = ": no packets travel between us: start the agents again that have the former Backend.VNI"
        wait_for("h1 names h2", lambda: f"the VNI of {h2.underlay} is 2, ours is 1{end}" in problems_of(h1))
        wait_for("h2 names h1", lambda: f"the VNI of {h1.underlay} is 1, ours is 2{end}" in problems_of(h2))
