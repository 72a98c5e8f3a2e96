"""What is noted of the kernel's answers: what stays so while nothing is put right."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flannel_udp.agent import asking
from flannel_udp.agent.asking import CONFIRMATIONS_MAX, confirmed
from flannel_udp.host.lookup.look import Findings
from flannel_udp.model import Degradation

WELL = Findings()
ILL, WORSE = (Findings(routes=(Degradation("routes", text),)) for text in ("ill", "worse"))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "CONFIRM_S", 0)


class Kernel:
    """Gives these answers, the last one for ever; `repairs` is how many repairs had been made by each of them."""

    def __init__(self, *answers: Findings, repairs: tuple[int, ...] = ()) -> None:
        self._answers, self._repairs = answers, repairs
        self.asked = 0

    async def ask(self) -> Findings:
        self.asked += 1
        return self._answers[min(self.asked, len(self._answers)) - 1]

    def n_repairs(self) -> int:
        return self._repairs[min(self.asked, len(self._repairs)) - 1] if self._repairs else 0


@pytest.mark.parametrize(
    ("kernel", "known", "noted", "asked"),
    [
        (Kernel(WELL), WELL, WELL, 1),
        (Kernel(ILL), WELL, ILL, 2),
        (Kernel(ILL, WELL), WELL, WELL, 2),
        (Kernel(ILL, WORSE), WELL, WORSE, 3),
        (Kernel(WELL), ILL, WELL, 2),
        (Kernel(ILL, repairs=(0, 1, 1)), WELL, ILL, 3),
        (Kernel(ILL, ILL, WELL, repairs=(0, 1, 2)), WELL, WELL, 3),
    ],
)
async def test_what_stays_so_while_nothing_is_put_right(
    kernel: Kernel, known: Findings, noted: Findings, asked: int
) -> None:
    assert await confirmed(known, kernel.ask, kernel.n_repairs) == noted
    assert kernel.asked == asked


async def test_repairs_without_an_end_hide_no_fault() -> None:
    repairs: Iterator[int] = iter(range(1_000))
    kernel = Kernel(ILL)
    assert await confirmed(WELL, kernel.ask, lambda: next(repairs)) == ILL
    assert kernel.asked == CONFIRMATIONS_MAX + 1
