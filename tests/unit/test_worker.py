"""A data thread answers while it runs."""

from __future__ import annotations

import errno
import threading

import pytest
from scapy.layers.inet import IP, TCP, UDP

from flannel_udp.dataplane.worker import Worker
from flannel_udp.options import Offload
from tests.support.agents import wait_for
from tests.support.engine_rig import EngineRig, small_table
from tests.support.patience import PATIENCE_S
from tests.support.refusals import Refusal, refused, thread_waits_in


def test_a_running_thread_answers_and_a_stopped_one_does_not() -> None:
    with EngineRig(small_table()) as rig:
        faults: list[None] = []
        worker = Worker([rig.engine], 0)
        worker.start(lambda: faults.append(None))
        try:
            worker.probe().result(timeout=PATIENCE_S)
        finally:
            worker.ask_to_stop()
            worker.join()
        with pytest.raises(TimeoutError):
            worker.probe().result(timeout=0.2)
        worker.close()
        assert faults == []


def test_a_thread_says_once_that_the_kernel_refuses_joined_packets(caplog: pytest.LogCaptureFixture) -> None:
    ip = IP(src="10.1.2.7", dst="10.1.1.5", flags="DF")
    segments = [bytes(ip / TCP(flags="A", seq=i) / b"x") for i in range(20)]
    with EngineRig(small_table(), offload=Offload()) as rig:
        worker = Worker([rig.engine], 0)

        def run() -> None:
            """The data thread is filtered as the one that starts it is."""
            worker.start(lambda: None)
            for n in (1, 2):
                rig.bundle_from_peer("127.0.0.2", segments)
                wait_for("they are written", lambda n=n: rig.counters("in")["packets"] == n * 20)  # type: ignore[misc]
            worker.ask_to_stop()
            worker.join()
            worker.close()

        refused([Refusal("writev", errno.EINVAL, at_least={2: 3})], run)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("join-tcp is refused: the kernel refuses joined packets")


def test_a_thread_that_spins_lingers_afterwards_before_it_gives_up() -> None:
    with EngineRig(small_table()) as rig:
        moved: list[int] = []
        thread = threading.Thread(target=lambda: moved.append(rig.engine.poll(linger_ms=2_000, busy_us=1)))
        thread.start()
        wait_for("it has spun, and waits", lambda: thread_waits_in("epoll_wait"))
        rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.2.7") / UDP()))
        thread.join()
        assert moved == [1]
