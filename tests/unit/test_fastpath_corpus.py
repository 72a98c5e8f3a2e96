"""Every input that the fuzzer keeps, once more: a bug that was found stays found, also where there is no fuzzer.

And what is said of a find.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import find, target
from tests.fuzz.seeds import outbound
from tests.support.twin import Difference, FromPeer, FromTun

CORPUS = sorted((Path(__file__).parents[1] / "fuzz" / "corpus").iterdir())


@pytest.fixture(scope="module", autouse=True)
def engines() -> Iterator[None]:
    """They serve all inputs."""
    yield
    target.close()


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.name)
def test_the_engine_does_what_its_twin_does(file: Path) -> None:
    target.run(file.read_bytes())


def test_the_corpus_reaches_both_directions_and_super_packets() -> None:
    steps = [step for file in CORPUS for batch in target.steps_of(file.read_bytes()) for step in batch]
    assert any(isinstance(step, FromTun) and step.vnet.gso_type in (1, 5) for step in steps)
    assert any(isinstance(step, FromTun) and step.vnet.gso_type == 4 for step in steps)
    assert any(isinstance(step, FromPeer) and len(step.packets) > 1 for step in steps)


TOO_BIG = b"\0" + dict(outbound())["out-too-big-then-checksum-outside"]


def test_what_is_wrong_by_itself_is_said_whether_or_not_the_path_is_known() -> None:
    """Once "too_big", after an earlier input had taught the engine a path MTU, and "bad_offload" before."""
    target.close()  # zeros in the counters
    target.run(TOO_BIG)
    assert target.rig_of(0).drops("out") == {"too_big": 1, "bad_offload": 1}


def test_every_input_meets_an_engine_that_has_learnt_nothing() -> None:
    target.close()
    sends = []
    for _ in range(2):
        target.run(TOO_BIG)
        sends.append(target.rig_of(0).engine.counters()["system_calls"]["udp_sends"])
    assert sends == [1, 1]  # who knows the path tries no more


def test_a_find_is_told_step_by_step_and_that_it_repeats(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def differ(_data: bytes) -> None:
        raise Difference("on the wire")

    monkeypatch.setattr(target, "run", differ)
    lines = list(find.explain([b"", TOO_BIG], tmp_path))
    assert [line.split(":")[0] for line in lines[1:-1]] == ["batch 1", "  from the TUN", "batch 2", "  from the TUN"]
    assert lines[-1] == "again, this input alone: on the wire"
    assert not list(tmp_path.iterdir())


def test_of_a_find_that_its_input_alone_does_not_show_the_whole_row_is_kept(tmp_path: Path) -> None:
    row = [CORPUS[0].read_bytes(), b"", TOO_BIG]
    *_, last = find.explain(row, tmp_path)
    (kept,) = tmp_path.iterdir()
    assert last.endswith(f"behind the 2 inputs before it: tests/fuzz/run.py {kept}/*")
    assert [file.read_bytes() for file in sorted(kept.iterdir())] == row
