"""A full table of connections is named, once, until there is room again; the kernel's two files have a double here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from flannel_udp.doctor.finding import Verdict
from flannel_udp.doctor.kernel import judge_connections
from flannel_udp.host.conntrack import Connections, ConntrackWatch, read_connections
from flannel_udp.model import Degradation

FULL = (
    "conntrack's table is full (1,000 connections): new connections of pods are dropped: "
    "sysctl -w net.netfilter.nf_conntrack_max=2000"
)


def put(folder: Path, count: int, most: int = 1000) -> None:
    (folder / "nf_conntrack_count").write_text(f"{count}\n")
    (folder / "nf_conntrack_max").write_text(f"{most}\n")


def test_a_kernel_without_it_has_none(tmp_path: Path) -> None:
    assert read_connections(tmp_path / "nowhere") is None
    put(tmp_path, 7)
    assert read_connections(tmp_path) == Connections(7, 1000)


def test_a_full_table_is_named_until_there_is_some_room(tmp_path: Path) -> None:
    noted: list[list[str]] = []

    def note(source: str, found: Sequence[Degradation]) -> None:
        assert (source, {item.kind for item in found} - {"host"}) == ("conntrack", set())
        noted.append([item.text for item in found])

    watch = ConntrackWatch(note, tmp_path)
    for count in (7, 999, 1000, 999, 1001, 901, 899, 950):
        put(tmp_path, count)
        watch.look()
    assert noted == [[], [], [FULL], [FULL], [FULL], [FULL], [], []]
    (tmp_path / "nf_conntrack_max").unlink()
    watch.look()
    put(tmp_path, 1000, 0)  # any number
    watch.look()
    assert noted[-2:] == [[], []]


def test_a_descriptor_that_is_lacking_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[Sequence[Degradation]] = []
    watch = ConntrackWatch(lambda _, found: noted.append(found), tmp_path)

    def refuse(*_: object) -> str:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "read_text", refuse)
    watch.look()
    assert noted == []


@pytest.mark.parametrize(
    ("found", "verdict", "what"),
    [
        (None, Verdict.OK, "the kernel keeps none"),
        (Connections(12, 1000), Verdict.OK, "conntrack has 12 of 1,000"),
        (Connections(900, 1000), Verdict.NOTE, "conntrack has 900 of 1,000: when it is full new ones of pods are drop"),
        (Connections(1000, 1000), Verdict.FAULT, "conntrack's table is full (1,000 connections): new connections"),
    ],
)
def test_what_the_doctor_says(found: Connections | None, verdict: Verdict, what: str) -> None:
    finding = judge_connections(found)
    assert (finding.question, finding.verdict) == ("connections", verdict)
    assert finding.what.startswith(what)
