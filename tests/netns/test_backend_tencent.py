"""tencent-vpc from end to end: hosts of a lab in a VPC whose route table a router in the middle goes by."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import cloud_scenario as scenario
from tests.support.agents import Agent
from tests.support.cloud_scenario import Cluster, agents_on, cluster_in
from tests.support.labs import NEEDS_NETNS
from tests.support.tencent_lab import tencent_around

pytestmark = NEEDS_NETNS


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with cluster_in(tencent_around) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def running(cluster: Cluster) -> Iterator[dict[str, Agent]]:
    with agents_on(cluster) as agents:
        yield agents


def test_pods_reach_each_other_by_the_provider_s_routes_and_nothing_else(
    cluster: Cluster, running: dict[str, Agent]
) -> None:
    scenario.pods_reach_each_other_by_the_provider_s_routes_and_nothing_else(cluster)


def test_a_route_that_is_deleted_behind_our_back_returns(cluster: Cluster, running: dict[str, Agent]) -> None:
    scenario.a_route_that_is_deleted_behind_our_back_returns(cluster)


def test_a_foreign_route_stays_and_the_command_says_what_each_route_is(
    cluster: Cluster, running: dict[str, Agent]
) -> None:
    scenario.a_foreign_route_stays_and_the_command_says_what_each_route_is(cluster)


def test_the_route_of_a_killed_host_whose_lease_is_gone_goes_and_comes_back_with_it(
    cluster: Cluster, running: dict[str, Agent]
) -> None:
    scenario.the_route_of_a_killed_host_whose_lease_is_gone_goes_and_comes_back_with_it(cluster, running)


def test_with_release_on_exit_the_route_goes(cluster: Cluster, running: dict[str, Agent]) -> None:
    scenario.with_release_on_exit_the_route_goes(cluster, running)


def test_a_foreign_route_in_our_place_is_waited_for_and_nothing_is_written_for_pods(cluster: Cluster) -> None:
    scenario.a_foreign_route_in_our_place_is_waited_for_and_nothing_is_written_for_pods(cluster)


def test_without_a_metadata_service_the_configuration_is_waited_with_and_nothing_is_written(cluster: Cluster) -> None:
    line = scenario.without_a_metadata_service_the_configuration_is_waited_with_and_nothing_is_written(
        cluster, {"FLANNEL_UDP_TENCENT_METADATA": "http://169.254.169.253"}, "169.254.169.253"
    )
    assert "no metadata service at http://169.254.169.253: " in line
    assert "is this an instance of Tencent Cloud, and may it reach that address?" in line
