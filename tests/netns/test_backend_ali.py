"""ali-vpc from end to end: hosts of a lab in a VPC whose system table a router in the middle goes by."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.agents import Agent
from tests.support.ali_lab import ali_around
from tests.support.cloud_scenario import Cluster, Promised, agents_on, cluster_in
from tests.support.labs import NEEDS_NETNS

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
