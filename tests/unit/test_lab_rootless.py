"""What an ordinary user's lab has to do without is told before it is built."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from flannel_udp.cli import lab_rootless
from flannel_udp.cli.lab_rootless import check_limits, say_cost, uses_packet_path
from flannel_udp.dataplane.underlay import BUFFER_BYTES, SO_RCVBUFFORCE
from flannel_udp.doctor.finding import Verdict
from flannel_udp.doctor.known import Known
from flannel_udp.doctor.machine import ask_buffers
from flannel_udp.errors import FlannelError
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.rootless import require_linux


@pytest.mark.parametrize(
    ("backend", "datapath", "uses"),
    [
        ("udp", None, True),
        ("host-gw", None, False),
        ("vxlan", None, False),  # where the kernel has it
        ("vxlan", "userspace", True),
        ("vxlan", "kernel", False),
    ],
)
def test_a_tun_device_is_needed_where_our_packet_path_surely_is(backend: str, datapath: str | None, uses: bool) -> None:
    host_args = {} if datapath is None else {"h2": (f"--datapath={datapath}",)}
    plan = Plan(config={"Network": "10.244.0.0/16", "Backend": {"Type": backend}}, host_args=host_args)
    assert uses_packet_path(plan) is uses


def test_small_buffers_are_one_line_with_what_they_cost(capsys: pytest.CaptureFixture[str]) -> None:
    say_cost(212_992)
    assert capsys.readouterr().err == (
        "flannel-udp: warning: without root, sockets have 208 KiB to receive into, not 4,096: bursts are lost, "
        "and TCP is slower; as root: sysctl -w net.core.rmem_max=4194304\n"
    )


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernel grant 100 KiB, and say nowhere what it would: before Linux 6.11 only the first namespace says."""
    set_for_real, read = socket.socket.setsockopt, Path.read_text

    def setsockopt(self: socket.socket, level: int, option: int, value: int) -> None:
        if option == SO_RCVBUFFORCE:
            raise PermissionError
        set_for_real(self, level, option, min(value, 100 << 10))

    def read_text(self: Path, encoding: str | None = None, errors: str | None = None) -> str:
        if self.is_relative_to("/proc/sys/net/core"):
            raise FileNotFoundError
        return read(self, encoding, errors)

    monkeypatch.setattr(socket.socket, "setsockopt", setsockopt)
    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.usefixtures("small_buffers")
def test_what_a_socket_gets_is_asked_of_a_socket(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lab_rootless, "check_tun", lambda: None)
    check_limits(Plan(config={"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}}))
    assert "sockets have 100 KiB to receive into" in capsys.readouterr().err


@pytest.mark.usefixtures("small_buffers")
def test_doctor_asks_likewise_where_no_agent_runs() -> None:
    found = ask_buffers(Known())
    assert found.verdict is Verdict.NOTE
    assert found.what.startswith("a socket gets 102,400 bytes to receive into")


def test_large_ones_are_nothing_to_speak_of(capsys: pytest.CaptureFixture[str]) -> None:
    say_cost(BUFFER_BYTES)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("release", ["4.18.0-553.el8_10.x86_64", "5.4.0-150-generic", "5.7"])
def test_a_kernel_that_lets_nobody_in_by_a_pidfd_is_one_line(release: str) -> None:
    with pytest.raises(FlannelError) as refused:
        require_linux(release)
    assert str(refused.value) == (f"a lab without root needs Linux 5.8 or later, and this is {release}: run it as root")


@pytest.mark.parametrize("release", ["5.8.0", "5.10.0-28-amd64", "6.1.0-18-amd64", "unknown"])
def test_a_later_one_will_do(release: str) -> None:
    require_linux(release)
