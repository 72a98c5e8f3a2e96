"""What ends us is not lost where Python drops it.

A signal's handler runs between any two bytecodes, also amid a destructor or the callback of a weak reference, as
`importlib` has one for each module it loads. What it raises there reaches nobody: CPython hands it to
`sys.unraisablehook`, which writes a traceback, and goes on with what was to be ended.
"""

from __future__ import annotations

import _thread
import signal
import sys
from collections.abc import Callable
from time import sleep
from types import FrameType

_AGAIN_S = 0.01
"""The destructor is over by then; one that is not drops it once more, and it comes once more."""


class Interrupted(SystemExit):
    """What the handler of a signal raises for the process to end, with the code that a shell gives such an end."""

    def __init__(self, number: int, handler: Callable[[int, FrameType | None], object]) -> None:
        super().__init__(128 + number)
        self.number = number
        self.handler = handler
        """Takes the signal when it comes again: the process may ignore it by then."""


def keep_interrupts() -> None:
    """Let the signal come once more, to the main thread, which calls this, where what it raised was dropped.

    It is sent anew, so that it waits where signals are blocked, and is taken by whoever takes them by then.
    """
    main = _thread.get_ident()

    def note(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if isinstance(error, Interrupted):
            signal.signal(error.number, error.handler)
            number = error.number
        elif isinstance(error, KeyboardInterrupt):
            number = signal.SIGINT
        else:
            sys.__unraisablehook__(unraisable)
            return
        _thread.start_new_thread(_send_again, (main, number))

    sys.unraisablehook = note


def _send_again(main: int, number: int) -> None:
    sleep(_AGAIN_S)
    signal.pthread_kill(main, number)
