"""bootstrap.sh where something is missing: one clear line, and nothing touched."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("sh", "dirname", "mkdir", "cat", "cksum", "grep", "sed", "tail", "id", "mountpoint")


class Checkout:
    """A folder with bootstrap.sh, and a PATH that holds only what is put there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.tools = folder / "tools"
        self.folder.mkdir()
        self.tools.mkdir()
        shutil.copy(ROOT / "bootstrap.sh", self.folder)
        for name in TOOLS:
            found = shutil.which(name)
            assert found, name
            (self.tools / name).symlink_to(found)

    def put(self, name: str, script: str) -> None:
        """Put a command there that stands for one of another machine."""
        path = self.tools / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # Of the machine's own folders bootstrap.sh adds /usr/sbin and /sbin; no compiler and no apt-get live there.
        return subprocess.run(
            [str(self.tools / "sh"), str(self.folder / "bootstrap.sh"), *arguments],
            env={"PATH": str(self.tools)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",)])
def test_help_names_both_commands(checkout: Checkout, arguments: tuple[str, ...]) -> None:
    done = checkout.run(*arguments)
    assert done.returncode == 0
    assert "./bootstrap.sh lab" in done.stdout
    assert "./bootstrap.sh test" in done.stdout


def test_an_unknown_command_is_one_clear_line(checkout: Checkout) -> None:
    done = checkout.run("tset")
    assert (done.returncode, done.stderr) == (1, "bootstrap: unknown command 'tset' (see: ./bootstrap.sh help)\n")


def test_a_lab_without_root_is_one_clear_line(checkout: Checkout) -> None:
    checkout.put("id", "echo 1000")
    done = checkout.run("lab")
    assert (done.returncode, done.stderr) == (
        1,
        "bootstrap: a lab is made of network namespaces: run it as root\n",
    )


def test_where_there_is_no_apt_the_packages_are_named(checkout: Checkout) -> None:
    done = checkout.run("test")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("bootstrap: install these (Debian's names) and run this again: Python 3.11 or later")
    assert {"gcc", "libc6-dev", "etcd-server", "etcd-client", "socat"} <= set(last.split())
    assert not (checkout.folder / ".venv").exists()


def test_without_root_it_says_how_to_install(checkout: Checkout) -> None:
    checkout.put("id", "echo 1000")
    checkout.put("apt-get", "echo apt-get must not run >&2; exit 100")
    done = checkout.run("test")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("bootstrap: run this as root once, or install: ")
    assert "must not run" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's packages are installed")
def test_a_step_that_fails_is_one_line_with_the_reason(checkout: Checkout) -> None:
    checkout.put("apt-get", "echo E: Unable to locate package; exit 100")
    done = checkout.run("test")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "bootstrap: failed: reading the package lists: E: Unable to locate package (all of it: build/bootstrap.log)"
    )


def test_an_old_python_is_not_taken(checkout: Checkout) -> None:
    checkout.put("python3", "exit 1")  # what `sys.version_info < (3, 11)` gives
    checkout.put("id", "echo 1000")
    done = checkout.run("test")
    assert "Python 3.11 or later" in done.stderr.splitlines()[-1]
