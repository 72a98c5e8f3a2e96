"""`lab up --topology`, `lab list`, `inspect`, `graph` and `logs -f` on a lab that is up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.errors import FlannelError
from flannel_udp.lab.lab import Lab, remove
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import tcp_rate
from tests.support.agents import wait_for_pings
from tests.support.labs import NEEDS_NETNS, fresh_name, state_of
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

LAB = [sys.executable, "-m", "flannel_udp", "lab"]
TOPOLOGY = """
hosts = 2
rate = "10mbit"
offload = "wire"
[host.h2]
subnets = ["10.244.200.0/24"]
"""


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [*LAB, *words]
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False, env=os.environ | env
    )


def document(*words: str) -> Any:
    done = run(*words)
    assert (done.returncode, done.stderr) == (0, ""), done
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts with our agent, one pod each, made by the command from a file."""
    name, path = fresh_name(), tmp_path_factory.mktemp("topology") / "x.toml"
    path.write_text(TOPOLOGY)
    try:
        done = run("up", "--topology", str(path), "--name", name)
        assert done.returncode == 0, done.stderr
        yield Lab.attach(name)
    finally:
        remove(name)


def test_the_hosts_have_the_subnets_of_the_file_by_ordinary_leases(lab: Lab) -> None:
    assert [str(host.subnet) for host in lab.hosts] == ["10.244.1.0/24", "10.244.200.0/24"]
    for host in lab.hosts:
        assert host.control("/v1/status")["lease"]["reserved"] is False
    assert [str(pod.ip) for pod in lab.pods()] == ["10.244.1.2", "10.244.200.2"]


def test_a_link_carries_no_more_than_its_rate(lab: Lab) -> None:
    wait_for_pings(lab)
    source, target = lab.pods()
    assert 0 < tcp_rate(source, target, target.ip, duration_s=1.0) < 30e6


def test_list_has_a_line_for_each_lab(lab: Lab) -> None:
    (row,) = (row for row in document("list", "--json") if row["name"] == lab.name)
    assert row == {
        "name": lab.name,
        "whole": True,
        "hosts": 2,
        "pods": 2,
        "backend": "udp",
        "registry": "file",
        "agents": {"planned": 2, "running": 2},
    }
    lines = [line.split() for line in run("list", COLUMNS="20").stdout.splitlines()]
    assert [lab.name, "2", "2", "udp", "file", "2", "of", "2", "run"] in lines


def test_list_has_what_is_half_made_too() -> None:
    name = fresh_name()
    state_of(name).mkdir(parents=True)
    try:
        assert [name, "half-made"] in [line.split() for line in run("list").stdout.splitlines()]
        (row,) = (row for row in document("list", "--json") if row["name"] == name)
        assert (row["whole"], row["agents"]) == (False, None)
    finally:
        remove(name)


def test_inspect_has_processes_namespaces_ports_and_what_the_agents_say(lab: Lab) -> None:
    found = document("inspect", "--json", "--name", lab.name)
    assert (found["name"], found["folder"], found["faults"]) == (lab.name, str(state_of(lab.name)), {})
    assert [found["plan"]["cables"][host]["rate"] for host in ("h1", "h2")] == [10_000_000] * 2
    assert [host["link"]["rate"] for host in found["hosts"]] == [10_000_000] * 2
    assert found["net"]["namespace"] == f"fu-{lab.name}-net"
    host = found["hosts"][0]
    pid = lab.host("h1").agent_pid()
    # It may be running a tool of the firewall just now.
    (command,) = (each["command"] for each in host["processes"] if each["pid"] == pid)
    assert "-m flannel_udp" in command
    assert {"protocol": "udp", "address": "192.0.2.1", "port": 8285} in host["ports"]
    assert (host["hostname"], host["addresses"], host["subnets"]) == ("h1", ["192.0.2.1"], ["10.244.1.0/24"])
    assert (host["agent"]["pid"], host["agent"]["status"]["ready"]) == (pid, True)
    assert Path(host["agent"]["log"]).exists()
    assert host["pods"] == [
        {
            "name": "h1/p1",
            "hostname": "h1-p1",
            "namespace": f"fu-{lab.name}-h1-p1",
            "processes": [],
            "ports": [],
            "addresses": ["10.244.1.2"],
        }
    ]


@pytest.mark.parametrize("columns", ["20", "200"])
def test_graph_cuts_no_address_and_tells_what_is_wrong(lab: Lab, columns: str) -> None:
    assert run("cut", "h2/p1", "--name", lab.name).returncode == 0
    drawn = run("graph", "--name", lab.name, COLUMNS=columns).stdout
    for text in (f"namespace fu-{lab.name}-h2)", "eth0      192.0.2.2", "10.244.200.1/24", "p1  eth0 10.244.200.2"):
        assert text in drawn
    assert drawn.endswith("now: the link h2/p1 is cut\n")
    assert document("graph", "--json", "--name", lab.name)["faults"] == {"h2/p1": ["the link h2/p1 is cut"]}
    assert "<desc>the link h2/p1 is cut</desc>" in run("graph", "--svg", "--name", lab.name).stdout
    assert run("heal", "--name", lab.name).returncode == 0
    assert "now:" not in run("graph", "--name", lab.name).stdout


def test_logs_follow_until_the_lab_goes() -> None:
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=())) as lab:
        log = lab.host("h1").log_file
        log.write_text("one\n")
        assert run("logs", "h1", "--name", lab.name).stdout == "one\n"
        following = subprocess.Popen(
            [*LAB, "logs", "-f", "h1", "--name", lab.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        too_late = threading.Timer(PATIENCE_S, following.kill)
        too_late.start()
        try:
            assert following.stdout is not None
            assert following.stdout.readline() == "one\n"
            with log.open("a") as more:
                more.write("two\n")
            assert following.stdout.readline() == "two\n"
            lab.down()
            assert following.communicate(timeout=PATIENCE_S) == ("", "")
            assert following.returncode == 0
        finally:
            too_late.cancel()
            following.kill()
            following.communicate()


def test_a_subnet_that_somebody_else_has_is_named() -> None:
    plan = Plan(
        fresh_name(),
        hosts=2,
        pods=0,
        agents=("h1",),
        subnets={"h1": ("10.244.200.0/24",)},
        reservations={"10.244.200.0/24": "192.0.2.2"},
    )
    with pytest.raises(FlannelError, match=r"^h1 was to have 10\.244\.200\.0/24 and has 10\.244\."):
        Lab(plan).up()
