"""ali-vpc from end to end: hosts of a lab in a VPC whose system table a router in the middle goes by."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.agents import Agent, wait_for
from tests.support.ali_lab import AliCloud, ali_around
from tests.support.cloud_scenario import Cluster, Promised, agents_on, cluster_in
from tests.support.labs import NEEDS_NETNS
from tests.support.patience import promised

pytestmark = NEEDS_NETNS


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with cluster_in(ali_around) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def running(cluster: Cluster) -> Iterator[dict[str, Agent]]:
    with agents_on(cluster) as agents:
        yield agents


class TestAli(Promised):
    pass


def test_who_ends_while_a_change_is_under_way_is_on_time_and_says_what_stays(cluster: Cluster) -> None:
    cloud, host = cluster.cloud, cluster.lab.hosts[1]
    assert isinstance(cloud, AliCloud)
    at = list(cluster.wanted)[1]
    cloud.unlead(at)
    cloud.vpc.settle_after(100_000)
    with cluster.start(host, "--release-on-exit", hurried=False) as agent:
        under_way = {"DestinationCidrBlock": at, "Status": "Pending"}
        wait_for("it is under way", lambda: any(under_way.items() <= entry.items() for entry in cloud.vpc.entries()))
        bound_s, began_s = promised(2.0), time.monotonic()
        assert agent.stop() == 0
        assert time.monotonic() - began_s < bound_s
        line = agent.wait_for_line("the lease was not released")
    assert line == (
        "the lease was not released and stays until it expires, and so does what leads packets to this host: no answer"
    )
    assert at in [entry["DestinationCidrBlock"] for entry in cloud.vpc.entries()]
    cloud.vpc.settle_after(1)
    cloud.unlead(at)
