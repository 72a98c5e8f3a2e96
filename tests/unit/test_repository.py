"""The repository around the code: what is written there is true, and it is the installed package that is tested."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import flannel_udp
from flannel_udp.backend.table import BACKENDS
from flannel_udp.cli.commands import COMMANDS
from flannel_udp.cli.flags import AGENT_FLAGS

ROOT = Path(__file__).parents[2]
CODE = [
    path
    for folder in ("_fastpath", "flannel_udp", "tests", "bench", "examples")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".pyx", ".pxd", ".pyi", ".c", ".h") and not path.name.startswith("etcd_pb2")
]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_LINES = 500


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.skipif("TOX_ENV_NAME" not in os.environ, reason="outside tox the checkout itself may be installed")
def test_the_installed_package_is_under_test_and_not_the_checkout() -> None:
    assert not Path(flannel_udp.__file__).is_relative_to(ROOT / "flannel_udp")


def test_a_file_is_short_enough_for_one_job() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in CODE}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_every_local_link_leads_somewhere() -> None:
    found = [(path, target) for path in PAGES for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())]
    local = [(path, target) for path, target in found if "://" not in target]
    assert len(local) > 50
    assert [(relative(path), target) for path, target in local if not (path.parent / target).exists()] == []


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if not re.search(rf"[`|]\s*(flannel-udp )?{name}\b|, `{name}", text)] == []


@pytest.mark.parametrize("name", ["README.md", "docs/backends.md"])
def test_the_tables_of_backends_have_every_one(name: str) -> None:
    rows = [line for line in (ROOT / name).read_text().splitlines() if line.startswith("| ")]
    assert [kind for kind in BACKENDS if not any(f"| `{kind}`" in row for row in rows)] == []


@pytest.mark.parametrize("name", ["README.md", "docs/install.md"])
def test_every_flag_that_newcomers_read_of_exists(name: str) -> None:
    known = {flag.spelling for flag in AGENT_FLAGS} | {"--help", "--version"}
    known |= {flag.spelling for command in COMMANDS.values() for flag in command.all_flags}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / name).read_text()))
    of_others = {"--now", "--targets", "--rounds"}  # systemctl's and bench.forward's
    assert named - known - of_others == set()


def test_the_map_of_the_code_names_every_part() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    parts = {path.stem for path in (ROOT / "_fastpath").glob("*.p[yx][xd]")}
    parts |= {path.stem for path in (ROOT / "flannel_udp").glob("*.py") if not path.stem.startswith("__")}
    parts |= {path.parent.name for path in (ROOT / "flannel_udp").glob("*/__init__.py")}
    assert [part for part in sorted(parts) if not re.search(rf"\b{part}\b", text)] == []
