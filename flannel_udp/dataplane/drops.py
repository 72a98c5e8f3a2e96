"""The reasons to drop a packet, for those who may not import the packet path itself."""

from __future__ import annotations

from flannel_udp._fastpath.drops import SENTENCES

DROP_REASONS = tuple(reason.name.lower() for reason in SENTENCES)
"""As `Dataplane.counters` names them."""
