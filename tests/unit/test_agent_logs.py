"""The forms of the agent's log, as a process writes them to its standard error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging, sys
from flannel_udp.agent.logs import start_log
from flannel_udp.levels import CHANGES, QUESTIONS
from flannel_udp.options import Options

start_log(Options(verbosity=int(sys.argv[1]), log_format=sys.argv[2]))
ours, library = logging.getLogger("flannel_udp.control.lease"), logging.getLogger("grpc")
library.info("library's info")
library.warning("library's warning")
library.debug("library's debug")
ours.info("kept our subnet %s", "10.1.15.0/24")
ours.debug("step")
ours.log(CHANGES, "change")
ours.log(QUESTIONS, "question")
try:
    raise OSError("first\\nsecond")
except OSError:
    ours.exception("ended")
"""


def said(verbosity: int, form: str, log: Path, **environ: str) -> list[str]:
    with log.open("wb") as stderr:
        if environ.pop("journal", ""):
            status = os.fstat(stderr.fileno())
            environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
        command = [sys.executable, "-c", PROGRAM, str(verbosity), form]
        subprocess.run(command, stderr=stderr, timeout=60, check=True, env={**os.environ, "TZ": "UTC-2", **environ})
    return log.read_text().splitlines()


@pytest.mark.parametrize(
    ("verbosity", "ours", "theirs"),
    [
        (0, ["kept our subnet 10.1.15.0/24"], ["library's warning"]),
        (1, ["kept our subnet 10.1.15.0/24", "step"], ["library's warning"]),
        (2, ["kept our subnet 10.1.15.0/24", "step", "change"], ["library's warning"]),
        (3, ["kept our subnet 10.1.15.0/24", "step", "change", "question"], ["library's warning"]),
        *(
            (
                verbosity,
                ["kept our subnet 10.1.15.0/24", "step", "change", "question"],
                ["library's info", "library's warning", "library's debug"],
            )
            for verbosity in (4, 10)
        ),
    ],
)
def test_each_level_adds_to_the_one_before(verbosity: int, ours: list[str], theirs: list[str], tmp_path: Path) -> None:
    lines = [json.loads(line) for line in said(verbosity, "json", tmp_path / "log")]
    (last,) = (line["message"] for line in lines if line["level"] == "error")
    assert last.startswith("ended\nTraceback")
    assert last.endswith("OSError: first\nsecond")
    assert [line["message"] for line in lines if line["logger"] == "control.lease"] == [*ours, last]
    assert [line["message"] for line in lines if line["logger"] == "grpc"] == theirs


def test_json_has_the_time_in_utc_and_the_level_by_name(tmp_path: Path) -> None:
    first, *rest = [json.loads(line) for line in said(3, "json", tmp_path / "log")]
    assert list(first) == ["time", "level", "logger", "message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert [line["level"] for line in (first, *rest)] == ["warning", "info", "debug", "debug", "debug", "error"]


def test_text_is_for_people(tmp_path: Path) -> None:
    first, second, *_ = said(0, "text", tmp_path / "log")
    assert re.fullmatch(r"W \d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} library's warning", first)
    assert re.fullmatch(r"I \d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} kept our subnet 10\.1\.15\.0/24", second)


def test_klog_has_the_header_that_klog_describes(tmp_path: Path) -> None:
    lines = said(3, "klog", tmp_path / "log")
    header = re.compile(r"([IWED])(\d{4}) (\d\d:\d\d:\d\d\.\d{6}) +(\d+) ([^:]+):(\d+)\] (.*)")
    found = [header.fullmatch(line) for line in lines[:5]]
    assert [match and (match[1], match[7]) for match in found] == [
        ("W", "library's warning"),
        ("I", "kept our subnet 10.1.15.0/24"),
        ("D", "step"),
        ("D", "change"),
        ("D", "question"),
    ]


@pytest.mark.parametrize("form", ["text", "klog", "json"])
def test_in_the_journal_every_line_bears_its_priority(form: str, tmp_path: Path) -> None:
    plain = said(3, form, tmp_path / "plain")
    lines = said(3, form, tmp_path / "log", journal="yes")
    assert len(lines) == len(plain)
    assert [line[:3] for line in lines[:5]] == ["<4>", "<6>", "<7>", "<7>", "<7>"]
    assert {line[:3] for line in lines[5:]} == {"<3>"}  # each line of a traceback is an entry of its own


def test_what_is_no_journal_gets_no_priority(tmp_path: Path) -> None:
    (tmp_path / "another").touch()
    status = (tmp_path / "another").stat()
    line, *_ = said(0, "text", tmp_path / "log", JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}")
    assert line.startswith("W ")


@pytest.mark.parametrize("in_journal", [False, True])
def test_a_mistake_in_the_flags_is_an_error_in_the_journal_too(in_journal: bool, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as stderr:
        status = os.fstat(stderr.fileno())
        stream = f"{status.st_dev}:{status.st_ino}" if in_journal else "1:1"
        command = [sys.executable, "-m", "flannel_udp", "--nonsense"]
        environ = {**os.environ, "JOURNAL_STREAM": stream}
        assert subprocess.run(command, stderr=stderr, timeout=60, check=False, env=environ).returncode == 2
    prefix = "<3>" if in_journal else ""
    assert (tmp_path / "log").read_text() == f"{prefix}flannel-udp: unknown flag '--nonsense'\n"
