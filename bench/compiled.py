"""Bench modules in Cython: compiled when a bench runs, against the packet path's sources, into a temporary folder.

They take the very functions that the packet path uses: inline ones are inlined here as well, with the same compiler
switches, the others are called in the installed modules.
"""

from __future__ import annotations

import atexit
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

from flannel_udp.errors import FlannelError

_HERE = Path(__file__).parent
_FASTPATH = _HERE.parent / "_fastpath"
_CFLAGS = ("-std=c11", "-O3", "-fPIC", "-shared")
_DIRECTIVES = ("boundscheck=False", "wraparound=False", "initializedcheck=False", "cdivision=True", "language_level=3")
_TIMEOUT_S = 120.0


def load(name: str) -> ModuleType:
    """Compile bench/NAME.pyx and import it. Raises `FlannelError` where Cython, a C compiler or headers are missing."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # `cimport flannel_udp._fastpath.x` looks for this tree.
    package = folder / "include" / "flannel_udp"
    package.mkdir(parents=True)
    (package / "__init__.pxd").touch()
    (package / "_fastpath").symlink_to(_FASTPATH)
    source, binary = folder / f"{name}.c", folder / f"{name}{EXTENSION_SUFFIXES[0]}"
    directives = [word for directive in _DIRECTIVES for word in ("-X", directive)]
    cython = [sys.executable, "-m", "cython", *directives, "-I", str(package.parent)]
    _run("Cython (pip install Cython)", [*cython, "-o", str(source), str(_HERE / f"{name}.pyx")])
    includes = ["-I", sysconfig.get_path("include"), "-I", str(_FASTPATH)]
    _run("a C compiler and Python's headers", ["cc", *_CFLAGS, *includes, "-o", str(binary), str(source)])
    spec = importlib.util.spec_from_file_location(name, binary)
    if spec is None or spec.loader is None:
        raise FlannelError(f"{binary} is no module that this Python can load")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(needs: str, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise FlannelError(f"{command[0]} was not found: the bench needs {needs}") from None
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise FlannelError(
            f"`{command[0]} … {Path(command[-1]).name}` failed: {''.join(last)} (the bench needs {needs})"
        )
