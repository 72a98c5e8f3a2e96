"""What ends a command ends it also where Python would drop it: amid a destructor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.support.patience import PATIENCE_S

DESTRUCTOR = """
import os, signal, time
class Interrupted:
    def __del__(self):
        os.kill(os.getpid(), NUMBER)
        for _ in range(100): pass  # the handler runs at one of these
"""
COMMAND_LINE = """
import runpy, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "flannel_udp.cli.commands":
            Interrupted()
            time.sleep(60)
sys.meta_path.insert(0, Finder())
runpy.run_module("flannel_udp", run_name="__main__")
"""
LAB = """
from contextlib import nullcontext
from flannel_udp.interrupts import keep_interrupts
from flannel_udp.lab.interruptible import interruptible, undivided, uninterrupted
keep_interrupts()
with interruptible():
    Interrupted()
    with BLOCK:
        for _ in range(TURNS): time.sleep(0.01)  # longer than it takes to come again
        print("done", flush=True)
    time.sleep(60)
"""


def run(code: str, *words: str, python: Sequence[str] = ()) -> tuple[int, str, str]:
    argv = [sys.executable, *python, "-c", code, *(words or ["--version"])]
    done = subprocess.run(
        ["env", "--default-signal=INT,TERM,HUP", *argv],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S / 2,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return done.returncode, done.stdout, done.stderr


def test_ctrl_c_amid_a_destructor_ends_the_command_without_a_word() -> None:
    assert run(DESTRUCTOR.replace("NUMBER", "signal.SIGINT") + COMMAND_LINE) == (130, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("block", "turns", "said"),
    [
        ("nullcontext()", 6_000, ""),
        ("uninterrupted()", 10, "done\n"),
        ("undivided()", 10, "done\n"),
    ],
    ids=["nothing", "uninterrupted", "undivided"],
)
def test_a_lab_is_left_by_what_came_amid_a_destructor(
    number: signal.Signals, block: str, turns: int, said: str
) -> None:
    code = DESTRUCTOR.replace("NUMBER", str(int(number))) + LAB.replace("BLOCK", block).replace("TURNS", str(turns))
    assert run(code) == (128 + number, said, "")


def test_a_second_ctrl_c_that_comes_at_once_ends_it_likewise() -> None:
    twice = DESTRUCTOR.replace("NUMBER", "signal.SIGINT") + COMMAND_LINE.replace(
        "Interrupted()", "Interrupted(); os.kill(os.getpid(), signal.SIGINT)"
    )
    assert run(twice) == (130, "", "")


def test_ctrl_c_while_python_ends_changes_nothing() -> None:
    late = "import atexit, os, runpy, signal\n"
    late += "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
    late += "runpy.run_module('flannel_udp', run_name='__main__')"
    status, said, complaint = run(late, "lab", "--help")
    assert (status, complaint) == (0, "")
    assert said


def test_an_agent_ends_at_once_and_says_what_python_has_to_say_where_that_is_wanted() -> None:
    code = "import atexit, runpy\natexit.register(print, 'freed')\nrunpy.run_module('flannel_udp', run_name='__main__')"
    assert "freed" not in run(code)[1]
    assert "freed" in run(code, python=["-X", "dev"])[1]
    assert "freed" in run(code, "lab", "--help")[1]


def test_another_fault_of_a_destructor_is_written_as_ever() -> None:
    code = "from flannel_udp.interrupts import keep_interrupts\nkeep_interrupts()\n"
    code += "class Faulty:\n    def __del__(self): raise ValueError('its fault')\nFaulty()\nprint('on')\n"
    status, said, complaint = run(code)
    assert (status, said) == (0, "on\n")
    assert "ValueError: its fault" in complaint
