"""The rules stand whatever happens to them, and nothing else is touched."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import WITH_TIME_TO_CLEAN_UP, Agent, subnet_of, wait_for
from tests.support.by_hand import by_hand
from tests.support.firewall import kernel_listing, shown
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import promised

pytestmark = NEEDS_NETNS

AT_ONCE_S = 5.0
"""What the kernel reports is put right in a fraction of a second."""
TOLD_EVERY_S = 60.0
"""That somebody undoes our rules is told once in so long."""
NEVER = "--iptables-resync=3600"
FOREIGN = (
    ("iptables", "-w", "-t", "nat", "-A", "POSTROUTING", "-s", "198.51.100.0/24", "-j", "MASQUERADE"),
    ("iptables", "-w", "-A", "FORWARD", "-s", "198.51.100.0/24", "-j", "DROP"),
    ("iptables", "-w", "-N", "KUBE-FORWARD"),
    ("nft", "add table ip kube-proxy"),
    ("nft", "add chain ip kube-proxy masquerading"),
    ("nft", "add rule ip kube-proxy masquerading counter"),
)


def set_dialect(lab: Lab, dialect: str) -> None:
    """Store the network configuration anew, as an operator would between two runs of the agents."""
    document = json.loads(lab.plan.registry_file.read_text())
    document["config"]["EnableNFTables"] = dialect == "nftables"
    lab.plan.registry_file.write_text(json.dumps(document))


@pytest.fixture(params=["nftables", "iptables"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lab(dialect: str) -> Iterator[Lab]:
    """One host; each test runs the agent itself."""
    config = {"Network": str(OVERLAY), "EnableNFTables": dialect == "nftables"}
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=(), config=config)) as made:
        yield made


@pytest.fixture
def host(lab: Lab) -> Host:
    return lab.hosts[0]


def stand(host: Host, dialect: str, *flags: str) -> bool:
    return kernel_listing(host, dialect) == shown(host, dialect, *flags) != ""


DAMAGE = {
    "nftables": [
        "nft delete table ip flannel-ipv4",
        "nft flush chain ip flannel-ipv4 postrtg",
        "nft insert rule ip flannel-ipv4 forward drop",
        "nft flush ruleset",
    ],
    "iptables": [
        "iptables -t nat -F FLANNEL-POSTRTG",
        "iptables -D FLANNEL-FWD 1",
        "iptables -I FLANNEL-FWD -j DROP",
        "iptables -D FORWARD 1",
        "iptables -t nat -F POSTROUTING",
        "iptables -A FORWARD -m comment --comment twice -j FLANNEL-FWD",
        "nft flush ruleset",
    ],
}


def test_what_is_changed_by_hand_is_put_back_at_once(host: Host, dialect: str) -> None:
    with Agent(host, "--ip-masq", NEVER) as agent:
        agent.wait_ready()
        assert stand(host, dialect)
        began_s = time.monotonic()
        for command in DAMAGE[dialect]:
            host.run(command.split())
            wait_for(f"put right after {command}", lambda: stand(host, dialect), promised(AT_ONCE_S))
        took_s = time.monotonic() - began_s
        told = [line for line in agent.said() if "somebody changed our firewall rules" in line]
        assert 1 <= len(told) <= 1 + took_s // TOLD_EVERY_S  # not one line for each
        assert agent.stop() == 0
    assert stand(host, dialect)  # and there they stay


@pytest.mark.parametrize("dialect", ["iptables"])
def test_changes_that_nobody_reports_are_found_by_the_next_check(host: Host, tmp_path: Path) -> None:
    legacy = shutil.which("iptables-legacy")
    if legacy is None or host.run([legacy, "-w", "-t", "nat", "-S"], check=False).returncode != 0:
        pytest.skip("iptables-legacy does not work here")
    for name in ("iptables", "iptables-restore"):
        (tmp_path / name).symlink_to(shutil.which(name.replace("iptables", "iptables-legacy")) or "")
    with Agent(host, "--ip-masq", "--iptables-resync=1", wrapper=("env", f"PATH={tmp_path}")) as agent:
        agent.wait_ready()
        rules = host.run([legacy, "-w", "-t", "nat", "-S"]).stdout
        assert "-A FLANNEL-POSTRTG" in rules
        host.run([legacy, "-w", "-t", "nat", "-F"])
        listed = partial(host.run, [legacy, "-w", "-t", "nat", "-S"])
        wait_for("put back", lambda: listed().stdout == rules, promised(AT_ONCE_S))
        assert agent.stop() == 0


def test_foreign_rules_are_untouched_and_keep_their_order(host: Host, dialect: str) -> None:
    for command in FOREIGN:
        host.run(list(command) if command[0] == "iptables" else [command[0], *command[1].split()])
    before = foreign_rules(host)
    assert len(before) > len(FOREIGN)
    with Agent(host, "--ip-masq", "--clean-on-exit", program=WITH_TIME_TO_CLEAN_UP) as agent:
        agent.wait_ready()
        assert stand(host, dialect)
        assert foreign_rules(host) == before
        agent.stop()
    assert kernel_listing(host, dialect) == ""
    assert foreign_rules(host) == before


def foreign_rules(host: Host) -> list[str]:
    """Return what the kernel lists of others; iptables' built-in chains are nobody's."""
    saved = host.run(["iptables-save"]).stdout.splitlines()
    ruleset = host.run(["nft", "list", "table", "ip", "kube-proxy"]).stdout.splitlines()
    return [*(line for line in saved if line.startswith("-A") and "FLANNEL" not in line), *ruleset]


def test_a_killed_agent_leaves_the_rules_and_the_next_one_makes_no_second_set(host: Host, dialect: str) -> None:
    with Agent(host, "--ip-masq", NEVER) as agent:
        agent.wait_ready()
    before = kernel_listing(host, dialect)
    assert before == shown(host, dialect)
    with Agent(host, "--ip-masq", NEVER) as agent:
        agent.wait_for_line("offloads in use")
        agent.wait_ready()
        assert kernel_listing(host, dialect) == before
        # They stood already: there was nothing to apply.
        assert not any("applying firewall rules" in line for line in agent.said())


def test_rules_of_an_earlier_subnet_are_replaced(lab: Lab, host: Host, dialect: str) -> None:
    with Agent(host, "--ip-masq", NEVER, "--ip-blackhole-route") as agent:
        agent.wait_ready()
        earlier = subnet_of(host)
        assert routes(host, "blackhole") == [f"blackhole {earlier} metric 4294967295"]
        # Our key goes to another host while we run: lease loss, then another subnet.
        by_hand(lab).delete(f"{earlier}".replace("/", "-"))
        by_hand(lab).put(f"{earlier}".replace("/", "-"), '{"PublicIP": "192.0.2.77"}')
        wait_for("another subnet", lambda: subnet_of(host) != earlier and host.is_ready())
        assert str(earlier) not in kernel_listing(host, dialect)
        assert stand(host, dialect)
        assert routes(host, "blackhole") == [f"blackhole {subnet_of(host)} metric 4294967295"]


def test_a_change_of_dialect_leaves_nothing_in_the_old_one(lab: Lab, host: Host, dialect: str) -> None:
    other = {"nftables": "iptables", "iptables": "nftables"}[dialect]
    with Agent(host, "--ip-masq", NEVER) as agent:
        agent.wait_ready()
        agent.stop()
    set_dialect(lab, other)
    with Agent(host, "--ip-masq", NEVER) as agent:
        agent.wait_ready()
        assert stand(host, other)
        assert kernel_listing(host, dialect) == ""


def test_what_is_no_longer_asked_for_goes(host: Host, dialect: str) -> None:
    for flags in (["--ip-masq"], [], ["--ip-masq", "--iptables-forward-rules=false"]):
        with Agent(host, *flags, NEVER) as agent:
            agent.wait_ready()
            assert stand(host, dialect, *flags[1:])
    with Agent(host, "--iptables-forward-rules=false", NEVER) as agent:
        agent.wait_ready()
        assert kernel_listing(host, dialect) == ""


def test_clean_on_exit_leaves_nothing(host: Host, dialect: str) -> None:
    flags = ("--ip-masq", "--ip-blackhole-route", "--clean-on-exit")
    with Agent(host, *flags, program=WITH_TIME_TO_CLEAN_UP) as agent:
        agent.wait_ready()
        assert stand(host, dialect)
        assert agent.stop() == 0
    assert kernel_listing(host, dialect) == ""
    assert routes(host, "blackhole") == []


SLOWLY = """
import pathlib, sys
from flannel_udp.agent import agent, ending
from flannel_udp.cli.main import main
from flannel_udp.host.firewall.keeper import Firewall
remove = Firewall.remove
def remove_slowly(firewall):  # what runs before that, as a look at the rules, is not of the end
    pathlib.Path({slow!r}).touch()
    return remove(firewall)
Firewall.remove = remove_slowly
ending.CLEAN_TIMEOUT_S, agent.END_TIMEOUT_S = {limit_s}, 60.0
sys.exit(main())
"""


RUNS_MAX = 3
"""Each takes 0.15 s on a host that is none of the fastest, and the end has 0.7 s for all of them."""


@pytest.mark.parametrize("limit_s", [60.0, 0.5], ids=["enough time", "too little"])
def test_slow_tools_are_run_few_times_and_what_stays_is_named_with_what_removes_it(
    host: Host, dialect: str, tmp_path: Path, limit_s: float
) -> None:
    """Counted, not timed, as a busy machine is slower still; with time for all of them, or with too little for one."""
    slow, runs = tmp_path / "slow", tmp_path / "runs"
    for name in ("iptables", "iptables-restore", "nft"):
        script = f'[ -e {slow} ] && echo "{name} $*" >>{runs} && sleep 1.05\nexec {shutil.which(name)} "$@"\n'
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}")
        (tmp_path / name).chmod(0o755)
    path = f"PATH={tmp_path}:{os.environ['PATH']}"
    flags = ("--ip-masq", "--ip-blackhole-route", "--clean-on-exit")
    program = ("-c", SLOWLY.format(slow=str(slow), limit_s=limit_s))
    with Agent(host, *flags, NEVER, wrapper=("env", path), program=program) as agent:
        agent.wait_ready()
        assert agent.stop() == 0
        assert routes(host, "blackhole") == []
        stays = [line for line in agent.said() if line.startswith("the firewall rules stay: ")]
    if limit_s > 1:
        assert stays == []
        assert 1 <= len(runs.read_text().splitlines()) <= RUNS_MAX, runs.read_text()
    else:
        what, commands = stays[0].split(" s: ")
        assert what == "the firewall rules stay: removing them takes over 0.5"
        assert kernel_listing(host, dialect) != ""
        host.run(["sh", "-c", commands])
    assert kernel_listing(host, dialect) == ""


@pytest.mark.parametrize("dialect", ["iptables"])
@pytest.mark.parametrize("flags", [("--ip-blackhole-route",), ()], ids=["wanted", "not wanted"])
def test_the_blackhole_of_a_former_overlay_network_goes(lab: Lab, host: Host, flags: tuple[str, ...]) -> None:
    with Agent(host, "--ip-blackhole-route") as agent:
        agent.wait_ready()
        assert routes(host, "blackhole") == [f"blackhole {subnet_of(host)} metric 4294967295"]
        agent.stop()
    by_hand(lab).configure({"Network": "10.1.0.0/16"})
    with Agent(host, *flags) as agent:
        agent.wait_ready()
        wanted = [f"blackhole {subnet_of(host)} metric 4294967295"] if flags else []
        assert routes(host, "blackhole") == wanted


def test_the_blackhole_gives_way_to_the_bridge_and_drops_without_one(host: Host) -> None:
    with Agent(host, "--ip-blackhole-route") as agent:
        agent.wait_ready()
        subnet = subnet_of(host)
        lookup = ["ip", "route", "get", str(subnet[7])]
        assert host.run(lookup, check=False).returncode != 0
        host.configure("link add cni0 type bridge", f"addr add {subnet[1]}/24 dev cni0", "link set cni0 up")
        assert "dev cni0" in host.run(lookup).stdout


def routes(host: Host, kind: str) -> list[str]:
    return [line.strip() for line in host.run(["ip", "route"]).stdout.splitlines() if line.startswith(kind)]
