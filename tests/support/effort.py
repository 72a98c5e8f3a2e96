"""How many examples the tests try: all, or the share that FLANNEL_UDP_TEST_SHARE says (`tox -e sanitize`: a fifth).

A sanitizer needs few examples to see every line of ours; that all results are right, the full run shows.
"""

from __future__ import annotations

import os

SHARE = float(os.environ.get("FLANNEL_UDP_TEST_SHARE", "1"))


def share_of(n: int) -> int:
    """Return how many to try where `n` are tried in a full run."""
    return max(1, round(n * SHARE))
