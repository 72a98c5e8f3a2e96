"""What ends us is not lost where Python drops it.

A signal's handler runs between any two bytecodes, also amid a destructor or the callback of a weak reference, as
`importlib` has one for each module it loads. What it raises there reaches nobody: CPython hands it to
`sys.unraisablehook`, which writes a traceback, and goes on with what was to be ended.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

AGAIN = signal.SIGALRM
"""What raises it again: who lets SIGINT wait lets this wait, too."""
_AGAIN_S = 0.01
"""When: the destructor is over by then; one that is not drops it once more, and it comes once more."""


def keep_interrupts() -> None:
    """Raise `KeyboardInterrupt` and `SystemExit` once more where they are dropped. For the main thread, once."""
    dropped: list[BaseException] = []

    def note(unraisable: UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if isinstance(error, KeyboardInterrupt | SystemExit):
            dropped.append(error)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            sys.__unraisablehook__(unraisable)

    def raise_again(_number: int, _frame: FrameType | None) -> None:
        if dropped:
            raise dropped.pop().with_traceback(None)

    signal.signal(AGAIN, raise_again)
    sys.unraisablehook = note
