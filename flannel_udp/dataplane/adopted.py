"""The descriptors of a packet path that another process has opened, and their names on the way from there to here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from ipaddress import ip_address
from typing import Any

from flannel_udp._fastpath.engine import PATH_LIMIT_MIN_BYTES
from flannel_udp.dataplane.encapsulation import UDP, Encapsulation
from flannel_udp.errors import FlannelError
from flannel_udp.model import Address
from flannel_udp.options import NO_OFFLOAD, Offload


@dataclass(frozen=True, slots=True)
class Adopted:
    """The descriptors of a dataplane that another process has opened, and the offloads that are on there.

    `sockets` and `icmp` are by IP version. ``None`` for the offloads means that this is not known; nobody else may use
    the descriptors then. `path_limits` are `Dataplane.path_limits`.
    """

    queues: Sequence[int]
    sockets: Mapping[int, Sequence[int]]
    icmp: Mapping[int, int]
    granted: Offload | None = None
    path_limits: Mapping[Address, int] = field(default_factory=dict)


def descriptor_names(
    kind: str, queues: Sequence[int], sockets: Mapping[int, Sequence[int]], icmp: Mapping[int, int]
) -> dict[str, int]:
    """Return a dataplane's descriptors by name.

    "tun-N" and "KIND-N", by the encapsulation, are worker N's, "icmp" is for answers. IPv6's are "KIND6-N" and "icmp6",
    and "tun6-N" where nothing else passes the device.
    """
    named = {f"tun{_mark(min(sockets))}-{number}": fd for number, fd in enumerate(queues)}
    for version, fds in sockets.items():
        named.update({f"{kind}{_mark(version)}-{number}": fd for number, fd in enumerate(fds)})
    return {**named, **{f"icmp{_mark(version)}": fd for version, fd in icmp.items()}}


def descriptors_of(descriptors: Mapping[str, int], version: int) -> dict[str, int]:
    """Return those of the dataplane of that IP version, where each version has one of its own."""
    return {name: fd for name, fd in descriptors.items() if name.partition("-")[0].endswith("6") == (version == 6)}


def carried_versions(descriptors: Collection[str], kind: str) -> tuple[int, ...]:
    """Return the IP versions of a dataplane of that encapsulation, by the names of its descriptors."""
    return tuple(version for version in (4, 6) if f"{kind}{_mark(version)}-0" in descriptors)


def adopted_from(
    descriptors: Mapping[str, int],
    workers: int,
    state: Mapping[str, Any] | None,
    encapsulation: Encapsulation,
    versions: Collection[int] = (4,),
) -> Adopted:
    """Return the dataplane's descriptors out of those by name; `state` is what `Dataplane.state` said, if anything.

    Raises `FlannelError` unless there are just as many as `workers` and IP `versions` need, the state makes sense, and
    its packets are in the same `encapsulation`.
    """
    kind = encapsulation.kind
    named = set(descriptors)
    carried = carried_versions(descriptors, kind)
    if not carried:
        raise FlannelError(f"its descriptors are not those of {kind}")
    if carried != tuple(sorted(versions)):
        raise FlannelError(f"its packets are {_spoken(carried)}, ours {_spoken(sorted(versions))}")
    sockets = {version: [f"{kind}{_mark(version)}-{number}" for number in range(workers)] for version in versions}
    queues = [f"tun{_mark(min(versions))}-{number}" for number in range(workers)]
    icmp = {version: f"icmp{_mark(version)}" for version in versions}
    if named != {*queues, *(name for names in sockets.values() for name in names), *icmp.values()}:
        raise FlannelError(f"its descriptors are {', '.join(sorted(named))}: not those of {workers} workers")
    # An agent of an earlier version says nothing of it.
    if state is not None and (theirs := state.get("encapsulation", asdict(UDP))) != asdict(encapsulation):
        raise FlannelError(f"its packets travel as {theirs}, ours as {asdict(encapsulation)}")
    return Adopted(
        queues=[descriptors[name] for name in queues],
        sockets={version: [descriptors[name] for name in names] for version, names in sockets.items()},
        icmp={version: descriptors[name] for version, name in icmp.items()},
        granted=None if state is None else _read_granted(state),
        path_limits={} if state is None else _read_path_limits(state),
    )


def _mark(version: int) -> str:
    return "" if version == 4 else "6"


def _spoken(versions: Sequence[int]) -> str:
    return " and ".join(f"IPv{version}" for version in versions)


def _read_granted(state: Mapping[str, Any]) -> Offload:
    try:
        return replace(NO_OFFLOAD, **{name.replace("-", "_"): True for name in state["granted"]})
    except (KeyError, TypeError, AttributeError) as error:
        raise FlannelError(f"its offloads make no sense: {error}") from None


def _read_path_limits(state: Mapping[str, Any]) -> dict[Address, int]:
    try:  # an agent of an earlier version says nothing of them
        limits = {ip_address(address): int(n_bytes) for address, n_bytes in state.get("path_limits", {}).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise FlannelError(f"its limits of paths make no sense: {error}") from None
    return {at: n_bytes for at, n_bytes in limits.items() if PATH_LIMIT_MIN_BYTES[at.version] <= n_bytes <= 65_535}
