"""What running agents export and say of their packet path, while pods talk."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flannel_udp.admin.client import fetch_metrics
from flannel_udp.dataplane.drops import DROP_REASONS
from flannel_udp.files.atomic import replace_file
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import tcp_rate
from tests.support.agents import command_line, log_of, pid_of, subnet_of, unanswered, up_with_peers, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.many_peers import N_PEERS, NETWORK, host_number, subnet_number
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

PORT = 9500
DAY_S = 86_400
N_SCRAPES = 100
SCRAPE_MAX_S = 0.02
"""Of CPU time; ten times what it was, most of which is the text of the page."""
SERIES_MAX = 250
NOBODY = "10.244.255.9"  # in the overlay, leased by nobody: the last subnet is not among the first 100
Samples = Mapping[tuple[str, tuple[str, ...]], float]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=2, agent_args=(f"--healthz-port={PORT}", "--metrics-peers=1"))) as lab:
        yield up_with_peers(lab)


def scrape(host: Host) -> Samples:
    """Return (name, label values by the labels' names) → figure."""
    with host.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(("127.0.0.1", PORT))
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        head, _, body = b"".join(iter(lambda: sock.recv(65_536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK"), head
    return parse(body.decode())


def parse(page: str) -> Samples:
    return {
        (
            sample.name.removeprefix("flannel_udp_"),
            tuple(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_packets_and_drops_of_pods_are_counted(lab: Lab) -> None:
    h1 = lab.hosts[0]
    assert not str(subnet_of(h1)).startswith("10.244.255.")
    before = scrape(h1)
    assert unanswered(lab.pods()) == []
    h1.pods[0].run(["ping", "-c1", "-W1", NOBODY], check=False)
    after: dict[tuple[str, tuple[str, ...]], float] = {}

    def grown(name: str, *labels: str) -> float:
        return after[name, labels] - before[name, labels]

    def is_counted() -> bool:
        after.update(scrape(h1))
        return grown("drops_total", "out", "no_route") > 0 and grown("icmp_answers_total", "sent") > 0

    wait_for("it is counted", is_counted)
    assert grown("packets_total", "out") >= 2  # a request and an answer
    assert grown("packets_total", "in") >= 2
    assert grown("bytes_total", "out") >= 2 * 28
    assert grown("drops_total", "out", "no_route") == 1
    assert grown("icmp_answers_total", "sent") == 1
    assert grown("system_calls_total", "tun_reads") >= 1


def test_every_reason_is_there_in_both_directions(lab: Lab) -> None:
    reasons = {labels for name, labels in scrape(lab.hosts[0]) if name == "drops_total"}
    assert reasons == {(way, reason) for way in ("in", "out") for reason in DROP_REASONS}


def test_the_agents_state_is_exported_as_status_has_it(lab: Lab) -> None:
    h1 = lab.hosts[0]
    samples, status = scrape(h1), h1.control("/v1/status")
    assert (samples["ready", ()], samples["peers", ()], samples["workers", ()]) == (1, 1, 1)
    assert samples["build_info", (status["version"],)] == 1
    assert DAY_S - 600 < samples["lease_expires_seconds", ()] <= DAY_S + 1  # the file registry rounds up to seconds
    on = {labels[0] for (name, labels), value in samples.items() if name == "offload" and value}
    assert on == set(status["offload"]) != set()


def test_workers_and_the_granted_buffers_are_said(lab: Lab) -> None:
    h1 = lab.hosts[0]
    status = h1.control("/v1/status")
    assert status["workers"] == 1
    assert status["socket_buffers"] == {"receive_bytes": 4 << 20, "send_bytes": 192 << 10}
    (line,) = [line for line in log_of(h1) if line.startswith("offloads in use: ")]
    assert line.endswith("; workers: 1; socket buffers: receive 4194304, send 196608 bytes")
    page = command_line(h1, "status").stdout
    assert "\nbuffers    receive 4,194,304 bytes, send 196,608 bytes\n" in page
    assert f"\noffload    {', '.join(status['offload'])}\n" in page


def test_super_packets_of_pods_reach_the_agent_whole(lab: Lab) -> None:
    """A gso_max_size below that of the pods' interfaces would let the kernel cut each into packets before the TUN."""
    h1, h2 = lab.hosts
    if "tso" not in h1.control("/v1/status")["offload"]:
        pytest.skip("this kernel's TUN takes no TCP super-packets")
    before = scrape(h1)
    assert tcp_rate(h1.pods[0], h2.pods[0], h2.pods[0].ip, duration_s=1.0) > 0
    after = scrape(h1)
    packets = after["packets_total", ("out",)] - before["packets_total", ("out",)]
    reads = after["system_calls_total", ("tun_reads",)] - before["system_calls_total", ("tun_reads",)]
    assert packets > 10 * reads


def test_what_became_of_lease_registry_and_peers_is_counted(lab: Lab) -> None:
    samples = scrape(lab.hosts[0])
    assert (samples["lease_acquisitions_total", ()], samples["lease_losses_total", ()]) == (1, 0)
    assert samples["registry_watching", ()] == 1
    assert samples["registry_events_total", ("snapshot",)] >= 1
    asked = samples["registry_request_duration_seconds_count", ("create",)]
    assert asked - samples["registry_request_failures_total", ("create",)] == 1
    assert samples["publish_duration_seconds_count", ()] >= 1
    assert samples["publish_duration_seconds_sum", ()] > 0
    before = samples["event_loop_lateness_seconds_count", ()]
    wait_for("another look", lambda: scrape(lab.hosts[0])["event_loop_lateness_seconds_count", ()] > before)


def test_an_outage_of_the_registry_and_its_end_are_counted(lab: Lab) -> None:
    h1, path = lab.hosts[0], lab.plan.registry_file
    before, hidden = scrape(h1), path.with_suffix(".hidden")
    path.rename(hidden)
    try:
        wait_for("the outage shows", lambda: scrape(h1)["registry_watching", ()] == 0)
    finally:
        hidden.rename(path)
    wait_for("the watch stands again", lambda: scrape(h1)["registry_watching", ()] == 1)
    after = scrape(h1)
    for name in ("registry_outages_total", "registry_watch_restarts_total"):
        assert after[name, ()] == before[name, ()] + 1


def test_a_scrape_with_ten_thousand_peers_costs_milliseconds(record_property: Callable[[str, object], None]) -> None:
    config = {"Network": NETWORK}
    with Lab(Plan(fresh_name(), hosts=1, config=config, agent_args=("--metrics-peers=20",))) as lab:
        (host,), path = lab.hosts, lab.plan.registry_file
        document = json.loads(path.read_bytes())
        for number in range(N_PEERS):
            key = str(subnet_number(number)).replace("/", "-")
            document["subnets"][key] = {"PublicIP": str(host_number(number))}
        replace_file(path, json.dumps(document).encode())
        wait_for("all peers", lambda: host.control("/v1/status")["peers"] == N_PEERS)
        host.control("/v1/peers")  # whatever the agent does only once is done
        before_s = cpu_s(pid_of(host))
        for _ in range(N_SCRAPES):
            page = fetch_metrics(host.control_socket, PATIENCE_S)
        took_s = (cpu_s(pid_of(host)) - before_s) / N_SCRAPES
    n_series = len([line for line in page.splitlines() if not line.startswith("#")])
    record_property("figure", f"{took_s * 1e3:.1f} ms of CPU time a scrape, {n_series} series")
    assert took_s < SCRAPE_MAX_S
    assert n_series < SERIES_MAX


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has had: counted, so that a busy machine does not matter."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def more_peers(lab: Lab, n: int) -> Iterator[None]:
    """Let there be `n` peers more, behind addresses at which nobody is."""
    h1, path = lab.hosts[0], lab.plan.registry_file
    before = path.read_bytes()
    document = json.loads(before)
    # Beyond the first 100 that are free, of which an agent picks one: with two agents up to the 101st.
    first, host = int(IPv4Address("10.244.102.0")), int(IPv4Address("192.0.2.100"))
    for number in range(n):  # all that the last subnets have room for
        key = f"{IPv4Address(first + (number << 8))}-24"
        document["subnets"][key] = {"PublicIP": str(IPv4Address(host + number))}
    replace_file(path, json.dumps(document).encode())
    try:
        wait_for("all peers", lambda: scrape(h1)["peers", ()] == n + 1)
        yield
    finally:
        replace_file(path, before)
        wait_for("the former peers", lambda: scrape(h1)["peers", ()] == 1)


def test_more_peers_make_no_more_series_and_the_busiest_ones_are_shown(lab: Lab) -> None:
    h1, h2 = lab.hosts
    busiest = {("bytes", way): (str(h2.underlay), str(subnet_of(h2))) for way in ("in", "out")}
    assert unanswered(lab.pods()) == []
    wait_for("the peer shows", lambda: any(name == "peer_bytes_total" for name, _ in scrape(h1)))
    before = scrape(h1)
    with more_peers(lab, 50):
        for _ in range(2):  # a packet, which is less than what h2 got
            h1.pods[0].run(["ping", "-c1", "-W1", "10.244.102.2"], check=False)
        wait_for("the other peer is known", lambda: scrape(h1)["peers_by_health", ("idle",)] < 50)
        after = scrape(h1)
    assert after.keys() == before.keys()
    shown = {
        ("bytes", labels[0]): labels[1:] for name, labels in after if name == "peer_bytes_total"
    }  # by direction, public_ip, subnet
    assert shown == busiest
    assert after["peer_bytes_total", ("out", *busiest["bytes", "out"])] > 2 * 28


def test_the_control_socket_and_the_command_have_the_same_series(lab: Lab) -> None:
    h1 = lab.hosts[0]
    printed = parse(command_line(h1, "metrics").stdout)
    assert printed.keys() == scrape(h1).keys()


def test_promtool_finds_nothing_wrong_with_a_running_agents_page(lab: Lab) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: in the package prometheus, which is 100 MB)")
    page = command_line(lab.hosts[0], "metrics").stdout
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
