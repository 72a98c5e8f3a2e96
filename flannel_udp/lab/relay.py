"""A program that is a cable: it carries frames between two TAP devices, later than they came, and not all of them.

    python -P -m flannel_udp.lab.relay --near NAMESPACE INTERFACE --far NAMESPACE INTERFACE --delay-ms 40 --loss 0.05 …

Every machine can do that, those whose kernel has no netem, too. What it cannot: more than some 100,000 frames a second,
and a delay that is exact to less than a tenth of a millisecond, or on a busy machine to some. A TAP device gets no
super-packets, so such a cable always cuts them.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import sys
import time
from collections import deque
from contextlib import suppress

import pytun

from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns

_FRAME_BYTES = 65_535 + 18
"""The longest MTU, and an Ethernet header with a VLAN's tag."""
_AT_ONCE = 64
"""Frames that are taken from one end before the other one has its turn."""
_BESIDE_BYTES = 150
"""Of memory that Python needs for a frame beside its own bytes."""
_UNDER_WAY_BYTES = 32_000_000
"""Of memory for what is on the cable in each direction; what comes then is lost. Rate by delay is what a cable has to
hold: 200 Mbit/s, about all that this program carries, for a second, 100 Mbit/s for the longest delay."""
READY = "ready\n"


class Direction:
    """One direction: frames that came in at `source` leave by `target`, both descriptors of TAP devices.

    `delay_s` seconds later; of all frames the share `loss` is lost, the same ones for each `seed`, by their number.
    """

    def __init__(self, source: int, target: int, *, delay_s: float, loss: float, seed: str) -> None:
        self.source = source
        self._target = target
        self._delay_s, self._loss = delay_s, loss
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._free_bytes = _UNDER_WAY_BYTES

    @property
    def due_s(self) -> float | None:
        """When the next frame is to leave, by the monotonic clock; ``None``: there is none."""
        return self._under_way[0][0] if self._under_way else None

    def take(self) -> None:
        """Take frames that have come in. Raises `OSError` when the device has gone."""
        for _ in range(_AT_ONCE):
            try:
                frame = os.read(self.source, _FRAME_BYTES)
            except BlockingIOError:
                return
            lost = self._chance.random() < self._loss
            if not lost and (needed := len(frame) + _BESIDE_BYTES) <= self._free_bytes:
                self._free_bytes -= needed
                self._under_way.append((time.monotonic() + self._delay_s, frame))

    def give(self) -> None:
        """Let those leave whose time has come."""
        while self._under_way and self._under_way[0][0] <= time.monotonic():
            _, frame = self._under_way.popleft()
            self._free_bytes += len(frame) + _BESIDE_BYTES
            with suppress(OSError):  # the interface is down: `lab cut`
                os.write(self._target, frame)


def carry(near: int, far: int, *, delay_s: float, loss: float, seed: str) -> None:
    """Carry frames both ways until one of the devices has gone."""
    directions = [
        Direction(near, far, delay_s=delay_s, loss=loss, seed=f"{seed} out"),
        Direction(far, near, delay_s=delay_s, loss=loss, seed=f"{seed} in"),
    ]
    by_source = {direction.source: direction for direction in directions}
    while True:
        due = [at for direction in directions if (at := direction.due_s) is not None]
        wait_s = max(min(due) - time.monotonic(), 0.0) if due else None
        # Not poll(2), which waits for whole milliseconds; this process has few descriptors.
        for source in select.select(list(by_source), [], [], wait_s)[0]:
            try:
                by_source[source].take()
            except OSError:
                return
        for direction in directions:
            direction.give()


def _open(namespace: str, interface: str) -> pytun.TunTapDevice:
    device = netns.call_inside(namespace, lambda: pytun.TunTapDevice(interface, flags=pytun.IFF_TAP | pytun.IFF_NO_PI))
    os.set_blocking(device.fileno(), False)
    return device


def main() -> None:
    """Be the cable that the command line says, until SIGTERM or until the lab goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--near", nargs=2, required=True)
    parser.add_argument("--far", nargs=2, required=True)
    parser.add_argument("--delay-ms", type=float, required=True)
    parser.add_argument("--loss", type=float, required=True)
    parser.add_argument("--seed", required=True)
    given = parser.parse_args()
    try:
        near, far = _open(*given.near), _open(*given.far)
    except (FlannelError, OSError) as error:
        sys.exit(str(error))
    sys.stdout.write(READY)
    sys.stdout.close()
    carry(near.fileno(), far.fileno(), delay_s=given.delay_ms / 1000, loss=given.loss, seed=given.seed)


if __name__ == "__main__":
    main()
