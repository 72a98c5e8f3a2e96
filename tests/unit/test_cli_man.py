"""Manual pages: what they say, and that the program `man` takes them without a warning."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_udp.cli.commands import COMMANDS
from flannel_udp.cli.flags import AGENT_GROUPS
from flannel_udp.cli.main import main
from flannel_udp.cli.man import pages
from flannel_udp.cli.parser import help_text
from tests.support.patience import PATIENCE_S

PAGES = pages(COMMANDS)
NEEDS_MAN = pytest.mark.skipif(
    shutil.which("man") is None or shutil.which("groff") is None, reason="man or groff is not installed"
)


def shown(page: str) -> str:
    """Return a page as `man` formats it, on one line; it is an error if it warns of anything."""
    command = ["man", "--warnings", "--local-file", "-"]
    environment = {**os.environ, "MANWIDTH": "500", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    done = subprocess.run(command, input=page, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert done.stderr == ""
    return " ".join(re.sub(".\b", "", done.stdout).split())


def test_the_agent_and_every_command_have_a_page() -> None:
    assert set(PAGES) == {"flannel-udp", *(f"flannel-udp-{name.replace(' ', '-')}" for name in COMMANDS)}


@NEEDS_MAN
@pytest.mark.parametrize("name", PAGES)
def test_man_takes_a_page_without_a_warning_and_shows_what_help_says(name: str) -> None:
    words = next((known.split() for known in COMMANDS if f"flannel-udp-{known.replace(' ', '-')}" == name), [])
    text = shown(PAGES[name])
    groups = COMMANDS[" ".join(words)].flags if words else AGENT_GROUPS
    for flags in groups.values():
        for flag in flags:
            assert flag.spelling in text
            assert " ".join(flag.explanation.split()) in text
    # Everything else of --help: usage, description, examples; argparse's own headings have other names here.
    fixed = help_text(words, COMMANDS).partition("\noptions:\n")[0].removeprefix("usage: ")
    fixed = re.sub(r"\npositional arguments:\n.*", "", fixed, flags=re.DOTALL)
    assert " ".join(fixed.split()) in text.replace(" DESCRIPTION ", " ")


def test_what_roff_would_interpret_is_shown() -> None:
    text = PAGES["flannel-udp-config-check"]
    assert not re.search(r"^[.'](?!TH|SH|SS|TP|PP|nf|fi|ad|nh|B|I)", text, re.MULTILINE)
    assert not re.search(r"(?<!\\)-", text)


def test_pages_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["man", "route", "get"]) == 0
    assert capsys.readouterr().out == PAGES["flannel-udp-route-get"]
    assert main(["man"]) == 0
    assert capsys.readouterr().out == PAGES["flannel-udp"]
    folder = tmp_path / "share" / "man1"
    assert main(["man", f"--dir={folder}"]) == 0
    assert {path.name: path.read_text() for path in folder.iterdir()} == {f"{name}.1": PAGES[name] for name in PAGES}
    assert capsys.readouterr().out.splitlines() == [f"wrote {folder / name}.1" for name in PAGES]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["man", f"--dir={tmp_path / 'file' / 'man1'}"]) == 1
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert str(tmp_path / "file") in err


def test_pages_are_utf_8_in_every_locale(tmp_path: Path) -> None:
    """Where a locale's encoding would be used Python warns of it: that is the same in all of them."""
    as_error = "error::EncodingWarning:flannel_udp.cli.man"
    command = [sys.executable, "-X", "warn_default_encoding", "-W", as_error, "-m", "flannel_udp"]
    subprocess.run([*command, "man", f"--dir={tmp_path}"], check=True, timeout=PATIENCE_S)
    assert len(list(tmp_path.iterdir())) == len(PAGES)
