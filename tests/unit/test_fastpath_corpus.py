"""Every input that the fuzzer keeps, once more: a bug that was found stays found, also where there is no fuzzer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import target
from tests.fuzz.scenario import batches
from tests.support.twin import FromPeer, FromTun

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
    steps = [step for file in CORPUS for batch in batches(file.read_bytes()[1:]) for step in batch]
    assert any(isinstance(step, FromTun) and step.vnet.gso_type in (1, 5) for step in steps)
    assert any(isinstance(step, FromPeer) and len(step.datagrams) > 1 for step in steps)
