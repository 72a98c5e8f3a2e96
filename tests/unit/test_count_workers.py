"""How many data threads `--workers` means."""

from __future__ import annotations

import os

import pytest

from flannel_udp.dataplane.lanes import LANES
from flannel_udp.dataplane.worker import AUTO_WORKERS_MAX, count_workers
from flannel_udp.options import DataplaneOptions


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (3, 3), (64, 64), (65, 64), (1024, 64)])
def test_auto_is_one_a_core_that_we_may_use_up_to_a_limit(
    cores: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)))
    assert count_workers(DataplaneOptions(workers=0)) == workers


def test_auto_means_no_more_workers_than_there_are_lanes() -> None:
    assert AUTO_WORKERS_MAX <= LANES


def test_a_number_is_that_many_whatever_there_are_of_cores() -> None:
    assert count_workers(DataplaneOptions(workers=256)) == 256
