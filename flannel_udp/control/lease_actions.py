"""What the lease machine wants done, as data: what it asks of the registry and what it reports."""

from __future__ import annotations

from dataclasses import dataclass

from flannel_udp.control.allocation import Decision, Seeker
from flannel_udp.errors import FlannelError
from flannel_udp.model import Entry, Lease, LeaseAttrs, Subnet

# Requests to the registry. Each says what its answer is.


@dataclass(frozen=True, slots=True)
class Survey:
    """List the registry and choose a subnet: a `Decision`."""

    seeker: Seeker


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete an entry of ours that does not fit: ``None``."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Create:
    """Create the subnet's key if there is none: the `Entry`."""

    subnet: Subnet
    attrs: LeaseAttrs


@dataclass(frozen=True, slots=True)
class Take:
    """Make the entry ours, under a new lease, and say `attrs`, if it is still as it was found: the `Entry` now."""

    entry: Entry
    attrs: LeaseAttrs


@dataclass(frozen=True, slots=True)
class Renew:
    """Let the entry live on, and say `attrs`, if it is still as we know it: the `Entry` as it is now."""

    entry: Entry
    attrs: LeaseAttrs


@dataclass(frozen=True, slots=True)
class Widen:
    """Which subnet has ours, and a part of each of these IP versions: the `Subnet`, ours where there is no other."""

    lease: Lease
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """Let the lease be one for that subnet, which has its own and more: the `Entry` as it is now."""

    lease: Lease
    subnet: Subnet


@dataclass(frozen=True, slots=True)
class Measure:
    """How long does the entry live: seconds, ``None`` for ever."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Inspect:
    """What is under our key now: an `Entry` or ``None``."""

    key: str


Request = Survey | Discard | Create | Take | Renew | Widen | Move | Measure | Inspect
Result = Decision | Subnet | Entry | float | None
Outcome = Result | FlannelError


@dataclass(frozen=True, slots=True)
class Ask:
    """Send the request; hand its outcome to `answer` or `fail` with this number."""

    number: int
    request: Request


# Reports.


@dataclass(frozen=True, slots=True)
class Held:
    """The subnet is ours until `Lost`. `found`: our entry as it was before we wrote it, ``None`` if it is a new one."""

    lease: Lease
    found: Entry | None


@dataclass(frozen=True, slots=True)
class Widened:
    """The lease that is held is one for more than before: another family's subnet as well."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Lost:
    """Stop forwarding before anything else. `claimed`: to somebody with our own address, who keeps it for a while."""

    lease: Lease
    reason: str
    claimed: bool = False


@dataclass(frozen=True, slots=True)
class Complain:
    """Something failed and will be tried again as ``then`` says."""

    error: FlannelError
    then: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was complained about works again, if anything was."""


@dataclass(frozen=True, slots=True)
class Say:
    """Tell the user."""

    text: str


Report = Held | Widened | Lost | Complain | Recovered | Say
Action = Ask | Report
