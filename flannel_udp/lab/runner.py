"""Where commands run: on this machine as it is, or inside one of a lab's namespaces."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import IO

from flannel_udp.errors import FlannelError

Stream = int | IO[str] | IO[bytes] | None

TIMEOUT_S = 90.0
"""For a command that takes a fraction of a second, on a machine that is busy with other things."""


class Runner:
    """Runs commands, each behind `prefix`; `path` is how the place is called in errors."""

    def __init__(self, path: str = "this machine", prefix: Sequence[str] = ()) -> None:
        self.path = path
        self._prefix = tuple(prefix)

    def popen(
        self,
        command: Sequence[str],
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        env: dict[str, str] | None = None,
        new_session: bool = False,
    ) -> subprocess.Popen[str]:
        """Start a command. Its pid is the command's own: `ip netns exec` replaces itself."""
        argv = [*self._prefix, *command]
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            text=True,
            errors="replace",  # people's own commands print what they like
            start_new_session=new_session,
        )

    def run(
        self,
        command: Sequence[str],
        *,
        check: bool = True,
        timeout_s: float = TIMEOUT_S,
        stdin: str = "",
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command and return its output.

        Raises `FlannelError` when it takes longer than `timeout_s` (it is killed), or fails and `check` is set.
        """
        shown = " ".join(command)
        pipe = subprocess.PIPE
        with self.popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env) as process:
            try:
                stdout, stderr = process.communicate(stdin, timeout=timeout_s)
            except BaseException as error:
                process.kill()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise FlannelError(f"{self.path}: `{shown}` did not end within {timeout_s:g} s") from None
                raise
        if check and process.returncode != 0:
            raise FlannelError(
                f"{self.path}: `{shown}` failed (exit {process.returncode}): {(stderr or stdout).strip()}"
            )
        return subprocess.CompletedProcess(list(command), process.returncode, stdout, stderr)
