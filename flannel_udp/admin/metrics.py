"""The agent's figures for Prometheus, taken at each scrape from what ``status`` prints and `figures`, in base units.

No key or password is among them, and no address but those of the busiest peers, if anybody wants these.

The library is imported when somebody scrapes: it brings the standard library's web servers along, a twelfth of an
agent's start. What is ours is imported before, so that an upgrade under a running agent does not mix with it.
"""
# ruff: noqa: PLC0415 (imports inside functions: see above)

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from flannel_udp.admin.figures import Figures, LatenessFigures, LeaseFigures, PeerFigures, RegistryFigures
from flannel_udp.admin.http_server import Answer
from flannel_udp.admin.shapes import Counters, FamilyFacts, LeaseFacts, Status
from flannel_udp.model import DEGRADATIONS, KERNEL_DROPS
from flannel_udp.options import Offload

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_NOTHING_YET: Counters = {
    "out": {"packets": 0, "bytes": 0, "drops": {}},
    "in": {"packets": 0, "bytes": 0, "drops": {}},
    "icmp": {},
    "system_calls": {},
    "offloaded_in": {},
}
_RUNGS = Offload().names()
_WAYS: tuple[Literal["in"], Literal["out"]] = ("in", "out")

Part = TypeVar("Part")
Whole = TypeVar("Whole")


class MetricsSource(Protocol):
    """Who knows the figures: the agent. Called on the event loop, so it must not block."""

    @property
    def drop_reasons(self) -> Sequence[str]:
        """Every reason that the counters may name: those that never happened are exported as 0."""
        ...

    def status(self) -> Status:
        """Return the agent's state at this moment."""
        ...

    def figures(self) -> Figures:
        """Return what the agent counts of itself."""
        ...

    async def busiest_peers(self) -> Sequence[PeerFigures]:
        """Return the peers that most bytes were exchanged with, as many as are wanted: by default none."""
        ...


async def answer_metrics(source: MetricsSource) -> Answer:
    """Return the answer to ``GET /metrics``: all figures of this moment in Prometheus' text format."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    from prometheus_client.registry import Collector, CollectorRegistry

    busiest = await source.busiest_peers()

    class Agent(Collector):
        def collect(self) -> Iterator[Metric]:
            return _families(source, busiest)

    registry = CollectorRegistry()  # of our own, with nothing in it but the agent's figures
    registry.register(Agent())
    return Answer(generate_latest(registry), CONTENT_TYPE_LATEST)


def _families(source: MetricsSource, busiest: Sequence[PeerFigures]) -> Iterator[Metric]:
    status, figures = source.status(), source.figures()
    if status["counters"] or status["backend"] is None:
        # Else the kernel carries, and nobody counts.
        yield from _traffic(status["counters"] or _NOTHING_YET, _by_family(status), source.drop_reasons)
    if busiest:
        yield from _peers(busiest)
    yield from _state(status)
    yield from _lease(status["lease"], figures.lease)
    yield from _registry(figures.registry)
    yield _summary(
        "publish_duration_seconds",
        "How long it took to let packets travel to the peers as they are now: a new table, or kernel routes.",
        (),
        [((), figures.published, figures.publishing_s)],
    )
    yield _lateness(figures.lateness)


def _traffic(counters: Counters, families: Mapping[str, FamilyFacts], drop_reasons: Sequence[str]) -> Iterator[Metric]:
    label, parts = _labelled(counters, {name: facts["counters"] for name, facts in families.items()})
    directions = [((*labels, way), part[way]) for labels, part in parts for way in _WAYS]
    yield _counter(
        "packets",
        "Inner packets carried (in: from peers to pods).",
        (*label, "direction"),
        ((labels, counted["packets"]) for labels, counted in directions),
    )
    yield _counter(
        "bytes",
        "Bytes of the inner packets carried.",
        (*label, "direction"),
        ((labels, counted["bytes"]) for labels, counted in directions),
    )
    yield _counter(
        "drops",
        "Packets dropped.",
        (*label, "direction", "reason"),
        (
            ((*labels, reason), counted["drops"].get(reason, 0))
            for labels, counted in directions
            for reason in drop_reasons
        ),
    )
    yield _counter(
        "icmp_answers",
        "ICMP errors due to the senders of dropped packets, by what became of them.",
        (*label, "outcome"),
        (((*labels, outcome), count) for labels, part in parts for outcome, count in part["icmp"].items()),
    )
    yield _counter(
        "system_calls",
        "System calls of the packet path.",
        ("call",),
        (((call,), count) for call, count in counters["system_calls"].items()),
    )
    yield _counter(
        "offloaded_in",
        "Packets that kernel peers had left for a network card to finish.",
        ("what",),
        (((what,), count) for what, count in counters["offloaded_in"].items()),
    )


def _state(status: Status) -> Iterator[Metric]:
    dropped = status["kernel_drops"] or {}
    yield _counter(
        "kernel_drops",
        "Packets that the kernel dropped without a word; of interface_* also what is not ours.",
        ("place",),
        (((place,), dropped[place]) for place in KERNEL_DROPS if place in dropped),
    )
    repairs = status["host_repairs"] or {}
    yield _counter(
        "host_repairs",
        "What was put right on the host after somebody changed it.",
        ("what",),
        (((what,), count) for what, count in repairs.items()),
    )
    families = _by_family(status)
    label, peers = _labelled(status["peers"], {name: facts["peers"] for name, facts in families.items()})
    yield _labelled_gauge("peers", "Routes to peers.", label, peers)
    backend = status["backend"]
    if backend is not None and "direct" in backend:
        yield _gauge("direct_peers", "Peers to which packets take a route, and no tunnel.", backend["direct"])
    yield _labelled_gauge(
        "peers_by_health",
        "Peers that are heard, idle, silent while packets go there, and ill: they do not answer either.",
        ("health",),
        (((health,), n) for health, n in (status["peer_health"] or {}).items()),
    )
    yield _gauge("narrow_paths", "Peers to which larger packets are lost without a word.", status["narrow_paths"])
    yield _counter("underlay_icmp_errors", "ICMP errors about datagrams to peers.", (), [((), status["icmp_errors"])])
    yield _gauge("ready", "1 while /readyz says so.", status["ready"])
    yield _labelled_gauge(
        "degraded",
        "1 for each kind of fault that stops some of the traffic.",
        ("kind",),
        (((kind,), kind in status["degraded"]) for kind in DEGRADATIONS),
    )
    if families:
        yield _labelled_gauge(
            "family_degraded",
            "1 for each kind of fault that stops traffic of this family only.",
            ("family", "kind"),
            (((name, kind), kind in facts["degraded"]) for name, facts in families.items() for kind in DEGRADATIONS),
        )
    in_use = status["offload"] or ()
    yield _labelled_gauge(
        "offload", "1 for each offload in use.", ("rung",), (((rung,), rung in in_use) for rung in _RUNGS)
    )
    yield _gauge("workers", "Data threads.", status["workers"] or 0)
    yield _counter(
        "worker_packets",
        "Inner packets that each data thread carried.",
        ("worker", "direction"),
        (
            ((str(worker), direction), count)
            for worker, carried in enumerate(status["worker_packets"] or ())
            for direction, count in (("in", carried["packets_in"]), ("out", carried["packets_out"]))
        ),
    )
    yield _labelled_gauge(
        "build_info", "1, with the version of flannel-udp.", ("version",), [((status["version"],), 1)]
    )


def _peers(busiest: Sequence[PeerFigures]) -> Iterator[Metric]:
    for what, counts in (
        ("packets", [(peer, peer.packets_in, peer.packets_out) for peer in busiest]),
        ("bytes", [(peer, peer.bytes_in, peer.bytes_out) for peer in busiest]),
    ):
        yield _counter(
            f"peer_{what}",
            f"Inner {what} exchanged with the peers that most bytes were exchanged with, --metrics-peers of them.",
            ("subnet", "public_ip", "direction"),
            (
                ((peer.subnet, peer.public_ip, way), count)
                for peer, *both in counts
                for way, count in zip(_WAYS, both, strict=True)
            ),
        )


def _lease(lease: LeaseFacts | None, counted: LeaseFigures) -> Iterator[Metric]:
    if lease:
        yield _gauge(
            "lease_expires_seconds",
            "Time until our lease expires unless it is renewed; +Inf for a reservation, absent without a lease.",
            _expires_s(lease),
        )
    for name, what, count in (
        ("lease_acquisitions", "Leases that we came to have, new ones or our own of before.", counted.acquired),
        ("lease_losses", "Leases that we lost; forwarding stopped each time.", counted.lost),
        ("lease_renewals", "Renewals of the lease.", counted.renewals),
        ("lease_renewal_failures", "Renewals of the lease that failed, each try.", counted.failures),
    ):
        yield _counter(name, what, (), [((), count)])
    if counted.renewed_s is not None:
        yield _gauge(
            "lease_last_renewal_timestamp_seconds", "Unix time of the last renewal; absent before.", counted.renewed_s
        )


def _registry(counted: RegistryFigures) -> Iterator[Metric]:
    asked = counted.requests.items()
    yield _summary(
        "registry_request_duration_seconds",
        "Requests to the registry that have come to an end, and how long they took.",
        ("request",),
        (((request,), each.count, each.seconds) for request, each in asked),
    )
    yield _counter(
        "registry_request_failures",
        "Those of them that failed.",
        ("request",),
        (((request,), each.failed) for request, each in asked),
    )
    yield _gauge("registry_watching", "1 while we hear of the registry's changes.", counted.watching)
    yield _counter("registry_outages", "Times that the watch on the registry broke off.", (), [((), counted.outages)])
    yield _counter("registry_watch_restarts", "Outages that are over.", (), [((), counted.restarts)])
    yield _counter(
        "registry_events",
        "What the watch brought: snapshot is a whole listing, as it begins with, and where it has lost its place.",
        ("kind",),
        [(("snapshot",), counted.snapshots), (("change",), counted.changes)],
    )
    if counted.last_event_s is not None:
        yield _gauge("registry_last_event_timestamp_seconds", "Unix time of the last of these.", counted.last_event_s)


def _lateness(seen: LatenessFigures) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    return HistogramMetricFamily(
        "flannel_udp_event_loop_lateness_seconds",
        "How late the agent's event loop was, looked at once a second; no packet waits for it.",
        buckets=[("+Inf" if math.isinf(bound) else repr(bound), count) for bound, count in seen.buckets],
        sum_value=seen.total_s,
    )


def _by_family(status: Status) -> Mapping[str, FamilyFacts]:
    """Return the families where there are both: who has one of them needs no label."""
    return status["families"] if len(status["families"]) > 1 else {}


def _labelled(
    whole: Part | Whole, parts: Mapping[str, Part | None]
) -> tuple[tuple[str, ...], list[tuple[tuple[str, ...], Part | Whole]]]:
    """Return the label of what there is by family, and each value of it with the part; else the whole alone."""
    if not parts:
        return (), [((), whole)]
    return ("family",), [((name,), part) for name, part in parts.items() if part is not None]


def _expires_s(lease: LeaseFacts) -> float:
    return math.inf if lease["expires_in_s"] is None else lease["expires_in_s"]


Samples = Iterable[tuple[Sequence[str], float]]


def _counter(name: str, what: str, labels: Sequence[str], samples: Samples) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"flannel_udp_{name}", what, labels=labels)  # exported with _total at the end
    for values, count in samples:
        family.add_metric(values, count)
    return family


def _summary(
    name: str, what: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], int, float]]
) -> Metric:
    from prometheus_client.core import SummaryMetricFamily

    family = SummaryMetricFamily(f"flannel_udp_{name}", what, labels=labels)
    for values, count, total in samples:
        family.add_metric(values, count, total)
    return family


def _gauge(name: str, what: str, value: float) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"flannel_udp_{name}", what, value=value)


def _labelled_gauge(name: str, what: str, labels: Sequence[str], samples: Samples) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"flannel_udp_{name}", what, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family
