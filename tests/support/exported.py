"""What an agent may export at all, as Prometheus' own parser reads it: from one that has some of everything."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from flannel_udp.admin.metrics import answer_metrics
from flannel_udp.admin.shapes import Status
from flannel_udp.dataplane.drops import DROP_REASONS
from tests.support.source import Told
from tests.support.status import BUSY_PEER, DUAL, RUNNING

FULL: Status = {**DUAL, "backend": {"type": "udp", "port": 8285, "direct": 1}}
"""Both families, and every thing that may be missing."""


class FullyTold(Told):
    """An agent that has something of everything."""

    drop_reasons = DROP_REASONS


@dataclass(frozen=True, slots=True)
class Exported:
    """A metric: the name that people know it by, its type, the names of its labels and their values."""

    name: str
    type: str
    labels: frozenset[str]
    values: frozenset[tuple[str, str]]
    samples: frozenset[str]
    """The names of its series, which queries have."""


async def full_page(status: Status = FULL) -> str:
    """Return the page of an agent that has all metrics; of one family with `RUNNING`."""
    body = (await answer_metrics(FullyTold(status, busiest=[BUSY_PEER]))).body
    assert isinstance(body, bytes)
    return body.decode()


async def exported() -> dict[str, Exported]:
    """Return all metrics by their names; a network of one family has none beside those of both."""
    found = {}
    families = list(text_string_to_metric_families(await full_page()))
    names = {family.name for family in families}
    assert {family.name for family in text_string_to_metric_families(await full_page(RUNNING))} <= names
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        values = {pair for sample in family.samples for pair in sample.labels.items() if pair[0] != "le"}
        samples = frozenset(sample.name for sample in family.samples)
        found[name] = Exported(name, family.type, frozenset(label for label, _ in values), frozenset(values), samples)
    return found
