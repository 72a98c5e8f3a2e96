"""aws-vpc from end to end: hosts of a lab in a VPC whose route table a router in the middle goes by."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.agents import Agent
from tests.support.aws_lab import aws_around
from tests.support.cloud_scenario import (
    Cluster,
    Promised,
    agents_on,
    cluster_in,
    without_a_metadata_service_the_configuration_is_waited_with_and_nothing_is_written,
)
from tests.support.labs import NEEDS_NETNS

pytestmark = NEEDS_NETNS


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with cluster_in(aws_around, hosts=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def running(cluster: Cluster) -> Iterator[dict[str, Agent]]:
    with agents_on(cluster, unhurried=frozenset({"h2", "h3"})) as agents:
        yield agents


class TestAws(Promised):
    pass


def test_without_a_metadata_service_the_configuration_is_waited_with_and_nothing_is_written(cluster: Cluster) -> None:
    line = without_a_metadata_service_the_configuration_is_waited_with_and_nothing_is_written(
        cluster, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://169.254.169.253"}, "169.254.169.253"
    )
    assert "no metadata service at http://169.254.169.253: " in line
    assert "is this an EC2 instance, and its metadata service on?" in line
