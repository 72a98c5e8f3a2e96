"""Which packets of the overlay are masqueraded and which may be forwarded: flannel's rules, in flannel's order.

Pure values, the same for both dialects and both address families.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flannel_udp.host.family import family_of
from flannel_udp.model import Prefix

NO_MASQUERADE_MARK = 0x4000
"""The bit of a packet's mark by which kube-proxy says that it does the masquerading itself."""


class Verdict(Enum):
    """What becomes of a packet that a rule matches; after RETURN other programs' rules decide."""

    RETURN = "return"
    ACCEPT = "accept"
    MASQUERADE = "masquerade"


@dataclass(frozen=True, slots=True)
class Side:
    """The addresses of a network, or with ``outside`` all others."""

    network: Prefix
    outside: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """What must hold of a packet, all of it, and the verdict then. ``mark``: bits that must be set in its mark."""

    verdict: Verdict
    source: Side | None = None
    destination: Side | None = None
    mark: int = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of one address family; an empty chain is one that is not wanted.

    ``masquerade`` sees every packet before it leaves the host, ``forward`` those that the host forwards. With
    ``random_fully`` masqueraded connections get source ports that nobody can predict, which also keeps two connections
    that start at the same moment from being given the same one.
    """

    version: int
    masquerade: tuple[Rule, ...] = ()
    forward: tuple[Rule, ...] = ()
    random_fully: bool = False

    def __bool__(self) -> bool:
        return bool(self.masquerade or self.forward)


def rules_for(network: Prefix, subnet: Prefix, *, masquerade: bool, forward: bool, random_fully: bool) -> Rules:
    """Return the rules of a host that holds `subnet` of the overlay `network`."""
    return Rules(
        network.version,
        _masquerade(network, subnet) if masquerade else (),
        _forward(network) if forward else (),
        random_fully and masquerade,
    )


def _masquerade(network: Prefix, subnet: Prefix) -> tuple[Rule, ...]:
    overlay, pods = Side(network), Side(subnet)
    elsewhere, unicast = Side(network, outside=True), Side(family_of(network).multicast, outside=True)
    return (
        Rule(Verdict.RETURN, mark=NO_MASQUERADE_MARK),
        Rule(Verdict.RETURN, pods, overlay),
        Rule(Verdict.RETURN, overlay, pods),
        # From outside to a pod of ours: the pod shall see who it is.
        Rule(Verdict.RETURN, elsewhere, pods),
        Rule(Verdict.MASQUERADE, overlay, unicast),
        # From this host, or from outside through it, to another host's pod: the answer must come back through here.
        Rule(Verdict.MASQUERADE, elsewhere, overlay),
    )


def _forward(network: Prefix) -> tuple[Rule, ...]:
    return (Rule(Verdict.ACCEPT, source=Side(network)), Rule(Verdict.ACCEPT, destination=Side(network)))
