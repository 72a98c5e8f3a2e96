"""The pure-Python twin of the packet path: slow, obvious, and the tests' oracle, for IPv4 and IPv6 alike.

It shares no code with `flannel_udp._fastpath`: look-ups scan every prefix, checksums are computed anew, never patched.
Drop reasons are named as the engine's counters name them.
"""

from flannel_udp.dataplane.reference.answers import icmp_answer
from flannel_udp.dataplane.reference.offloads import Finished, VnetHeader, expand, finished
from flannel_udp.dataplane.reference.packets import (
    HEADER_BYTES,
    IPV6_HEADER_BYTES,
    Headers,
    checksum,
    fault_of,
    headers_of,
    length_said,
    pseudo_header,
    version_of,
    with_traffic_class,
    with_ttl,
)
from flannel_udp.dataplane.reference.table import OWN, ReferenceTable
from flannel_udp.dataplane.reference.tunnels import (
    VXLAN_HEADING_BYTES,
    Decapsulated,
    decapsulated,
    encapsulated,
    from_the_wire,
)
from flannel_udp.dataplane.reference.verdicts import Dropped, Forwarded, inbound, outbound

__all__ = [
    "HEADER_BYTES",
    "IPV6_HEADER_BYTES",
    "OWN",
    "VXLAN_HEADING_BYTES",
    "Decapsulated",
    "Dropped",
    "Finished",
    "Forwarded",
    "Headers",
    "ReferenceTable",
    "VnetHeader",
    "checksum",
    "decapsulated",
    "encapsulated",
    "expand",
    "fault_of",
    "finished",
    "from_the_wire",
    "headers_of",
    "icmp_answer",
    "inbound",
    "length_said",
    "outbound",
    "pseudo_header",
    "version_of",
    "with_traffic_class",
    "with_ttl",
]
