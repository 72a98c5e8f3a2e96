"""/metrics over real TCP on loopback, read by Prometheus' own parser."""

from __future__ import annotations

import asyncio
import http.client
import math
import subprocess
import sys
from collections.abc import Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flannel_udp.admin.health import health_server, open_health_listener
from flannel_udp.admin.shapes import FamilyFacts, Status
from flannel_udp.lab.etcd_server import free_port
from flannel_udp.model import DEGRADATIONS
from flannel_udp.options import Offload
from tests.support.patience import PATIENCE_S
from tests.support.source import Told
from tests.support.status import DUAL, RUNNING, WAITING

Samples = Mapping[tuple[str, tuple[str, ...]], float]
"""(name, label values in the order of the labels' names) → figure."""


def get(port: int) -> tuple[str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.status == 200
        return response.headers["Content-Type"], response.read().decode()
    finally:
        connection.close()


@pytest.fixture
def port() -> int:
    return free_port("127.0.0.1")


async def scrape(port: int, status: Status) -> Samples:
    async with health_server(open_health_listener("127.0.0.1", port), Told(status)):
        _, text = await asyncio.to_thread(get, port)
    return parse(text)


def parse(text: str) -> Samples:
    return {
        (
            sample.name.removeprefix("flannel_udp_"),
            tuple(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_running_agents_figures_are_exported(port: int) -> None:
    expected: Samples = {
        ("packets_total", ("in",)): 0,
        ("packets_total", ("out",)): 1_234_567,
        ("bytes_total", ("in",)): 0,
        ("bytes_total", ("out",)): 1_500_000_000,
        **{("drops_total", ("in", reason)): 0 for reason in Told.drop_reasons},
        ("drops_total", ("out", "no_route")): 3,
        ("drops_total", ("out", "too_short")): 0,
        ("drops_total", ("out", "ttl_expired")): 0,
        ("icmp_answers_total", ("sent",)): 1,
        ("icmp_answers_total", ("rate_limited",)): 2,
        ("icmp_answers_total", ("failed",)): 0,
        ("system_calls_total", ("tun_reads",)): 1_000,
        ("system_calls_total", ("udp_sends",)): 7,
        ("offloaded_in_total", ("partial_checksums",)): 5,
        ("offloaded_in_total", ("super_packets",)): 0,
        ("kernel_drops_total", ("socket",)): 5,
        ("kernel_drops_total", ("tunnel_out",)): 0,
        ("host_repairs_total", ("link",)): 1_000,
        ("host_repairs_total", ("route",)): 2,
        ("host_repairs_total", ("tunnel",)): 0,
        ("peers", ()): 2,
        ("peers_by_health", ("heard",)): 1,
        ("peers_by_health", ("idle",)): 1,
        ("peers_by_health", ("silent",)): 0,
        ("peers_by_health", ("ill",)): 0,
        ("narrow_paths", ()): 0,
        ("underlay_icmp_errors_total", ()): 0,
        ("ready", ()): 1,
        **{("degraded", (kind,)): 0 for kind in DEGRADATIONS},
        **{("offload", (rung,)): float(rung in ("tso", "udp-gro")) for rung in Offload().names()},
        ("workers", ()): 2,
        ("worker_packets_total", ("in", "0")): 0,
        ("worker_packets_total", ("out", "0")): 1_234_560,
        ("worker_packets_total", ("in", "1")): 0,
        ("worker_packets_total", ("out", "1")): 7,
        ("lease_expires_seconds", ()): 86_399.5,
        ("lease_acquisitions_total", ()): 1,
        ("lease_losses_total", ()): 0,
        ("lease_renewals_total", ()): 24,
        ("lease_renewal_failures_total", ()): 3,
        ("lease_last_renewal_timestamp_seconds", ()): 1_799_999_000.25,
        ("registry_request_duration_seconds_count", ("list",)): 3,
        ("registry_request_duration_seconds_sum", ("list",)): 0.25,
        ("registry_request_duration_seconds_count", ("renew",)): 0,
        ("registry_request_duration_seconds_sum", ("renew",)): 0,
        ("registry_request_failures_total", ("list",)): 1,
        ("registry_request_failures_total", ("renew",)): 0,
        ("registry_watching", ()): 1,
        ("registry_outages_total", ()): 2,
        ("registry_watch_restarts_total", ()): 2,
        ("registry_events_total", ("snapshot",)): 1,
        ("registry_events_total", ("change",)): 40,
        ("registry_last_event_timestamp_seconds", ()): 1_800_000_000.5,
        ("publish_duration_seconds_count", ()): 17,
        ("publish_duration_seconds_sum", ()): 0.5,
        ("event_loop_lateness_seconds_bucket", ("0.005",)): 90_000,
        ("event_loop_lateness_seconds_bucket", ("0.1",)): 90_060,
        ("event_loop_lateness_seconds_bucket", ("+Inf",)): 90_061,
        ("event_loop_lateness_seconds_count", ()): 90_061,
        ("event_loop_lateness_seconds_sum", ()): 12.5,
        ("build_info", ("0.1.0",)): 1,
    }
    assert await scrape(port, RUNNING) == expected


async def test_before_anything_is_open_every_drop_and_rung_is_there_and_0(port: int) -> None:
    samples = await scrape(port, WAITING)
    assert [samples[("drops_total", (way, reason))] for way in ("in", "out") for reason in Told.drop_reasons] == [0] * 6
    assert [samples[("packets_total", (way,))] for way in ("in", "out")] == [0, 0]
    assert {value for (name, _), value in samples.items() if name == "offload"} == {0}
    assert (samples[("ready", ())], samples[("workers", ())], samples[("peers", ())]) == (0, 0, 0)
    assert ("lease_expires_seconds", ()) not in samples


async def test_with_both_families_each_has_its_own_figures_and_they_add_up_to_the_whole(port: int) -> None:
    one, both = await scrape(port, RUNNING), await scrape(port, DUAL)
    by_family = ("packets_total", "bytes_total", "drops_total", "icmp_answers_total", "peers")
    for (name, labels), whole in one.items():
        if name not in by_family:
            assert both[name, labels] == whole
            continue
        assert (name, labels) not in both
        # The labels' values come in the order of their names: direction, family, outcome, reason.
        at = 0 if name == "icmp_answers_total" else 1
        parts = [both[name, (*labels[:at], family, *labels[at:])] for family in ("ipv4", "ipv6")]
        assert sum(parts) == whole
    assert both["packets_total", ("out", "ipv6")] == 234_567
    assert [both["family_degraded", (family, "forwarding")] for family in ("ipv4", "ipv6")] == [0, 1]
    assert not any(name == "family_degraded" for name, _ in one)


async def test_a_family_that_this_host_takes_no_part_by_has_no_figures(port: int) -> None:
    lacking: FamilyFacts = {"peers": 0, "degraded": ["host"], "counters": None}
    samples = await scrape(port, {**DUAL, "families": {"ipv4": DUAL["families"]["ipv4"], "ipv6": lacking}})
    assert [labels for name, labels in samples if name == "packets_total"] == [("in", "ipv4"), ("out", "ipv4")]
    assert samples["peers", ("ipv6",)] == 0
    assert samples["family_degraded", ("ipv6", "host")] == 1


async def test_what_nobody_counts_is_not_exported_as_0(port: int) -> None:
    status: Status = {**RUNNING, "backend": {"type": "host-gw"}, "counters": None}
    traffic = ("packets_total", "bytes_total", "drops_total", "icmp_answers_total", "system_calls_total")
    assert {name for name, _ in await scrape(port, status)}.isdisjoint(traffic)


async def test_direct_peers_are_exported_where_there_may_be_any(port: int) -> None:
    status: Status = {**RUNNING, "backend": {"type": "udp", "port": 8285, "direct": 0}}
    assert (await scrape(port, status))[("direct_peers", ())] == 0


async def test_a_reservation_expires_never(port: int) -> None:
    status: Status = {**RUNNING, "lease": {"key": "10.1.15.0-24", "expires_in_s": None, "reserved": True}}
    assert (await scrape(port, status))[("lease_expires_seconds", ())] == math.inf


async def test_every_scrape_is_of_its_moment_and_of_this_agent_alone(port: int) -> None:
    agent = Told(WAITING)
    async with health_server(open_health_listener("127.0.0.1", port), agent):
        kind, before = await asyncio.to_thread(get, port)
        agent.now = RUNNING
        _, after = await asyncio.to_thread(get, port)
    assert kind.startswith("text/plain; version=")
    assert (parse(before)[("ready", ())], parse(after)[("ready", ())]) == (0, 1)
    assert all(line.split(" ")[2 * line.startswith("#")].startswith("flannel_udp_") for line in after.splitlines())


async def test_counters_and_gauges_say_what_they_are(port: int) -> None:
    async with health_server(open_health_listener("127.0.0.1", port), Told(RUNNING)):
        _, text = await asyncio.to_thread(get, port)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert all(family.documentation for family in families.values())
    counters = {
        "packets",
        "bytes",
        "drops",
        "icmp_answers",
        "system_calls",
        "offloaded_in",
        "host_repairs",
        "worker_packets",
        "kernel_drops",
        "underlay_icmp_errors",
        "lease_acquisitions",
        "lease_losses",
        "lease_renewals",
        "lease_renewal_failures",
        "registry_request_failures",
        "registry_outages",
        "registry_watch_restarts",
        "registry_events",
    }
    assert {name.removeprefix("flannel_udp_") for name, f in families.items() if f.type == "counter"} == counters
    assert {name.removeprefix("flannel_udp_") for name, f in families.items() if f.type == "summary"} == {
        "registry_request_duration_seconds",
        "publish_duration_seconds",
    }
    assert {f.type for f in families.values()} == {"counter", "gauge", "summary", "histogram"}


async def test_nothing_of_the_registrys_address_is_told(port: int) -> None:
    status: Status = {**RUNNING, "registry": "etcd https://user:secret@etcd.example:2379 /coreos.com/network"}
    async with health_server(open_health_listener("127.0.0.1", port), Told(status)):
        _, text = await asyncio.to_thread(get, port)
    assert "secret" not in text
    assert "etcd" not in text


def test_an_agent_that_nobody_scrapes_does_not_load_the_library() -> None:
    code = "import sys, flannel_udp.agent.run; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "h11" in loaded
    assert "prometheus_client" not in loaded
