"""A way from one host to another, as measures need it: two pods or hosts of a lab, or two machines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from flannel_udp.bench.generators import Counted
from flannel_udp.lab.runner import Runner
from flannel_udp.model import Address


class Way(Protocol):
    """What a measure asks of a way.

    `daemons` are the processes that carry the packets at both ends, ``None`` where they cannot be watched.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - as in `Pair`
    @property
    def sender(self) -> Runner: ...  # noqa: D102
    @property
    def target(self) -> Address: ...  # noqa: D102
    @property
    def mtu(self) -> int: ...  # noqa: D102
    @property
    def daemons(self) -> tuple[int, ...] | None: ...  # noqa: D102

    def iperf3_server(self) -> AbstractContextManager[object]:
        """Run an iperf3 server for one test on the receiver's side, inside the block."""
        ...

    def datagram_receiver(self, window_ms: int) -> AbstractContextManager[Callable[[], Counted]]:
        """Receive datagrams on the receiver's side, inside the block, which is given what says how many came.

        They are counted within a window, or with 0 all of them, until none comes any more.
        """
        ...
