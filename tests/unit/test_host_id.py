"""The id by which a host knows its leases again: kept, made once, never shared by accident."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_udp.errors import FlannelError
from flannel_udp.files import host_id
from flannel_udp.files.host_id import HOST_ID, keep_host_id, mark_of, new_host_id
from tests.support.patience import PATIENCE_S


def test_it_is_made_once_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "lib" / "flannel-udp"
    first = keep_host_id(folder)
    assert keep_host_id(folder) == first
    assert [path.name for path in folder.iterdir()] == [HOST_ID]
    assert (folder / HOST_ID).stat().st_mode & 0o777 == 0o600
    assert keep_host_id(tmp_path / "other") != first


@pytest.mark.parametrize("text", ["", "x" * 32, "0" * 31, "\0" * 32, "0" * 64])
def test_one_that_makes_no_sense_is_made_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / HOST_ID).write_text(text)
    made = keep_host_id(tmp_path)
    assert len(made) == 32
    assert keep_host_id(tmp_path) == made


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null"])
def test_where_it_cannot_be_kept_one_line_says_so(folder: str) -> None:
    with pytest.raises(FlannelError, match=rf"the host's id cannot be kept in {folder}/host-id: ") as caught:
        keep_host_id(Path(folder))
    assert "\n" not in str(caught.value)


def test_a_folder_in_its_place_is_said(tmp_path: Path) -> None:
    (tmp_path / HOST_ID).mkdir()
    with pytest.raises(FlannelError, match="Is a directory"):
        keep_host_id(tmp_path)


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from flannel_udp.files.host_id import keep_host_id as keep; "
    script += "sys.stdin.readline(); print(keep(Path(sys.argv[1])))"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "new")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(5)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = {process.communicate(timeout=PATIENCE_S)[0] for process in started}
    assert said == {f"{keep_host_id(tmp_path / 'new')}\n"}
    assert os.listdir(tmp_path / "new") == [HOST_ID]  # noqa: PTH208


def test_one_that_another_process_makes_after_the_first_look_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = host_id._read
    theirs = []

    def look_too_early(path: Path) -> str | None:
        monkeypatch.setattr(host_id, "_read", look)
        seen = look(path)
        theirs.append(keep_host_id(tmp_path))
        return seen

    monkeypatch.setattr(host_id, "_read", look_too_early)
    assert [keep_host_id(tmp_path)] == theirs


def test_marks_have_32_bits_and_differ() -> None:
    marks = {mark_of(new_host_id()) for _ in range(1000)}
    assert len(marks) > 990
    assert all(0 < mark < 1 << 32 for mark in marks)
