"""docs/metrics.md names every reason to drop a packet, with the levels that the log has, and every place."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from flannel_udp.dataplane.drops import DROP_REASONS, about
from flannel_udp.model import KERNEL_DROPS

TEXT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
LETTERS = {"D": logging.DEBUG, "I": logging.INFO, "W": logging.WARNING}


def test_every_reason_is_there_with_its_levels() -> None:
    found = {}
    for line in TEXT.splitlines():
        if row := re.fullmatch(r"\| (`.*`) \| .* \| ([DIW]) \| ([DIW]) \|", line):
            for reason in re.findall(r"`(\w+)`", row[1]):
                found[reason] = (LETTERS[row[2]], LETTERS[row[3]])
    assert found == {reason: about(reason)[1][:2] for reason in DROP_REASONS}


def test_every_place_where_the_kernel_drops_is_there() -> None:
    assert all(f"`{place}`" in TEXT for place in KERNEL_DROPS)
