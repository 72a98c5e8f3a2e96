"""The commands of a lesson's file, as somebody would type them on the machine: with the lab's name in them, and run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sysconfig

from flannel_udp.errors import FlannelError
from flannel_udp.lab.inside import environment
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.lessons.lesson import Ran
from flannel_udp.lab.node import clean_environment
from flannel_udp.lab.plan import DEFAULT_NAME
from flannel_udp.lab.runner import Runner

_TIMEOUT_S = 180.0
"""For a command, which takes seconds at most: some wait until an agent has ended and another one is ready."""
_OF_A_LAB = re.compile(r"\bflannel-udp lab (?!list|lesson list)((?:lesson )?[a-z]+)")
_EXEC = ["flannel-udp", "lab", "exec"]
_FOR_A_SHELL = re.compile(r"[^\w '\"=.,:/%@+-]")
"""What a shell may make something of, where no single quotes stand around it."""


def named(text: str, lab: str) -> str:
    """Return a text with the lab's name in all commands in it, unless that is the one which they mean anyway."""
    return text if lab == DEFAULT_NAME else _OF_A_LAB.sub(rf"flannel-udp lab \1 --name {lab}", text)


def run_command(lab: Lab, command: str) -> Ran:
    """Run a command, whatever it answers. Raises `FlannelError` when it does not end."""
    typed = named(command, lab.name)
    runner, words, env = Runner(), ["sh", "-c", typed], _environment()
    if (inside := inside_of(command)) is not None:
        # What `lab exec` does, without another Python that has to be started for each: but for names of nodes.
        runner = node = lab.node(inside[0])
        words, env = inside[1:], environment(node)
    with runner.popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
    ) as process:
        try:
            output, _ = process.communicate(timeout=_TIMEOUT_S)
        except BaseException as error:
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise FlannelError(f"`{typed}` did not end within {_TIMEOUT_S:g} s") from None
            raise
    return Ran(typed, output, process.returncode)


def inside_of(command: str) -> list[str] | None:
    """Return node and command of a `lab exec` that is all there is; ``None`` for what a shell has to read."""
    bare = re.sub(r"'[^']*'", "", command)
    if "'" in bare or bare.count('"') % 2 or _FOR_A_SHELL.search(bare):
        return None
    words = shlex.split(command)
    if words[:3] != _EXEC or words[4:5] != ["--"]:
        return None
    return [words[3], *words[5:]]


def _environment() -> dict[str, str]:
    """Return our environment, with the folder of our own command first: it may be in no PATH."""
    env = clean_environment()
    env["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), env.get("PATH", os.defpath)])
    return env
