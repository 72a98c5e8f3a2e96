"""What a user downloads: the sdist, the wheel built of it, and the wheel installed in a fresh environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER_FOOD = (".c", ".h", ".pyx", ".pxd")
SOURCES = {str(path.relative_to(ROOT)) for path in (ROOT / "flannel_udp").rglob("*.py")}
MODULES = sorted(path.stem for path in (ROOT / "_fastpath").glob("*.pyx"))

OF_EXTRAS = (
    "flannel_udp.registry.kube",
    *("flannel_udp.backend.cloud.aws.account", "flannel_udp.backend.cloud.aws.faults"),
    *(f"flannel_udp.backend.cloud.ali.{name}" for name in ("account", "credentials", "faults")),
    *(f"flannel_udp.backend.cloud.gce.{name}" for name in ("account", "faults", "rest")),
    *(f"flannel_udp.backend.cloud.tencent.{name}" for name in ("account", "faults", "retrying")),
)
"""What the extras [kube], [aws], [ali], [gce] and [tencent] are for is imported only where somebody asks for it."""


def run(*argv: str | Path) -> str:
    """Return what a command prints; what it said goes into the failure otherwise."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, argv))}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of the checkout and the wheel that was built of this sdist alone."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def sdist(dist: Path) -> list[str]:
    """Names in the sdist, without its top folder."""
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return [name.partition("/")[2] for name in archive.getnames()]


@pytest.fixture(scope="module")
def wheel(dist: Path) -> list[str]:
    """Names in the wheel."""
    (path,) = dist.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


@pytest.fixture(scope="module")
def fresh(dist: Path) -> Path:
    """The python of a new environment with nothing in it but the wheel and what it depends on."""
    folder = Path(os.environ["FLANNEL_UDP_FRESH"])
    venv.create(folder, clear=True, with_pip=True)
    python = folder / "bin" / "python"
    (path,) = dist.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", path)
    return python


def ending_in(names: Sequence[str], endings: tuple[str, ...]) -> list[str]:
    """Return the names with one of the endings."""
    return [name for name in names if name.endswith(endings)]


def test_the_sdist_holds_the_cython_sources_and_no_generated_c(sdist: list[str]) -> None:
    assert {f"_fastpath/{module}.pyx" for module in MODULES} <= set(sdist)
    ours = ("tests/", "bench/", "flannel_udp/")
    assert not [name for name in ending_in(sdist, (".c", ".so")) if not name.startswith(ours)]


def test_the_sdist_holds_what_tests_and_newcomers_need(sdist: list[str]) -> None:
    wanted = {
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "bootstrap.sh",
        "mkdocs.yml",
        "tox.ini",
        "tests/package/__init__.py",
    }
    assert wanted <= set(sdist)


def test_the_wheel_holds_every_module_and_its_types(wheel: list[str]) -> None:
    compiled = [Path(name).name.partition(".")[0] for name in ending_in(wheel, (".so",))]
    assert sorted(compiled) == MODULES
    assert {"flannel_udp/py.typed", "flannel_udp/_fastpath/engine.pyi"} <= set(wheel)
    assert set(wheel) >= SOURCES


def test_the_wheel_holds_the_lessons_their_translations_and_their_words(wheel: list[str]) -> None:
    lessons = {str(path.relative_to(ROOT)) for path in (ROOT / "flannel_udp" / "lab" / "lessons").rglob("*.toml")}
    assert lessons
    assert set(ending_in(wheel, (".toml",))) == lessons


def test_the_wheel_holds_for_the_compiler_what_benches_compile_and_nothing_of_the_tests(wheel: list[str]) -> None:
    assert set(ending_in(wheel, COMPILER_FOOD)) == {"flannel_udp/bench/blast.c", "flannel_udp/lab/naive_peer.c"}
    assert {name.partition("/")[0].partition("-")[0] for name in wheel} == {"flannel_udp"}


def test_the_wheel_holds_what_a_browser_gets(wheel: list[str]) -> None:
    page = {str(path.relative_to(ROOT)) for path in (ROOT / "flannel_udp" / "view" / "page").iterdir()}
    assert page
    assert set(wheel) >= page


def test_the_installed_command_says_its_version(fresh: Path, wheel: list[str]) -> None:
    version = wheel[-1].partition("-")[2].partition(".dist-info")[0]
    assert run(fresh.with_name("flannel-udp"), "--version") == f"flannel-udp {version}\n"


def test_the_installed_compiled_package_loads(fresh: Path) -> None:
    imports = "; ".join(f"import flannel_udp._fastpath.{module}" for module in MODULES)
    run(fresh, "-I", "-c", imports)


def test_the_installed_command_knows_its_lessons_in_each_language(fresh: Path) -> None:
    command = (fresh.with_name("flannel-udp"), "lab", "lesson", "list", "--json")
    for language in ("en", "zh"):
        assert len(json.loads(run(*command, "--lang", language))) == 9


def test_the_installed_command_writes_a_cni_plugin_that_answers(fresh: Path, tmp_path: Path) -> None:
    run(fresh.with_name("flannel-udp"), "cni", "install", f"--bin-dir={tmp_path}", f"--conf-dir={tmp_path}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10-flannel.conflist", "flannel"]
    for plugin in (tmp_path / "flannel", fresh.with_name("flannel-udp-cni")):
        done = subprocess.run([plugin], env={"CNI_COMMAND": "VERSION"}, capture_output=True, input=b"", check=True)
        assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]


def test_the_installed_package_needs_nothing_that_it_does_not_declare(fresh: Path) -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "flannel_udp").rglob("*.py"))
        if path.name != "__main__.py"
    ]
    needed = [name for module in modules if not (name := module.removesuffix(".__init__")).startswith(OF_EXTRAS)]
    run(fresh, "-I", "-c", "; ".join(f"import {module}" for module in needed))
