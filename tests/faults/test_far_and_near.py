"""A peer that is slow, or dead, takes nothing from another one: the bench `far_and_near`, once."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from bench.far_and_near import judged, measure
from tests.support.labs import NEEDS_NETNS

pytestmark = [
    *NEEDS_NETNS,
    pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3 (package iperf3)"),
]

ROUNDS, SECONDS, DEAD = 3, 2, 60
KEPT_MIN = 0.3
"""Of the TCP that a near peer has alone: 0.02 where one peer's packets fill what all share, else about 1."""


def test_a_near_peers_tcp_is_kept_beside_a_slow_peer_and_beside_dead_ones(
    record_property: Callable[[str, object], None],
) -> None:
    kept = judged(measure(ROUNDS, SECONDS, DEAD))
    record_property("figure", f"beside the slow peer {kept['beside far']:.2f}, the dead ones {kept['beside dead']:.2f}")
    assert kept["beside far"] > KEPT_MIN
    assert kept["beside dead"] > KEPT_MIN
