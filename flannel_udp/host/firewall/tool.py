"""Running nft and iptables: never blocking the loop, with a time limit, and with one line when it goes wrong."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from subprocess import PIPE, Popen, TimeoutExpired
from threading import Lock

from flannel_udp.errors import FlannelError
from flannel_udp.levels import QUESTIONS

logger = logging.getLogger(__name__)

TIME_LIMIT_S = 10.0
LOCK_WAIT_S = 5
"""For the lock that the programs of iptables-legacy share, below `TIME_LIMIT_S`; those of iptables-nft have none."""
RESOURCE_PROBLEM = 4
"""The exit status of iptables(8) where the lock is held, among others."""
_SHOWN_CHARS = 300


class ToolMissing(FlannelError):
    """The program is not installed, or not in PATH."""


class LockHeld(FlannelError):
    """Another program has held the lock of iptables-legacy for all of `LOCK_WAIT_S`: nothing was learned."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a program left: its exit status and its words."""

    command: str
    status: int
    output: str
    errors: str

    def check_lock(self) -> None:
        """Raise `LockHeld` if that was why the program failed."""
        if self.status == RESOURCE_PROBLEM and "xtables lock" in self.errors:
            raise LockHeld(f"{self.command}: another program holds the xtables lock for more than {LOCK_WAIT_S} s")

    def failure(self) -> FlannelError:
        """Return the error that says what it complained of."""
        said = " ".join(line.strip() for line in self.errors.splitlines() if line.strip())
        return FlannelError(f"{self.command} failed (exit {self.status}): {said[:_SHOWN_CHARS] or 'it said nothing'}")


async def run_tool(*command: str, stdin: str = "") -> Finished:
    """Run a program to its end, at most `TIME_LIMIT_S`; then, and when the caller is cancelled, it is killed.

    Raises `ToolMissing` if there is none, `FlannelError` if it cannot be run or takes too long.
    """
    run = _Run(command, stdin)
    started_s = time.monotonic()
    try:
        finished = await asyncio.to_thread(run.to_end)
        took_ms = (time.monotonic() - started_s) * 1e3
        logger.log(QUESTIONS, "ran %s: exit %d, %.1f ms", " ".join(command), finished.status, took_ms)
        return finished
    except FileNotFoundError:
        raise ToolMissing(f"{command[0]} is not in PATH ({os.environ.get('PATH', '')})") from None
    except OSError as error:
        raise FlannelError(f"cannot run {command[0]}: {error.strerror}") from None
    except TimeoutExpired:
        raise FlannelError(f"{command[0]} did not end within {TIME_LIMIT_S:g} s and was killed") from None
    finally:
        run.stop()


class _Run:
    """One run of a program in a thread, which starts it, too: that takes half a millisecond and more.

    Not asyncio's subprocesses: uvloop forks, and in the child gRPC's fork handlers start threads, which crash it (seen
    with gRPC 1.85). Popen uses vfork, which runs no handlers.
    """

    def __init__(self, command: tuple[str, ...], stdin: str) -> None:
        self._command = command
        self._stdin = stdin
        self._lock = Lock()
        self._process: Popen[str] | None = None
        self._stopped = False

    def to_end(self) -> Finished:
        """Run the program. Raises what `subprocess` does."""
        with self._start() as process:  # closes the pipes and collects the exit status
            try:
                output, errors = process.communicate(self._stdin, TIME_LIMIT_S)
            except BaseException:
                process.kill()
                raise
        return Finished(self._command[0], process.returncode, output, errors)

    def stop(self) -> None:
        """Kill the program, which makes the thread end, too; without effect when it has ended. From any thread."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _start(self) -> Popen[str]:
        # In English, for the sake of one-line errors; our own settings (a password may be among them) are not its
        # business.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("FLANNELD_")}
        process = Popen(
            self._command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            text=True,
            errors="replace",
            env={**environment, "LC_ALL": "C"},
        )
        with self._lock:
            self._process = process
            if self._stopped:  # while it was started
                process.kill()
        return process
