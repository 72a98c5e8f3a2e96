"""Running nft and iptables: never blocking the loop, with a time limit, and with one line when it goes wrong."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE
from dataclasses import dataclass

from flannel_udp.errors import FlannelError

TIME_LIMIT_S = 10.0
_SHOWN_CHARS = 300


class ToolMissing(FlannelError):
    """The program is not installed, or not in PATH."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a program left: its exit status and its words."""

    command: str
    status: int
    output: str
    errors: str

    def failure(self) -> FlannelError:
        """Return the error that says what it complained of."""
        said = " ".join(line.strip() for line in self.errors.splitlines() if line.strip())
        return FlannelError(f"{self.command} failed (exit {self.status}): {said[:_SHOWN_CHARS] or 'it said nothing'}")


async def run_tool(*command: str, stdin: str = "") -> Finished:
    """Run a program to its end, at most `TIME_LIMIT_S`; then, and when the caller is cancelled, it is killed.

    Raises `ToolMissing` if there is none, `FlannelError` if it cannot be run or takes too long.
    """
    # In English, for the sake of one-line errors; our own settings (a password may be among them) are not its business.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FLANNELD_")}
    # A file (in memory), not a pipe: uvloop raises RuntimeError when a program ends before its pipe is written to.
    with open(os.memfd_create("rules"), "w+b") as script:  # noqa: PTH123 - Path cannot open a descriptor
        script.write(stdin.encode())
        script.seek(0)
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=script, stdout=PIPE, stderr=PIPE, env={**environment, "LC_ALL": "C"}
            )
        except FileNotFoundError:
            raise ToolMissing(f"{command[0]} is not in PATH ({os.environ.get('PATH', '')})") from None
        except OSError as error:
            raise FlannelError(f"cannot run {command[0]}: {error.strerror}") from None
    try:
        # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes together with the program's end.
        async with asyncio.timeout(TIME_LIMIT_S):
            output, errors = await process.communicate()
    except TimeoutError:
        raise FlannelError(f"{command[0]} did not end within {TIME_LIMIT_S:g} s and was killed") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    status = await process.wait()
    return Finished(command[0], status, output.decode(errors="replace"), errors.decode(errors="replace"))
