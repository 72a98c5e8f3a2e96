"""Tools that are missing, fail, hang or wait for a lock: said once, tried again, not ready meanwhile."""

from __future__ import annotations

import fcntl
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import call_inside
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import Agent, wait_for
from tests.support.firewall import kernel_listing, shown
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

HEALTH_PORT = 8080
SLOW_S = 240.0  # a rest of a minute, then looks that each wait for the lock
TOOLS = {"nftables": ("nft",), "iptables": ("iptables", "iptables-restore")}


@pytest.fixture(params=["nftables", "iptables"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def host(dialect: str) -> Iterator[Host]:
    config = {"Network": str(OVERLAY), "EnableNFTables": dialect == "nftables"}
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=(), config=config)) as lab:
        yield lab.hosts[0]


def readiness(host: Host) -> int:
    """Return the status of /readyz."""

    def ask() -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{HEALTH_PORT}/readyz", timeout=PATIENCE_S) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    return call_inside(host.namespace, ask)


def start(host: Host, path: Path, *flags: str) -> Agent:
    """Start the agent with a PATH of one folder."""
    return Agent(host, "--ip-masq", f"--healthz-port={HEALTH_PORT}", *flags, wrapper=("env", f"PATH={path}"))


def script(path: Path, body: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def real(name: str, folder: Path) -> None:
    """Put the real tool into the folder."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(shutil.which(name) or "")


def working_legacy(host: Host) -> str:
    """Return the path of iptables-legacy; where it does not work there is nothing to test."""
    legacy = shutil.which("iptables-legacy")
    if legacy is None or host.run([legacy, "-w", "-t", "nat", "-S"], check=False).returncode != 0:
        pytest.skip("iptables-legacy does not work here")
    return legacy


def only_legacy(host: Host, folder: Path) -> None:
    """Let `iptables` in the folder be iptables-legacy, which has a lock."""
    working_legacy(host)
    for name in TOOLS["iptables"]:
        (folder / name).symlink_to(shutil.which(name.replace("iptables", "iptables-legacy")) or "")


def problems_with(host: Host, text: str) -> list[str]:
    """Return what `status` says is wrong and has this text in it."""
    problems: list[str] = host.control("/v1/status")["problems"]
    return [problem for problem in problems if text in problem]


def test_a_missing_tool_is_named_and_waited_for(host: Host, dialect: str, tmp_path: Path) -> None:
    with start(host, tmp_path) as agent:
        line = agent.wait_for_line(f"is not in PATH ({tmp_path})")
        assert line == f"firewall rules: {TOOLS[dialect][0]} is not in PATH ({tmp_path}) (trying again every 1 to 5 s)"
        assert readiness(host) == 503
        assert not host.subnet_file.exists()
        for name in reversed(TOOLS[dialect]):  # last the one that is asked for first: never some are there
            real(name, tmp_path)
        agent.wait_ready()
        assert readiness(host) == 200
        assert kernel_listing(host, dialect) == shown(host, dialect)
        faults = [said for said in agent.said() if "is not in PATH" in said]
        assert len(faults) == 1
        agent.wait_for_line("firewall rules: works now")
        assert agent.stop() == 0


def test_a_failing_tool_is_quoted_and_tried_again(host: Host, dialect: str, tmp_path: Path) -> None:
    for name in TOOLS[dialect]:
        script(tmp_path / name, "echo 'Error: no rules today' >&2; exit 2")
    with start(host, tmp_path) as agent:
        agent.wait_for_line(f"{TOOLS[dialect][0]} failed (exit 2): Error: no rules today (trying again")
        assert readiness(host) == 503
        for name in TOOLS[dialect]:
            real(name, tmp_path)
        agent.wait_ready()
        assert agent.stop() == 0


def test_rules_that_are_gone_and_cannot_be_put_back_end_readiness(host: Host, dialect: str, tmp_path: Path) -> None:
    for name in TOOLS[dialect]:
        real(name, tmp_path)
    with start(host, tmp_path, "--iptables-resync=1") as agent:
        agent.wait_ready()
        broken = "nft" if dialect == "nftables" else "iptables-restore"
        script(tmp_path / broken, "exit 2")
        host.run(["nft", "flush", "ruleset"])
        wait_for("not ready", lambda: readiness(host) == 503)
        real(broken, tmp_path)
        wait_for("ready again", lambda: readiness(host) == 200)
        assert kernel_listing(host, dialect) == shown(host, dialect)


def test_an_agent_whose_tool_hangs_stops_at_once(host: Host, dialect: str, tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    for name in TOOLS[dialect]:
        script(tmp_path / name, f"echo $$ >{marker}; exec /bin/sleep 60")
    with start(host, tmp_path) as agent:
        wait_for("the tool runs", lambda: marker.exists() and marker.read_text().endswith("\n"))
        assert agent.stop() == 0
    wait_for("the tool is gone", lambda: not Path(f"/proc/{marker.read_text().strip()}").exists())


def test_nothing_asked_for_needs_no_tool(host: Host, tmp_path: Path) -> None:
    with Agent(host, "--iptables-forward-rules=false", wrapper=("env", f"PATH={tmp_path}")) as agent:
        agent.wait_ready()
        assert agent.stop() == 0


def test_predictable_ports_where_random_ones_are_unknown(host: Host, dialect: str, tmp_path: Path) -> None:
    for name in TOOLS[dialect]:
        real(name, tmp_path)
    tool = "nft" if dialect == "nftables" else "iptables-restore"
    whole = "input=$(/bin/cat); case $input in *random*) exit 2 ;; esac; "
    pass_on = f'printf "%s\\n" "$input" | {shutil.which(tool)} "$@"'
    reads = '[ "$1" = list ] && ' + f'exec {shutil.which(tool)} "$@"; ' if dialect == "nftables" else ""
    script(tmp_path / tool, reads + whole + pass_on)
    with start(host, tmp_path) as agent:
        agent.wait_ready()
        plain = shown(host, dialect, "--ip-masq-fully-random-disable")
        assert kernel_listing(host, dialect) == plain != shown(host, dialect)
        agent.wait_for_line("knows no fully random source ports: masquerading with predictable ones")


@pytest.mark.parametrize("dialect", ["iptables"])  # the one with a lock
def test_a_lock_that_another_program_holds_is_named_and_waited_for(host: Host, tmp_path: Path) -> None:
    only_legacy(host, tmp_path)
    lock = tmp_path / "xtables.lock"  # the machine's own one is not for tests to hold
    wrapper = ("env", f"PATH={tmp_path}", f"XTABLES_LOCKFILE={lock}")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with Agent(host, "--ip-masq", wrapper=wrapper) as agent:
            agent.wait_for_line("another program holds the xtables lock for more than 5 s")
            assert not host.is_ready()
            fcntl.flock(held, fcntl.LOCK_UN)
            agent.wait_ready()


@pytest.mark.parametrize("dialect", ["iptables"])
def test_rules_that_stand_and_cannot_be_looked_at_are_not_said_to_be_gone(host: Host, tmp_path: Path) -> None:
    only_legacy(host, tmp_path)
    lock = tmp_path / "xtables.lock"
    wrapper = ("env", f"PATH={tmp_path}", f"XTABLES_LOCKFILE={lock}")

    said_of_rules = partial(problems_with, host, "the firewall rules for IPv4")

    with Agent(host, "--iptables-resync=1", wrapper=wrapper) as agent, lock.open("w") as held:
        agent.wait_ready()
        assert said_of_rules() == []
        fcntl.flock(held, fcntl.LOCK_EX)
        wait_for("it is said", lambda: said_of_rules() != [])
        why = "iptables: another program holds the xtables lock for more than 5 s"
        assert said_of_rules() == [f"cannot look whether the firewall rules for IPv4 stand: {why}"]
        assert host.is_ready()
        fcntl.flock(held, fcntl.LOCK_UN)
        wait_for("nothing is said", lambda: said_of_rules() == [])


@pytest.mark.parametrize("dialect", ["nftables"])  # whose own rules have no lock
def test_a_drop_of_others_stays_named_while_another_program_holds_the_lock(host: Host, tmp_path: Path) -> None:
    legacy = working_legacy(host)
    host.run([legacy, "-w", "-I", "INPUT", "-p", "udp", "--dport", "8285", "-j", "DROP"])
    looks, lock = tmp_path / "looks", tmp_path / "xtables.lock"
    script(tmp_path / "iptables-legacy", f'echo "$*" >>{looks}; exec {legacy} "$@"')
    wrapper = ("env", f"PATH={tmp_path}:{os.environ['PATH']}", f"XTABLES_LOCKFILE={lock}")

    def names_the_drop() -> bool:
        return problems_with(host, "drops UDP port 8285") != []

    with Agent(host, wrapper=wrapper) as agent, lock.open("w") as held:
        agent.wait_ready()
        wait_for("the drop is named", names_the_drop)
        fcntl.flock(held, fcntl.LOCK_EX)
        before = len(looks.read_text().splitlines())
        wait_for("three looks more", lambda: len(looks.read_text().splitlines()) >= before + 4, SLOW_S)
        assert names_the_drop()
        agent.wait_for_line("looking at the firewall rules of others: iptables-legacy: another program holds the")
        host.run([legacy, "-w", "-F", "INPUT"])
        fcntl.flock(held, fcntl.LOCK_UN)
        wait_for("nothing is named", lambda: not names_the_drop(), SLOW_S)
