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
    is_noting = False

    def note(unraisable: sys.UnraisableHookArgs) -> None:
        nonlocal is_noting
        error = unraisable.exc_value
        if not isinstance(error, Interrupted | KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)
            return
        is_noting = True
        try:
            if isinstance(error, Interrupted):
                signal.signal(error.number, error.handler)
            _thread.start_new_thread(send_again, (getattr(error, "number", signal.SIGINT),))
        finally:
            is_noting = False

    def send_again(number: int) -> None:
        sleep(_AGAIN_S)
        while is_noting:  # where it would be dropped for good
            sleep(_AGAIN_S)
        signal.pthread_kill(main, number)

    sys.unraisablehook = note
