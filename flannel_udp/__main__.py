"""Run `flannel-udp`, also as `python -m flannel_udp`."""

from __future__ import annotations

import os
import sys

from flannel_udp.interrupts import keep_interrupts


def main() -> int:
    """Run the command line and return its exit code; Ctrl-C ends it without a word also while it is still imported.

    An agent ends here, at once: it has written and closed everything, and Python would free all its objects one by one,
    which takes 0.1 s of processor time, a quarter of what its start does.
    """
    keep_interrupts()
    try:
        from flannel_udp.cli.main import is_agent  # noqa: PLC0415 - so that Ctrl-C meanwhile is caught here
        from flannel_udp.cli.main import main as run  # noqa: PLC0415
    except KeyboardInterrupt:
        return 130  # as `run` itself returns it
    code = run()
    if is_agent(sys.argv[1:]):
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
