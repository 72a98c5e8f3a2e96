"""A subnet that is left to another host is left to it over restarts, and not for ever."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from flannel_udp.files.yielded import forget_yielded, note_yielded, yielded_file, yielded_for_s

OVERLAY, ADDRESS = IPv4Network("10.244.0.0/16"), IPv4Address("192.0.2.1")


def test_it_is_remembered_until_its_time_is_over_or_it_is_forgotten(tmp_path: Path) -> None:
    file = yielded_file(tmp_path, OVERLAY, ADDRESS)
    assert yielded_for_s(file, 600) == 0
    note_yielded(file, 600)
    assert yielded_for_s(file, 600) == pytest.approx(600, abs=5)
    forget_yielded(file)
    assert yielded_for_s(file, 600) == 0
    assert list(tmp_path.iterdir()) == []


def test_it_is_remembered_from_the_first_moment_on_whatever_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = yielded_file(tmp_path, OVERLAY, ADDRESS)
    for now_s in (1_800_000_000.0, 1_800_000_000.0006, 1_800_000_000.9999):
        monkeypatch.setattr(time, "time", lambda: now_s)  # noqa: B023 - called at once
        note_yielded(file, 600)
        assert yielded_for_s(file, 600) == pytest.approx(600, abs=1)


def test_agents_that_share_a_folder_remember_it_each_for_itself(tmp_path: Path) -> None:
    note_yielded(yielded_file(tmp_path, OVERLAY, ADDRESS), 600)
    for other in (
        yielded_file(tmp_path, OVERLAY, IPv4Address("192.0.2.2")),
        yielded_file(tmp_path, IPv4Network("10.245.0.0/16"), ADDRESS),
    ):
        assert yielded_for_s(other, 600) == 0
        forget_yielded(other)
    assert yielded_for_s(yielded_file(tmp_path, OVERLAY, ADDRESS), 600) > 0


@pytest.mark.parametrize(
    "text",
    # The test's id must not have the time in it: each of pytest-xdist's processes makes the list of all tests.
    ["", "soon", "nan", "1e999", "0", pytest.param(f"{time.time() + 86_400:.0f}", id="in the future")],
)
def test_what_makes_no_sense_is_nothing(tmp_path: Path, text: str) -> None:
    file = tmp_path / "yielded"
    file.write_text(text)
    assert yielded_for_s(file, 600) == 0


def test_without_a_place_for_it_nothing_is_remembered() -> None:
    nowhere = Path("/proc/nowhere/yielded")
    note_yielded(nowhere, 600)
    forget_yielded(nowhere)
    assert yielded_for_s(nowhere, 600) == 0
