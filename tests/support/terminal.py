"""A command on a pseudo-terminal: what it draws, what is pressed there, and how it leaves the terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from tests.support.agents import wait_for
from tests.support.patience import PATIENCE_S

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END = "\x1b[H", "\x1b[J"
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

Popen = Callable[..., "subprocess.Popen[str]"]


class Terminal:
    """Runs a command on a terminal of this size, by `popen`, for the block; it is killed if it still runs then."""

    def __init__(
        self,
        argv: Sequence[str],
        columns: int = 100,
        lines: int = 30,
        *,
        popen: Popen = subprocess.Popen,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._leader, self._follower = pty.openpty()
        self.resize(columns, lines)
        self.before = self.mode
        env = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), self._follower)
        # Its controlling terminal, so that keys and sizes are signals; setsid replaces itself by the command.
        self.process = popen(
            ["setsid", "--ctty", *argv], env={**env, "TERM": "xterm-256color", **(environment or {})}, **streams
        )
        self._shown = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self._leader, 65_536):
                self._shown += part
        except OSError:  # how a terminal ends that nobody has open any more
            return

    @property
    def shown(self) -> str:
        """All that was written to the terminal so far."""
        return self._shown.decode(errors="replace")

    @property
    def styles(self) -> list[str]:
        """The colours and weights in it."""
        return _STYLE.findall(self.shown)

    @property
    def frame(self) -> list[str]:
        """The lines of the last whole frame, without colours."""
        frames = [frame.partition(_END)[0] for frame in self.shown.split(_HOME) if _END in frame]
        return re.split(r"\r+\n", _CONTROL.sub("", frames[-1])) if frames else []

    @property
    def mode(self) -> list[Any]:
        """What the terminal does with keys and lines: see termios(3)."""
        return termios.tcgetattr(self._follower)

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size, of which who has it is told."""
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Type these."""
        os.write(self._leader, keys.encode())

    def wait_for(self, part: str) -> list[str]:
        """Wait for a frame with this text, and return its lines."""
        found: list[str] = []

        def there() -> bool:
            found[:] = self.frame
            return any(part in line for line in found)

        wait_for(f"{part!r}", there)
        return found

    def exit_code(self) -> int:
        """Wait for its end."""
        return self.process.wait(PATIENCE_S)

    def is_as_before(self) -> bool:
        """Tell whether the terminal is as it was: screen, cursor, keys."""
        wait_for("the last bytes", lambda: self.shown.endswith(LEAVE))
        return self.shown.count(ENTER) == self.shown.count(LEAVE) and self.mode == self.before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._follower)
        self._reader.join()
        os.close(self._leader)
