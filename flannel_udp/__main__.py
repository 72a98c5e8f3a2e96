"""Run `flannel-udp`, also as `python -m flannel_udp`."""
# ruff: noqa: PLC0415 (imports inside the function, so that Ctrl-C meanwhile is caught there)

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run the command line and return its exit code; Ctrl-C ends it without a word also while it is still imported.

    An agent ends here, at once: it has written and closed everything, and Python would free all its objects one by one,
    which takes 0.1 s of processor time, a quarter of what its start does. Not so with `python -X dev`: what Python has
    to say of tasks and files left behind, it says then.
    """
    try:
        from flannel_udp.interrupts import keep_interrupts

        keep_interrupts()
        from flannel_udp.cli.main import is_agent
        from flannel_udp.cli.main import main as run
    except KeyboardInterrupt:
        code = 130  # as `run` itself returns it
    else:
        code = run()
        if is_agent(sys.argv[1:]) and not sys.flags.dev_mode:
            os._exit(code)
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is done, and Ctrl-C while Python ends would be a traceback
    return code


if __name__ == "__main__":
    sys.exit(main())
