"""What an agent says of a packet that a pod of 10.1.15.0/24 sends to one of 10.1.16.0/24, by backend udp."""

from __future__ import annotations

from flannel_udp.admin.headers import packet_of
from flannel_udp.admin.trace_request import TraceRequest
from flannel_udp.admin.trace_shapes import Trace, TraceArrival
from flannel_udp.agent.trace_checks import inbound_questions, judge, outbound_questions
from flannel_udp.agent.trace_packets import Ip, make_packet, outer_overhead, outer_packet, with_one_hop_less
from flannel_udp.model import Address
from flannel_udp.netconf.addresses import parse_address

_UNDERLAY: tuple[Address, Address] = (parse_address("192.0.2.1"), parse_address("192.0.2.2"))


def traced(asked: TraceRequest, reason: str | None = None) -> Trace:
    """Return the document: it is sent, or dropped for this reason."""
    made = make_packet(asked)
    inner = with_one_hop_less(with_one_hop_less(made))
    outer = outer_packet(Ip(*_UNDERLAY, 17, 0, 64, df=True), inner, (8285, 8285))
    overhead = outer_overhead("udp", 4)
    return Trace(
        asked=asked.asked(),
        packet=packet_of(made),
        host={
            "sender": "pod",
            "route": "10.1.0.0/16 dev flannel0",
            "device": "flannel0",
            "mtu": 1472,
            "ttl": asked.ttl - 1,
            "outcome": "passed",
            "packets": 1,
            "why": "the host routes it to flannel0",
        },
        backend="udp",
        carrier="data path",
        peer={"subnet": "10.1.16.0/24", "public_ip": "192.0.2.2", "problem": None},
        checks=judge(list(outbound_questions("udp", 4)), reason),
        mtu={
            "inner": len(inner),
            "overhead": overhead,
            "outer": len(inner) + sum(overhead.values()),
            "path": 1500,
            "probed": None,
            "limit": None,
        },
        datagrams=[]
        if reason
        else [
            {
                **packet_of(outer.packet, "udp", outer.chosen),
                "inner": inner.hex(),
                "payload": inner.hex(),
                "tos": 0,
                "fragmentable": False,
            }
        ],
        entries=[],
        verdict="dropped" if reason else "sent",
        reason=reason,
        dropped_by="data path" if reason else None,
        why="it leaves as one packet, for 192.0.2.2",
        answer=None,
        notes=[],
    )


ARRIVAL = TraceArrival(
    subnet="10.1.16.0/24",
    backend="udp",
    carrier="data path",
    checks=judge(list(inbound_questions("udp", 4, "strict")), None),
    verdict="delivered",
    reason=None,
    why="its kernel routes it to cni0",
    packet=None,
    route="10.1.16.0/24 dev cni0 proto kernel",
    answer=None,
)
