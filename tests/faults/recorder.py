"""What every fault did, as a table for docs/reliability.md; and whether what is promised was kept."""

from __future__ import annotations

import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from flannel_udp.lab.netns import wait_until
from tests.support.flow import Flow

GIVE_UP_S = 30.0
"""Past every promise: what takes longer is no figure of the table."""
_LOG_LINES = 30

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Fault:
    """One fault. `limit_s` is how soon all must be right again, `may_lose` how many packets it may cost."""

    group: str
    name: str
    action: str
    limit_s: float
    may_lose: float
    took_s: float = math.nan
    sent: int = 0
    lost: int = 0
    also: list[str] = field(default_factory=list)
    """Further figures, in words."""

    def wait_right(self, since_s: float, *conditions: Callable[[], bool]) -> None:
        """Wait until all is right; the time counts from `since_s` (time.monotonic)."""
        for condition in conditions:
            assert wait_until(condition, GIVE_UP_S), f"{self.name}: not right again after {GIVE_UP_S:g} s"
        self.took_s = time.monotonic() - since_s

    def check(self) -> None:
        """Fail if a promise was broken."""
        assert self.took_s <= self.limit_s, f"{self.name}: {self.took_s:.2f} s, promised are {self.limit_s:g} s"
        assert self.lost <= self.may_lose, f"{self.name}: {self.lost} of {self.sent} packets lost"

    def row(self) -> str:
        """Return the row of the table."""
        lost = f"{self.lost:,} of {self.sent:,}" if self.sent else "-"
        may_lose = "any" if math.isinf(self.may_lose) else f"{self.may_lose:g}"
        promised = f"{self.limit_s:g} s, {may_lose} lost" if self.sent else f"{self.limit_s:g} s"
        cells = (self.name, self.action, f"{self.took_s:.2f} s", lost, promised, "; ".join(self.also))
        return f"| {' | '.join(cells)} |"


class Recorder:
    """Collects the faults of a run, and writes those that were measured."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    @contextmanager
    def fault(
        self, group: str, name: str, action: str, *flows: Flow, limit_s: float, may_lose: float = 0
    ) -> Iterator[Fault]:
        """Let the flows run through the block, which makes the fault and waits; then check, and keep the row."""
        fault = Fault(group, name, action, limit_s, may_lose)
        try:
            with _running(flows):
                for flow in flows:
                    flow.wait_for_one_sent_from_now()
                yield fault
                for flow in flows:
                    flow.wait_for_one_sent_from_now()
            fault.sent += sum(flow.sent for flow in flows)
            fault.lost += sum(flow.lost for flow in flows)
            self._faults.append(fault)
            fault.check()
        except AssertionError:
            for host in {host for flow in flows for host in flow.hosts}:
                logger.error("%s said:\n%s", host.name, "\n".join(host.log_file.read_text().splitlines()[-_LOG_LINES:]))
            raise

    def table(self) -> str:
        """Return the tables, one a group, in Markdown."""
        lines = [circumstances(), ""]
        for group in dict.fromkeys(fault.group for fault in self._faults):
            lines += [f"### {group}", ""]
            lines += ["| fault | what was done | right again after | packets lost | promised | also |"]
            lines += ["|---|---|---|---|---|---|"]
            lines += [fault.row() for fault in self._faults if fault.group == group]
            lines += [""]
        return "\n".join(lines)


def circumstances() -> str:
    """Return on what the tests ran, and when."""
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return f"Linux {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}, {date}."


def put_between(text: str, what: str, body: str) -> str:
    """Return a page's text with something else between the two comments that mark where `what` stands."""
    begin, end = f"<!-- {what}: written by tox -e faults -->", f"<!-- end of {what} -->"
    before, began, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    assert began and ended, f"the page has no place for {what}: {begin} ... {end}"
    return f"{before}{begin}\n\n{body}{end}{after}"


@contextmanager
def _running(flows: tuple[Flow, ...]) -> Iterator[None]:
    if not flows:
        yield
        return
    with flows[0], _running(flows[1:]):
        yield
