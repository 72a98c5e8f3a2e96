"""A terminal's alternate screen: drawn frame by frame, and whatever ends us, the terminal is as before."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from types import FrameType, TracebackType
from typing import Any, Self, TextIO

from flannel_udp.interrupts import Interrupted

# xterm's control sequences (ctlseqs), which every terminal of today knows
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J"  # the alternate screen, without a cursor, empty
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _TO_END_OF_LINE, _TO_END = "\x1b[H", "\x1b[K", "\x1b[J"
_ENDING = (signal.SIGTERM, signal.SIGHUP)
QUIT = "q"


def can_draw(stream: TextIO) -> bool:
    """Tell whether this is a terminal that frames can be drawn on."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Screen:
    """Has the terminal that `stream` is, and the keys of standard input, for the block."""

    def __init__(self, stream: TextIO) -> None:
        self._fd = stream.fileno()
        self._encoding = stream.encoding
        self._keys: int | None = None  # where they come from
        self._hung_up = False  # none will come any more
        self._former_mode: list[Any] = []
        self._former_handlers: dict[int, Any] = {}
        self._wake: tuple[int, int] = (-1, -1)  # a pipe that signals write to

    @property
    def size(self) -> os.terminal_size:
        """Columns and lines just now."""
        size = os.get_terminal_size(self._fd)
        return size if size.columns and size.lines else os.terminal_size((80, 24))  # a serial line does not say

    def __enter__(self) -> Self:
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            for number in _ENDING:
                self._former_handlers[number] = signal.signal(number, _end)
            self._former_handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._rest)
            self._former_handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)  # wakes us
            signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
            if sys.stdin.isatty():
                self._keys = sys.stdin.fileno()
            self._take()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._restore()

    def _restore(self) -> None:
        """Have everything as before; what would end us halfway waits."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *_ENDING))
        try:
            self._give_back()
            signal.set_wakeup_fd(-1)
            for number, handler in self._former_handlers.items():
                signal.signal(number, handler)
            for end in self._wake:
                os.close(end)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _take(self) -> None:
        if self._keys is not None:
            self._former_mode = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        self._write(_ENTER)

    def _give_back(self) -> None:
        with suppress(OSError):  # it may be gone
            self._write(_LEAVE)
        if self._keys is not None and self._former_mode:
            with suppress(termios.error):
                termios.tcsetattr(self._keys, termios.TCSADRAIN, self._former_mode)

    def _rest(self, _number: int, _frame: FrameType | None) -> None:
        """Let the shell have the terminal, until it lets us go on."""
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._rest)
        self._take()

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines, no longer than the screen is wide, and nothing else. One write: nothing flickers."""
        shown = lines[: self.size.lines]
        self._write(_HOME + "\r\n".join(line + _TO_END_OF_LINE for line in shown) + _TO_END)

    def _write(self, text: str) -> None:
        rest = text.encode(self._encoding, errors="replace")
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def wait(self, seconds: float) -> str | None:
        """Return a key that was pressed, "" when the terminal got another size, ``None`` when the time is up."""
        end_s = monotonic() + seconds
        while (left_s := end_s - monotonic()) > 0:
            keys = [] if self._keys is None or self._hung_up else [self._keys]
            ready, _, _ = select.select([self._wake[0], *keys], [], [], left_s)
            if self._wake[0] in ready:
                os.read(self._wake[0], 512)
                return ""
            if ready:
                if key := os.read(ready[0], 64).decode(errors="replace"):
                    return key
                self._hung_up = True
        return None


def _end(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(number, _end)
