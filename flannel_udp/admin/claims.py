"""What only one agent of a network namespace may have, a UDP port, say: claimed by name, and refused to the next one.

A claim is a listening unix socket with an abstract name (unix(7)). Such names are known in one network namespace only,
as ports and devices are, and the kernel forgets one when the last descriptor of its socket is closed, however its
holder ends. Who finds a name taken asks the socket by whom (SO_PEERCRED).

Any user may take such a name. One that neither root nor our own user holds is no agent's, and keeps nobody out.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import socket
from collections.abc import Mapping
from typing import NamedTuple

from flannel_udp.admin.listener import peer_credentials
from flannel_udp.errors import Claimed, FlannelError

logger = logging.getLogger(__name__)

_PREFIX = "flannel-udp: "
_NAME_BYTES_MAX = 100
"""sockaddr_un has room for 107 after the zero byte."""
_BACKLOG = 64
"""Nobody accepts who connects to ask."""
_TRIES = 100
"""A name may be released while we ask by whom it is held, or bound and not listening yet."""


class Holder(NamedTuple):
    """Who holds a claim; the pid is 0 where it is another pid namespace's."""

    pid: int
    uid: int


class HostClaims:
    """The claims of this process; `adopted` are the descriptors of those that another one has held, by name."""

    def __init__(self, adopted: Mapping[str, int] | None = None) -> None:
        self._adopted = {what: socket.socket(fileno=fd) for what, fd in (adopted or {}).items()}
        self._held: dict[str, socket.socket] = {}

    def hold(self, what: str, todo: str = "stop it first") -> None:
        """Claim this. Raises `Claimed`, with `todo` as the advice, if another agent has it."""
        if what in self._held:
            return
        self._held[what] = self._adopted.pop(what) if what in self._adopted else _claim(what, todo)

    def let_go(self, what: str) -> None:
        """Give up a claim, if it is held."""
        if (held := self._held.pop(what, None)) is not None:
            held.close()

    def descriptors(self) -> dict[str, int]:
        """Return the descriptors by name; they stay ours."""
        return {what: held.fileno() for what, held in self._held.items()}

    def become_holder(self) -> None:
        """The process that held what was adopted is about to end: be the one that is named, and drop the rest."""
        for held in self._held.values():
            held.listen(_BACKLOG)
        self._drop(self._adopted)

    def close(self) -> None:
        """Give up all."""
        self._drop(self._adopted)
        self._drop(self._held)

    @staticmethod
    def _drop(claims: dict[str, socket.socket]) -> None:
        while claims:
            claims.popitem()[1].close()


def is_claimed(what: str) -> bool:
    """Tell whether an agent has claimed it."""
    holder = _holder(what)
    return holder is not None and holder.uid in (0, os.geteuid())


def _claim(what: str, todo: str) -> socket.socket:
    """Return a socket that claims it; one without a name if a stranger has that. Raises `FlannelError`."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        holder: Holder | None = None
        for _ in range(_TRIES):
            try:
                claim.bind(_address(what))
            except OSError as taken:
                if taken.errno != errno.EADDRINUSE:
                    raise
                holder = _holder(what)
            else:
                claim.listen(_BACKLOG)
                return claim
            if holder is not None:
                break
        if holder is not None and holder.uid in (0, os.geteuid()):
            pid = f" (pid {holder.pid})" if holder.pid else ""
            raise Claimed(f"another flannel-udp{pid} has {what}: {todo}")
        by = "nobody tells who" if holder is None else f"process {holder.pid} of user {holder.uid}"
        logger.warning("the lock of %s is held by a stranger (%s) and keeps nobody out: going on without it", what, by)
    except OSError as failed:
        claim.close()
        raise FlannelError(f"cannot lock {what}: {failed.strerror or failed}") from failed
    except FlannelError:
        claim.close()
        raise
    return claim


def _holder(what: str) -> Holder | None:
    """Return who holds it, ``None`` if that is not to be known, or nobody by now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(_address(what))
        except OSError:  # released, not listening yet, or strangers fill the backlog
            return None
        return Holder(*peer_credentials(probe))


def _address(what: str) -> str:
    name = _PREFIX + what
    if len(name.encode()) > _NAME_BYTES_MAX:
        name = _PREFIX + hashlib.sha256(what.encode()).hexdigest()
    return f"\0{name}"
