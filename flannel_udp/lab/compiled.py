"""Small programs in C beside our modules: compiled when one is needed, gone when the process ends."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from flannel_udp.errors import FlannelError

_CFLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wsign-compare", "-Werror")
_TIMEOUT_S = 60.0


@functools.cache
def compiled(source: Path, *flags: str) -> Path:
    """Compile a program once a process and return the binary. Raises `FlannelError` with the compiler's complaint."""
    folder = Path(tempfile.mkdtemp(prefix=f"{source.stem}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    binary = folder / source.stem
    command = ["cc", *_CFLAGS, *flags, "-o", str(binary), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except OSError as error:
        raise FlannelError(f"cannot run cc: {error.strerror}: {source.name} needs a C compiler (Debian: gcc)") from None
    except subprocess.TimeoutExpired:
        raise FlannelError(f"cc did not compile {source.name} within {_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or f"exit {done.returncode}").splitlines()
        complaint = next((line for line in said if "error" in line), said[0])
        raise FlannelError(f"cc cannot compile {source.name}: {complaint} (it needs gcc and libc6-dev, or the like)")
    return binary
