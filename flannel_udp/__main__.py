"""Run `flannel-udp`, also as `python -m flannel_udp`."""

from __future__ import annotations

import sys

from flannel_udp.interrupts import keep_interrupts


def main() -> int:
    """Run the command line and return its exit code; Ctrl-C ends it without a word also while it is still imported."""
    keep_interrupts()
    try:
        from flannel_udp.cli.main import main as run  # noqa: PLC0415 - so that Ctrl-C meanwhile is caught here
    except KeyboardInterrupt:
        return 130  # as `run` itself returns it
    return run()


if __name__ == "__main__":
    sys.exit(main())
