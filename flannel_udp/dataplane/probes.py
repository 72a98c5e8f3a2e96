"""What tells the agent's own ICMP echoes to the packet path, which lets them pass whatever it knows of a path."""

from flannel_udp._fastpath.engine import PROBE_IDENTIFIER

__all__ = ["PROBE_IDENTIFIER"]
