"""The descriptors of a packet path that another process has opened, and their names on the way from there to here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flannel_udp.errors import FlannelError
from flannel_udp.options import NO_OFFLOAD, Offload

_ICMP = "icmp"


@dataclass(frozen=True, slots=True)
class Adopted:
    """The descriptors of a dataplane that another process has opened, and the offloads that are on there.

    ``None`` for the offloads means that this is not known; nobody else may use the descriptors then.
    """

    queues: Sequence[int]
    sockets: Sequence[int]
    icmp: int
    granted: Offload | None = None


def descriptor_names(queues: Sequence[int], sockets: Sequence[int], icmp: int) -> dict[str, int]:
    """Return a dataplane's descriptors by name: "tun-N" and "udp-N" are worker N's."""
    named = {f"tun-{number}": fd for number, fd in enumerate(queues)}
    return {**named, **{f"udp-{number}": fd for number, fd in enumerate(sockets)}, _ICMP: icmp}


def adopted_from(descriptors: Mapping[str, int], workers: int, state: Mapping[str, Any] | None) -> Adopted:
    """Return the dataplane's descriptors out of those by name; `state` is what `Dataplane.state` said, if anything.

    Raises `FlannelError` unless there are just as many as `workers` need, and the state makes sense.
    """
    names = {_ICMP, *(f"{kind}-{number}" for kind in ("tun", "udp") for number in range(workers))}
    if descriptors.keys() != names:
        raise FlannelError(f"its descriptors are those of {len(descriptors) // 2} workers, not of {workers}")
    return Adopted(
        queues=[descriptors[f"tun-{number}"] for number in range(workers)],
        sockets=[descriptors[f"udp-{number}"] for number in range(workers)],
        icmp=descriptors[_ICMP],
        granted=None if state is None else _read_granted(state),
    )


def _read_granted(state: Mapping[str, Any]) -> Offload:
    try:
        return replace(NO_OFFLOAD, **{name.replace("-", "_"): True for name in state["granted"]})
    except (KeyError, TypeError, AttributeError) as error:
        raise FlannelError(f"its offloads make no sense: {error}") from None
