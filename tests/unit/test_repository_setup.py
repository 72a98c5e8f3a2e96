"""setup.py on machines on which what it builds could not run: one line, before anything is compiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
ON_A_MACHINE = """
import runpy, sys, sysconfig
sysconfig.get_platform = lambda: PLATFORM
asked = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: POINTER_BYTES if name == "SIZEOF_VOID_P" else asked(name)
sys.modules["Cython"] = None  # what is asked next: to go on would take long, and more than every environment has
runpy.run_path("setup.py", run_name="__main__")
"""


def run_setup(platform: str, pointer_bytes: int) -> subprocess.CompletedProcess[str]:
    program = ON_A_MACHINE.replace("PLATFORM", repr(platform)).replace("POINTER_BYTES", str(pointer_bytes))
    whole = [sys.executable, "-c", program]
    return subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.mark.parametrize("platform", ["linux-armv7l", "linux-i686", "linux-x86_64"])
def test_32_bits_are_refused_in_one_line(platform: str) -> None:
    done = run_setup(platform, 4)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "flannel-udp needs a 64-bit machine, and a 64-bit Python: its packet path computes with 128-bit numbers, "
        "which C compilers have for those only\n"
    )


@pytest.mark.parametrize("machine", ["mips64", "sparc64"])
def test_a_kernel_with_numbers_of_its_own_is_refused_in_one_line(machine: str) -> None:
    done = run_setup(f"linux-{machine}", 8)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"flannel-udp does not run on {machine}: Linux has other numbers for socket options there than elsewhere\n"
    )


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "ppc64le", "riscv64"])
def test_other_machines_are_not(machine: str) -> None:
    done = run_setup(f"linux-{machine}", 8)
    assert "Cython" in done.stderr.splitlines()[-1]  # so far it came
