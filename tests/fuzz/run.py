"""Fuzz the packet path with libFuzzer, guided by the coverage of the compiled code: `python tests/fuzz/run.py SECONDS`.

Needs extension modules built by clang with FLANNEL_UDP_SANITIZE=1, as `tox -e sanitize` does it. libFuzzer calls back
into Python, which runs the input through a real engine and its twin; what it finds lands in the folder it is run in
as crash-…, to be run again by `python tests/fuzz/run.py crash-…`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import tempfile
import traceback
from collections import deque
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
USAGE = "usage: python tests/fuzz/run.py SECONDS | FILE... | --merge FOLDER"
_LIBRARY = "FLANNEL_UDP_LIBFUZZER"
_INPUT_MAX_BYTES = 1024
_MEMORY_MAX_MB = 2048
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_uint8), ctypes.c_size_t)


def _runtime(name: str) -> str:
    """Return where clang has a runtime library."""
    file = f"libclang_rt.{name}"
    path = subprocess.run(["clang", f"-print-file-name={file}"], check=True, capture_output=True, text=True).stdout
    if path.strip() == file:
        sys.exit(f"{file} is missing: install libclang-rt-dev (Debian's name)")
    return path.strip()


def _start_again_with_sanitizers(arguments: list[str]) -> int:
    """Make libFuzzer a shared library and run this file with it and ASan loaded in front of Python."""
    machine = platform.machine()
    with tempfile.TemporaryDirectory(prefix="flannel-udp-fuzz-") as folder:
        library = f"{folder}/libfuzzer.so"
        archive = _runtime(f"fuzzer_no_main-{machine}.a")
        whole = ["-Wl,--whole-archive", archive, "-Wl,--no-whole-archive"]
        subprocess.run(["clang", "-shared", "-o", library, *whole, "-lstdc++", "-lpthread", "-lm"], check=True)
        environment = os.environ | {
            _LIBRARY: library,
            # libFuzzer first: ASan has empty versions of the functions that coverage is reported to, too.
            "LD_PRELOAD": f"{library} {_runtime(f'asan-{machine}.so')}",
            # Python leaves its types behind.
            "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0:handle_abort=0:malloc_context_size=4",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            # Much faster, and nothing is hidden: packets reach the engine through sockets, never in a Python object.
            "PYTHONMALLOC": "default",
        }
        command = [sys.executable, str(HERE / "run.py"), *arguments]
        return subprocess.run(command, env=environment, check=False).returncode


def _fuzz(arguments: list[str], library: str) -> int:
    # Last: the installed package is under test, not the checkout's.
    sys.path.append(str(HERE.parent.parent))
    from tests.fuzz.find import ROW_MAX, explain
    from tests.fuzz.target import run

    row: deque[bytes] = deque(maxlen=ROW_MAX)

    def one_input(data: ctypes._Pointer[ctypes.c_uint8], n_bytes: int) -> int:
        row.append(ctypes.string_at(data, n_bytes))
        try:
            run(row[-1])
        except BaseException:
            traceback.print_exc()
            for line in explain(row, Path.cwd()):
                print(line, file=sys.stderr, flush=True)  # noqa: T201 - libFuzzer's words go there, too
            os.abort()  # libFuzzer keeps the input that led here
        return 0

    program = f"{sys.executable} {__file__}".encode()  # what a merge starts again, by the shell
    argv = (ctypes.c_char_p * (len(arguments) + 2))(program, *(argument.encode() for argument in arguments), None)
    count, vector = ctypes.c_int(len(arguments) + 1), ctypes.cast(argv, ctypes.c_void_p)
    callback = _CALLBACK(one_input)
    driver = ctypes.CDLL(library).LLVMFuzzerRunDriver
    return int(driver(ctypes.byref(count), ctypes.byref(vector), callback))


def _options(arguments: list[str], new: str) -> list[str]:
    """Return libFuzzer's arguments: what was asked for, inputs of this run going to the folder `new`."""
    options = [
        f"-max_len={_INPUT_MAX_BYTES}",
        "-len_control=0",
        f"-rss_limit_mb={_MEMORY_MAX_MB}",
        "-timeout=30",
        "-print_final_stats=1",
    ]
    match arguments:
        case ["--merge", folder]:
            return [*options, "-merge=1", str(CORPUS), folder]
        case [seconds] if seconds.isdecimal():
            return [*options, f"-max_total_time={seconds}", new, str(CORPUS)]
        case [_, *_] if all(Path(argument).is_file() for argument in arguments):
            return [*options, *arguments]
    sys.exit(USAGE)


def main() -> int:
    """Run libFuzzer; return 0 where nothing was found."""
    library = os.environ.get(_LIBRARY)
    if library is not None:
        return _fuzz(sys.argv[1:], library)
    new = os.environ.get("FLANNEL_UDP_FUZZ_NEW")
    if new is not None:
        return _start_again_with_sanitizers(_options(sys.argv[1:], new))
    with tempfile.TemporaryDirectory(prefix="flannel-udp-inputs-") as folder:
        return _start_again_with_sanitizers(_options(sys.argv[1:], folder))


if __name__ == "__main__":
    sys.exit(main())
