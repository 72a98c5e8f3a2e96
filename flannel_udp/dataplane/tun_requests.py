"""What is asked of the TUN driver by ioctl(2), under the numbers that this machine's kernel has for it."""

from __future__ import annotations

import os
from enum import Enum


class Direction(Enum):
    """Which way a request's value goes."""

    TO_KERNEL = "_IOW"
    FROM_KERNEL = "_IOR"


_DIRECTION_BITS = {Direction.TO_KERNEL: 1 << 30, Direction.FROM_KERNEL: 2 << 30}  # asm-generic/ioctl.h
_DIRECTION_BITS_OF_POWERPC = {Direction.TO_KERNEL: 4 << 29, Direction.FROM_KERNEL: 2 << 29}  # its asm/ioctl.h
_INT_BYTES = 4


def request_number(direction: Direction, number: int, machine: str) -> int:
    """Return what a request of the TUN driver, whose value is an int, is called on such a machine (`uname -m`)."""
    bits = _DIRECTION_BITS_OF_POWERPC if machine.startswith("ppc") else _DIRECTION_BITS
    return bits[direction] | _INT_BYTES << 16 | ord("T") << 8 | number


def _number(direction: Direction, number: int) -> int:
    return request_number(direction, number, os.uname().machine)


# linux/if_tun.h
TUNSETOFFLOAD = _number(Direction.TO_KERNEL, 208)
TUNGETIFF = _number(Direction.FROM_KERNEL, 210)
TUNSETVNETHDRSZ = _number(Direction.TO_KERNEL, 216)
TUNSETVNETLE = _number(Direction.TO_KERNEL, 220)
TUNSETVNETBE = _number(Direction.TO_KERNEL, 222)
TUNSETSTEERINGEBPF = _number(Direction.FROM_KERNEL, 224)
TUNSETFILTEREBPF = _number(Direction.FROM_KERNEL, 225)
