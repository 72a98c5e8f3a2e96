"""What the kernel drops on a packet's way, where no counter of ours sees it: asked when somebody asks for counters."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

from flannel_udp.errors import FlannelError
from flannel_udp.host.device_drops import DeviceDrops, read_device_drops
from flannel_udp.host.rtnetlink import open_rtnetlink
from flannel_udp.host.udp_errors import read_checksum_errors

_NONE = DeviceDrops(0, 0, 0)


class KernelDrops:
    """Counts, by place (see `model.KERNEL_DROPS`), from the moment on when this is made.

    `external` is the index of the external interface, `tunnel` that of flannel0, where there is one.
    """

    def __init__(self, external: int, tunnel: int | None = None) -> None:
        self._counts: Counter[str] = Counter()
        self._last: dict[int, DeviceDrops] = {}  # by index
        self._checksum_errors = 0
        self._look(external, tunnel)
        self._counts = Counter(dict.fromkeys(self._counts, 0))  # what was before us

    def counts(self, external: int, tunnel: int | None = None) -> dict[str, int]:
        """Return the counts; another external interface's count from now on, another flannel0's from its beginning.

        Two questions a device, answered within some microseconds. Where one fails the counts stay as they were.
        """
        self._look(external, tunnel)
        return dict(self._counts)

    def _look(self, external: int, tunnel: int | None) -> None:
        if tunnel is not None:
            with suppress(OSError):
                former, self._checksum_errors = self._checksum_errors, read_checksum_errors()
                self._counts["checksum"] += self._checksum_errors - former
        with suppress(FlannelError), open_rtnetlink("asking what network devices have dropped") as netlink:
            if tunnel is not None and (grown := self._grown(tunnel, read_device_drops(netlink, tunnel), _NONE)):
                self._counts.update(tunnel_out=grown.sent + grown.queue, tunnel_in=grown.received)
            if grown := self._grown(external, read_device_drops(netlink, external), None):
                self._counts.update(interface_queue=grown.queue, interface_out=grown.sent, interface_in=grown.received)

    def _grown(self, index: int, now: DeviceDrops | None, unknown: DeviceDrops | None) -> DeviceDrops | None:
        """Return by how much a device's counts have grown, ``None`` for one that is gone.

        One that was not known had `unknown` before, ``None``: what it has now.
        """
        if now is None:
            return None
        former = self._last.get(index, unknown or now)
        self._last[index] = now
        # Where one is smaller than before it was set back: another queueing discipline, say.
        return DeviceDrops(*(a - b if a >= b else a for a, b in zip(now, former, strict=True)))
