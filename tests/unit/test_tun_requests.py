"""The numbers of the TUN driver's requests, which some architectures make in a way of their own."""

from __future__ import annotations

import pytest

from flannel_udp.dataplane.tun_requests import Direction, request_number


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64", "s390x", "loongarch64"])
def test_most_architectures_have_the_numbers_of_asm_generic(machine: str) -> None:
    assert request_number(Direction.TO_KERNEL, 208, machine) == 0x400454D0  # TUNSETOFFLOAD
    assert request_number(Direction.FROM_KERNEL, 210, machine) == 0x800454D2  # TUNGETIFF


@pytest.mark.parametrize("machine", ["ppc64le", "ppc64"])
def test_powerpc_has_numbers_of_its_own(machine: str) -> None:
    assert request_number(Direction.TO_KERNEL, 208, machine) == 0x800454D0
    assert request_number(Direction.FROM_KERNEL, 210, machine) == 0x400454D2
