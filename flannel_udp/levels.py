"""What each level of ``-v`` adds to the log, for `Logger.log`; docs/logs.md says it to users.

No level has a line a packet, nor for what happens at the pace of packets.
"""

import logging

STEPS = logging.DEBUG
"""``-v 1``, `Logger.debug`: what the agent decides and does by itself, phase by phase."""
CHANGES = STEPS - 1
"""``-v 2``: what it hears of, change by change: every entry of the registry, every peer, news of the kernel."""
QUESTIONS = STEPS - 2
"""``-v 3``: what it asks, and how long the answer took: registry, kernel, nft and iptables."""
EVERYTHING = 1
"""``-v 4``: the lines of libraries, too."""
BY_VERBOSITY = (logging.INFO, STEPS, CHANGES, QUESTIONS, EVERYTHING)
"""The lowest level that is written with ``-v 0``, ``-v 1`` and so on; the last one with any more."""
