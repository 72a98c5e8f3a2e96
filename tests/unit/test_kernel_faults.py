"""Kernels that are known to do an offload wrong are named where that offload is in use."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flannel_udp.dataplane.kernel_faults import kernel_faults
from flannel_udp.options import NO_OFFLOAD, Offload


@pytest.mark.parametrize(
    ("release", "rungs"),
    [
        ("6.1.99", []),
        ("6.2.0", ["join-udp"]),
        ("6.5.0-14-generic", ["join-udp"]),
        ("6.8.4", ["join-udp"]),
        ("6.8.5", []),
        ("6.18.44-fc-v669", []),
        ("7.0", ["udp-segment"]),
        ("7.0.0-rc1+", ["udp-segment"]),
        ("7.1.4", ["udp-segment"]),
        ("7.1.5", []),
        ("nonsense", []),
    ],
)
def test_a_known_fault_is_named_with_what_to_leave_out(release: str, rungs: list[str]) -> None:
    sentences = kernel_faults(release, Offload())
    assert [f"leave {rung} out of --offload" for rung in rungs] == [
        said.split("if packets are lost, ")[1] for said in sentences
    ]
    assert all(said.startswith(f"Linux {release}: ") for said in sentences)
    assert kernel_faults(release, NO_OFFLOAD) == []


def test_an_offload_that_is_off_is_no_fault() -> None:
    assert kernel_faults("6.5.0", replace(Offload(), join_udp=False)) == []
    (said,) = kernel_faults("6.5.0", Offload())
    assert said == (
        "Linux 6.5.0: joined UDP may be lost on its way into a VXLAN inside the overlay, as in 6.2 to 6.8.4; "
        "if packets are lost, leave join-udp out of --offload"
    )
