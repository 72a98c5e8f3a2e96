"""`flannel-udp lab …` as it is typed: output, exit codes, and a lab that is taken down whatever happens."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannel_udp.backend.table import LAB_BACKENDS
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import wait_until
from flannel_udp.lab.plan import Plan
from tests.support.labs import NEEDS_NETNS, cleaned_up, endless_start, fresh_name, namespaces_of, state_of
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

LAB = [sys.executable, "-m", "flannel_udp", "lab"]


def run(*words: str, before: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, *LAB, *words],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
        env=os.environ | env,
    )


@pytest.fixture
def bare_lab() -> Iterator[Lab]:
    """Two hosts with pods in subnets given by hand, no agent."""
    with Lab(Plan(fresh_name(), agents=())) as lab:
        for i, host in enumerate(lab.hosts, start=1):
            host.attach_pods(IPv4Network(f"10.244.{i}.0/24"), 1472)
        yield lab


def test_status_json_has_exactly_the_promised_shape(bare_lab: Lab) -> None:
    assert json.loads(run("status", "--json", "--name", bare_lab.name).stdout) == {
        "name": bare_lab.name,
        "routers": [],
        "hosts": [
            {
                "name": f"h{i}",
                "behind": None,
                "link": {"rate": None, "delay_ms": 0.0, "loss": 0.0, "mtu": 1500},
                "underlay": f"192.0.2.{i}",
                "backend": None,
                "subnet": f"10.244.{i}.0/24",
                "pods": [{"name": "p1", "ip": f"10.244.{i}.2"}],
            }
            for i in (1, 2)
        ],
    }


def test_status_for_people_shows_every_host_and_pod(bare_lab: Lab) -> None:
    shown = run("status", "--name", bare_lab.name, COLUMNS="120").stdout
    for text in ("h1", "192.0.2.2", "10.244.1.0/24", "p1 10.244.2.2"):
        assert text in shown


def test_status_in_forty_columns_cuts_no_address(bare_lab: Lab) -> None:
    shown = run("status", "--name", bare_lab.name, COLUMNS="40").stdout
    for text in ("192.0.2.1", "192.0.2.2", "10.244.1.0/24", "p1 10.244.2.2"):
        assert text in shown


def test_exec_runs_inside_and_passes_output_and_exit_code_on(bare_lab: Lab) -> None:
    done = run("exec", "--name", bare_lab.name, "h2/p1", "--", "sh", "-c", "ip -br addr show eth0; exit 7")
    assert done.returncode == 7
    assert done.stdout.split()[2] == "10.244.2.2/24"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("exec", "h3", "--", "true"), "has no host h3: it has h1, h2"),
        (("exec", "h1/p9", "--", "true"), "h1 has no pod p9"),
        (("exec", "h11", "--", "true"), "has no host h11: it has h1, h2: did you mean h1?"),
        (("logs", "h22"), "has no host h22: it has h1, h2: did you mean h2?"),
        (("logs", "h1"), "h1: no agent of ours was started here"),
    ],
)
def test_what_is_not_there_is_one_line_and_exit_code_1(bare_lab: Lab, words: tuple[str, ...], message: str) -> None:
    done = run(words[0], "--name", bare_lab.name, *words[1:])
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [("status",), ("exec", "h1", "true"), ("logs", "h1"), ("down",)])
def test_without_a_lab_every_command_says_so(words: tuple[str, ...]) -> None:
    done = run(words[0], "--name", fresh_name(), *words[1:])
    assert done.returncode == 1
    assert "no lab named" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_misspelt_lab_is_answered_with_the_one_that_is_up(bare_lab: Lab) -> None:
    for command in ("status", "down"):
        done = run(command, "--name", f"{bare_lab.name}x")
        assert done.returncode == 1
        assert done.stderr.startswith(f"flannel-udp: no lab named {bare_lab.name}x is up: there are ")
        assert done.stderr.endswith(f": did you mean {bare_lab.name}?\n")


def test_down_removes_the_named_lab_only(bare_lab: Lab) -> None:
    with Lab(Plan(fresh_name(), agents=())) as other:
        done = run("down", "--name", bare_lab.name, "--json")
        assert (done.returncode, json.loads(done.stdout)) == (0, {"removed": [bare_lab.name]})
        assert not namespaces_of(bare_lab.name)
        assert namespaces_of(other.name)


def test_down_all_removes_every_lab_of_the_machine() -> None:
    # In a mount namespace with an empty /run, so that it finds no lab of anybody else.
    code = (
        "from flannel_udp.lab.lab import *\n"
        "for name in 'one', 'two': Lab(Plan(name, agents=())).up()\n"
        "import subprocess, sys\n"
        "sys.exit(subprocess.call([sys.executable, '-m', 'flannel_udp', 'lab', 'down', '--all'])"
        " or bool(lab_names()))"
    )
    script = 'mount -t tmpfs none /run && exec "$0" -c "$1"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
    assert (done.returncode, done.stdout) == (0, "removed: one, two\n"), done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--hosts", "0"),
        ("--pods", "300"),
        ("--name", "../x"),
        ("--registry", "redis"),
        ("--backend", "wireguard"),
        ("--datapath", "kernel,card"),
        ("--routed", "2"),
        ("--routed", "-1"),
    ],
)
def test_a_lab_that_cannot_be_is_wrong_usage(words: tuple[str, ...]) -> None:
    done = run("up", *words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_demonstration_needs_two_hosts() -> None:
    done = run("demo", "--name", fresh_name(), "--hosts", "1")
    assert done.returncode == 2
    assert "at least 2 hosts" in done.stderr


def test_without_the_right_to_make_namespaces_up_is_one_clear_line_and_leaves_nothing() -> None:
    name = fresh_name()
    done = run("up", "--name", name, before=("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"))
    assert done.returncode == 1
    assert "Operation not permitted" in done.stderr.splitlines()[-1]
    assert not namespaces_of(name)
    assert not state_of(name).exists()


def test_without_the_command_ip_up_says_what_to_install() -> None:
    done = run("up", "--name", fresh_name(), PATH="/nowhere")
    assert done.returncode == 1
    assert "install the package iproute2" in done.stderr


@pytest.mark.parametrize("awaited", ["etcd", "iptables-restore"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_demonstration_that_is_interrupted_takes_the_lab_down(
    number: signal.Signals, code: int, awaited: str, tmp_path: Path
) -> None:
    name = fresh_name()
    with cleaned_up(Lab(Plan(name))):
        demo = subprocess.Popen(
            [*LAB, "demo", "--name", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=endless_start(tmp_path, awaited),
        )
        try:
            assert wait_until(lambda: len(namespaces_of(name)) == 5, PATIENCE_S)
            if awaited == "iptables-restore":
                assert wait_until((state_of(name) / "h2" / "agent.pid").exists, PATIENCE_S)
            time.sleep(0.3)  # somewhere while it starts
            demo.send_signal(number)
            demo.send_signal(number)  # an impatient user
            demo.communicate(timeout=PATIENCE_S)
        finally:
            demo.kill()
            demo.communicate()
        assert demo.returncode == code
        assert not namespaces_of(name)
        assert not state_of(name).exists()


def test_a_demonstration_draws_pings_transfers_traces_and_leaves_nothing() -> None:
    name = fresh_name()
    done = run("demo", "--name", name, "--pods", "2")
    assert done.returncode == 0, done.stderr
    assert f"namespace fu-{name}-h2" in done.stdout
    assert "12 of 12 pings answered" in done.stdout
    assert "Gbit/s" in done.stdout
    assert [line.split("TTL ")[1].split()[0] for line in done.stdout.splitlines() if "ICMP echo request" in line] == [
        "64",
        "63",
        "62",
        "61",
        "60",
    ]
    assert not namespaces_of(name)
    assert not state_of(name).exists()


def test_a_demonstration_for_programs_is_one_document() -> None:
    name = fresh_name()
    done = run("demo", "--name", name, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is True
    assert [host["name"] for host in document["lab"]["hosts"]] == ["h1", "h2"]
    (family,) = document["families"]
    assert family["ip"] == 4
    assert {(ping["from"], ping["to"]) for ping in family["pings"]} == {("h1/p1", "h2/p1"), ("h2/p1", "h1/p1")}
    assert all(ping["ms"] > 0 for ping in family["pings"])
    assert family["tcp"]["bits_per_s"] > 0
    steps = family["packet"]["steps"]
    assert [step["where"] for step in steps] == ["h1/p1 eth0", "h1 flannel0", "h1 eth0", "h2 flannel0", "h2/p1 eth0"]
    assert steps[2]["seen"][0].startswith("192.0.2.1:8285 → 192.0.2.2:8285  UDP")
    assert not namespaces_of(name)


@pytest.mark.parametrize("datapath", ["kernel", "userspace"])
def test_a_demonstration_of_vxlan_shows_every_header_of_a_packet(datapath: str) -> None:
    done = run("demo", "--name", fresh_name(), "--backend", "vxlan", "--datapath", datapath, COLUMNS="120")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 pings answered" in done.stdout
    assert "backend vxlan, MTU 1450: flannel.1 to flannel.1" in done.stdout
    carrier = "agent" if datapath == "userspace" else "kernel"
    assert f"h1 eth0: the {carrier} put Ethernet, VXLAN and UDP in front of it" in done.stdout
    assert re.search(r"192\.0\.2\.1:\d+ → 192\.0\.2\.2:8472  UDP  TTL 64  134 bytes, inside:\n", done.stdout)
    assert re.search(r"VNI 1, Ethernet ([0-9a-f]{2}:){5}[0-9a-f]{2} → ", done.stdout)
    assert [line.split("TTL ")[1].split()[0] for line in done.stdout.splitlines() if "ICMP echo request" in line] == [
        "64",
        "63",
        "63",
        "63",
        "62",
    ]


def test_a_demonstration_of_both_families_shows_a_packet_of_each() -> None:
    name = fresh_name()
    done = run("demo", "--name", name, "--families", "46")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 of 2 pings answered") == 2
    assert "192.0.2.1:8285 → 192.0.2.2:8285  UDP" in done.stdout
    assert "[2001:db8::1]:8285 → [2001:db8::2]:8285  UDP  hop limit 64  152 bytes, inside:" in done.stdout
    assert namespaces_of(name) == []


def test_a_demonstration_of_ipip_shows_a_packet_in_a_packet() -> None:
    done = run("demo", "--name", fresh_name(), "--backend", "ipip", "--datapath", "userspace", COLUMNS="120")
    assert done.returncode == 0, done.stderr
    assert "backend ipip, MTU 1480: flannel.ipip to flannel.ipip" in done.stdout
    assert "192.0.2.1 → 192.0.2.2  IPIP  TTL 64  104 bytes, inside:\n" in done.stdout
    assert [line.split("TTL ")[1].split()[0] for line in done.stdout.splitlines() if "ICMP echo request" in line] == [
        "64",
        "63",
        "63",
        "63",
        "62",
    ]


def test_a_lab_with_a_host_behind_a_router_and_two_datapaths_talks() -> None:
    words = ("--backend", "vxlan", "--datapath", "kernel,userspace", "--hosts", "4", "--routed", "1")
    done = run("demo", "--name", fresh_name(), *words)
    assert done.returncode == 0, done.stderr
    assert "12 of 12 pings answered" in done.stdout
    assert "behind r1, 172.16.1.0/24: a bridge in the namespace " in done.stdout
    assert "172.16.1.4:8472" in done.stdout


def test_a_demonstration_of_routes_shows_them_and_a_packet_without_a_header() -> None:
    done = run("demo", "--name", fresh_name(), "--backend", "host-gw")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 pings answered" in done.stdout
    assert "via 192.0.2.2 dev eth0 proto 82" in done.stdout
    assert "flannel0" not in done.stdout
    assert [line.split("TTL ")[1].split()[0] for line in done.stdout.splitlines() if "ICMP echo request" in line] == [
        "64",
        "63",
        "63",
        "62",
    ]


def test_a_demonstration_of_alloc_shows_that_nothing_travels_before_routes_are_put() -> None:
    done = run("demo", "--name", fresh_name(), "--backend", "alloc", "--hosts", "3")
    assert done.returncode == 0, done.stderr
    before, _, after = done.stdout.partition("routes are put by hand now")
    assert "one ping from h1/p1 to h3/p1 is not answered" in before
    assert after.count("ip route add 10.244.") == 2
    assert "6 of 6 pings answered" in after


@pytest.mark.parametrize("kind", list(LAB_BACKENDS))
def test_a_lab_comes_up_with_every_backend_and_status_says_which(kind: str) -> None:
    name = fresh_name()
    with cleaned_up(Lab(Plan(name))):
        done = run("up", "--name", name, "--backend", kind)
        assert done.returncode == 0, done.stderr
        assert ("ip route add" in done.stdout) == (kind == "alloc")
        hosts = json.loads(run("status", "--json", "--name", name).stdout)["hosts"]
        assert [host["backend"] for host in hosts] == [kind, kind]


def test_up_starts_agents_that_status_logs_and_down_know() -> None:
    name = fresh_name()
    with cleaned_up(Lab(Plan(name))):
        done = run("up", "--name", name)
        assert done.returncode == 0, done.stderr
        assert run("status", "--name", name, COLUMNS="160").stdout.count("ready (process") == 2
        assert run("logs", "--name", name, "h1").stdout
        taken = run("up", "--name", name)
        assert taken.returncode == 1
        assert f"lab down --name {name}" in taken.stderr
        assert run("down", "--name", name).returncode == 0
        assert not namespaces_of(name)
