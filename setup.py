"""Build the compiled packet path; everything else is in pyproject.toml.

Switches (environment):
  FLANNEL_UDP_DEBUG=1     -O0 -g3, Cython bounds checks on, C assertions on
  FLANNEL_UDP_SANITIZE=1  -fsanitize=address,undefined and coverage for libFuzzer: needs CC=clang (tox -e sanitize)
  FLANNEL_UDP_WERROR=1    warnings of our own sources are errors (what the tests build with)
They are for builds from an sdist, as tox does: an extension module that is up to date in a checkout is not built again.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path


def refuse_other_machines() -> None:
    """End with one line where what is built could not run."""
    if sysconfig.get_config_var("SIZEOF_VOID_P") != 8:
        raise SystemExit(
            "flannel-udp needs a 64-bit machine, and a 64-bit Python: its packet path computes with 128-bit numbers, "
            "which C compilers have for those only"
        )
    machine = sysconfig.get_platform().rpartition("-")[2]
    if machine.startswith(("alpha", "mips", "parisc", "sparc")):
        raise SystemExit(
            f"flannel-udp does not run on {machine}: Linux has other numbers for socket options there than elsewhere"
        )


refuse_other_machines()  # before anything is asked of the tools for building

from Cython.Build import cythonize  # noqa: E402
from setuptools import Extension, find_packages, setup  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402

ROOT = Path(__file__).parent
SOURCES = "_fastpath"
PACKAGE = "flannel_udp._fastpath"

debug = os.environ.get("FLANNEL_UDP_DEBUG") == "1"
sanitize = os.environ.get("FLANNEL_UDP_SANITIZE") == "1"

# Python's own headers do not bear -Wconversion (3.13): -isystem says that they are not ours.
compile_args = ["-std=c11", "-Wall", "-Wextra", "-Wsign-compare", "-Wconversion"]
compile_args += ["-isystem", sysconfig.get_path("include"), "-isystem", sysconfig.get_path("platinclude")]
link_args: list[str] = []
compile_args += ["-O0", "-g3", "-UNDEBUG"] if debug else ["-O3"]
if sanitize:
    flags = ["-fsanitize=address,undefined,fuzzer-no-link", "-fno-sanitize-recover=undefined"]
    # Cython gives a function with an annotated result that result's C type, and calls it as CPython does, as one that
    # returns PyObject *: since clang 17 -fsanitize=undefined takes offence at that in C, too.
    flags += ["-fno-sanitize=function", "-fno-omit-frame-pointer", "-g"]
    compile_args += flags
    link_args += flags
if os.environ.get("FLANNEL_UDP_WERROR") == "1":
    compile_args.append("-Werror")


def include_tree() -> str:
    """Make a folder in which `flannel_udp/_fastpath` is the sources: `cimport flannel_udp._fastpath.x` needs it."""
    tree = ROOT / "build" / "cimport" / "flannel_udp"
    tree.mkdir(parents=True, exist_ok=True)
    (tree / "__init__.pxd").touch()
    link = tree / SOURCES
    if not link.is_symlink():
        link.symlink_to(Path("..") / ".." / ".." / SOURCES)
    return str(tree.parent)


CIMPORT_ROOT = include_tree()  # here, not in build_ext: mypy follows the link too, and is content with any build


def extensions() -> list[Extension]:
    """Return one extension module for each .pyx."""
    return [
        Extension(
            f"{PACKAGE}.{path.stem}",
            [f"{SOURCES}/{path.name}"],
            extra_compile_args=compile_args,
            extra_link_args=link_args,
        )
        for path in sorted((ROOT / SOURCES).glob("*.pyx"))
    ]


class BuildFastpath(build_ext):
    """Translate to C when something is compiled, and only then: an sdist needs no C and must not hold any."""

    def finalize_options(self) -> None:
        """Compile on all processors."""
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self) -> None:
        """Translate, then compile."""
        translated = cythonize(
            self.extensions,
            include_path=[CIMPORT_ROOT],
            build_dir="build/cython",
            compiler_directives={
                "language_level": 3,
                "freethreading_compatible": True,
                "boundscheck": debug,
                "wraparound": False,
                "initializedcheck": debug,
                "cdivision": True,
                "embedsignature": True,
                "binding": True,
            },
        )
        sources = {extension.name: extension.sources for extension in translated}
        for extension in self.extensions:
            extension.sources = sources[extension.name]
        super().run()


setup(
    packages=[*find_packages(include=["flannel_udp", "flannel_udp.*"]), PACKAGE],
    package_dir={PACKAGE: SOURCES},
    package_data={
        "flannel_udp": ["py.typed"],
        "flannel_udp.bench": ["*.c"],  # compiled when a bench runs, by whoever has a compiler
        "flannel_udp.lab": ["*.c"],
        "flannel_udp.view": ["page/*"],
        "flannel_udp.lab.lessons": ["files/*.toml", "words/*.toml"],
        "flannel_udp.registry.etcd": ["*.pyi"],
        PACKAGE: ["*.pyi"],
    },
    include_package_data=False,  # or the wheel held the Cython sources, which the sdist has
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildFastpath},
)
