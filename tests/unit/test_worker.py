"""A data thread answers while it runs."""

from __future__ import annotations

import pytest

from flannel_udp.dataplane.worker import Worker
from tests.support.engine_rig import EngineRig, small_table


def test_a_running_thread_answers_and_a_stopped_one_does_not() -> None:
    with EngineRig(small_table()) as rig:
        faults: list[None] = []
        worker = Worker(rig.engine, 0)
        worker.start(lambda: faults.append(None))
        try:
            worker.probe().result(timeout=10)
        finally:
            worker.ask_to_stop()
            worker.join()
        with pytest.raises(TimeoutError):
            worker.probe().result(timeout=0.2)
        assert faults == []
