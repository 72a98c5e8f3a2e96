"""A registry that is away, refuses us or holds nonsense: said once, tried again, and all is well when it is."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from flannel_udp.control.peer_log import SPAN_LINES, SPAN_S
from flannel_udp.lab.etcd_server import EtcdServer
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import ETCD_PORT, UNDERLAY_GATEWAY, Plan
from tests.support.agents import Agent, Log, log_of, peers_of, remains_of, subnet_of, wait_for, wait_for_peers
from tests.support.by_hand import PREFIX, EtcdByHand
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import promised
from tests.support.standstill import freeze

pytestmark = NEEDS_NETNS

RETRY_S = 15.0
"""The longest pause between two tries is 5 s."""

USE_ETCD = ("--registry=etcd", f"--etcd-endpoints=http://{UNDERLAY_GATEWAY}:{ETCD_PORT}")
GOOD = '{"config": {"Network": "10.244.0.0/16"}, "subnets": {}}'
PASSWORD, WRONG_PASSWORD = "right-and-secret", "wrong-and-secret"


@pytest.fixture
def host() -> Iterator[Host]:
    """A host on which nothing runs yet, and a file registry."""
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        yield lab.hosts[0]


# A registry file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "{file}: line 1 column 2: not JSON"),
        ("[]", "{file}: must be a JSON object"),
        ('{"config": {"Network": "10.244.0.0/16"}, "subnets": 7}', '{file}: "subnets" must be a JSON object'),
        ("{}", "{file} holds no network configuration"),
        ('{"config": {"Network": "10.244.0.0"}}', "Network"),
    ],
    ids=["cut off", "no object", "subnets no object", "no config", "no CIDR"],
)
def test_a_broken_file_is_told_once_and_waited_for(host: Host, text: str, said: str) -> None:
    registry = host.plan.registry_file
    registry.write_text(text)
    with Agent(host) as agent:
        line = agent.wait_for_line(said.format(file=f"registry file {registry}"))
        assert line.startswith("reading the network configuration failed: ")
        assert line.endswith("(trying again every 1 to 5 s)")
        assert remains_of(host) == {"flannel-udp.sock", "flannel-udp.sock.handover"}
        assert registry.read_text() == text
        registry.write_text(GOOD)
        wait_for("it works", host.is_ready, promised(RETRY_S))
        assert agent.said().count(line) == 1
        assert "reading the network configuration: works now" in agent.said()


def test_every_fault_of_a_configuration_is_a_line(host: Host) -> None:
    host.plan.registry_file.write_text('{"config": {"Network": "10.244.0.0/16", "SubnetLen": 33, "Backend": 5}}')
    with Agent(host) as agent:
        agent.wait_for_line("Backend")
        complaints = [line for line in agent.said() if "failed" in line]
        assert len(complaints) == 2
        assert any("SubnetLen" in line for line in complaints)


def test_a_file_that_breaks_while_traffic_flows_costs_no_packet(pair: Lab) -> None:
    h1, h2 = pair.hosts
    registry = pair.plan.registry_file
    good = registry.read_text()
    with Flow(h1.pods[0], h2.pods[0]) as flow:
        registry.write_text(good[: len(good) // 2])
        log = h1.log_file
        wait_for("h1 says so", lambda: "watching the subnets: " in log.read_text())
        assert registry.read_text() == good[: len(good) // 2]
        registry.write_text(good)
        wait_for("h1 says so", lambda: "watching the subnets: works again" in log.read_text(), promised(RETRY_S))
        assert len(peers_of(h1)) == 1
        flow.wait_for_one_sent_from_now()
    assert flow.missing == []


@pytest.mark.parametrize("times", [1, 10])
def test_a_file_that_is_gone_for_a_while_is_an_outage_in_the_status_and_costs_no_packet(pair: Lab, times: int) -> None:
    h1, h2 = pair.hosts
    registry = pair.plan.registry_file
    aside = registry.with_name("aside.json")
    log = h1.log_file
    before = log.read_text().count("watching the subnets: ")
    with Flow(h1.pods[0], h2.pods[0]) as flow:
        for _ in range(times):
            registry.rename(aside)
            wait_for("h1 shows it", lambda: h1.control("/v1/status")["degraded"] == ["registry"])
            (problem,) = h1.control("/v1/status")["problems"]
            assert (
                f": registry file {registry} is gone: put it back: the peers stay as they were, our lease ends"
                in problem
            )
            assert h1.is_ready()
            assert len(peers_of(h1)) == 1
            aside.rename(registry)
            wait_for("it is over", lambda: h1.control("/v1/status")["problems"] == [], promised(RETRY_S))
        flow.wait_for_one_sent_from_now()
    assert flow.missing == []
    assert log.read_text().count("watching the subnets: ") == before + 2 * times
    assert "lost our subnet" not in log.read_text()


def test_an_outage_that_goes_on_for_another_reason_says_so(pair: Lab) -> None:
    h1, _ = pair.hosts
    registry = pair.plan.registry_file
    good, aside = registry.read_text(), registry.with_suffix(".new")
    log = Log(h1)

    def put(text: str) -> None:
        aside.write_text(text)
        aside.replace(registry)

    def problem(reason: str) -> str:
        wait_for(f"h1 shows {reason!r}", lambda: reason in "".join(h1.control("/v1/status")["problems"]))
        (text,) = h1.control("/v1/status")["problems"]
        assert text.startswith("the registry is away since ")
        return str(text)

    registry.unlink()
    gone = problem("is gone: put it back")
    time.sleep(1.1)
    put("{")
    broken = problem("line 1 column 2: not JSON")
    since, _, _ = gone.partition(": registry file")
    assert broken.startswith(f"{since}: registry file")
    put(good)
    wait_for("it is over", lambda: h1.control("/v1/status")["problems"] == [], promised(RETRY_S))
    first, second, third = log.lines("watching the subnets: ")
    assert "is gone" in first
    assert "not JSON" in second
    assert "works again" in third


def test_a_file_in_a_read_only_folder_that_reserves_our_subnet_does(host: Host) -> None:
    registry = host.plan.registry_file
    ours = {"PublicIP": str(host.underlay), "PublicIPv6": None}
    registry.write_text(json.dumps(json.loads(GOOD) | {"subnets": {"10.244.7.0-24": ours}}))
    before = registry.read_bytes()
    folder = registry.parent
    script = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && mount -t tmpfs none {host.state}"
    with Agent(host, wrapper=("sh", "-c", f'{script} && exec "$@"', "sh")) as agent:
        agent.wait_for_line("subnet 10.244.7.0/24")
        assert not [line for line in agent.said() if "registry file" in line]
    assert registry.read_bytes() == before


def test_a_file_that_cannot_be_written_is_told_once_and_tried_again(host: Host) -> None:
    folder = host.plan.registry_file.parent
    before = sorted(path.name for path in folder.iterdir())
    # Read-only for this agent alone: `ip netns exec` gives it a mount namespace of its own.
    script = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && mount -t tmpfs none {host.state}"
    wrapper = ("sh", "-c", f'{script} && exec "$@"', "sh")
    with Agent(host, wrapper=wrapper) as agent:
        line = agent.wait_for_line("acquiring a subnet failed")
        assert line == (
            f"acquiring a subnet failed: cannot lock registry file {host.plan.registry_file}: Read-only file system "
            "(trying again every 1 to 5 s)"
        )
        assert host.plan.registry_file.read_text().count("PublicIP") == 0
        assert agent.stop() == 0
        assert agent.said().count(line) == 1
    assert sorted(path.name for path in folder.iterdir()) == before
    assert remains_of(host) == set()


def test_subnet_space_exhausted_is_told_once_and_a_freed_subnet_taken(host: Host) -> None:
    config = {"Network": "10.244.0.0/16", "SubnetMin": "10.244.1.0", "SubnetMax": "10.244.2.0"}
    others = {f"10.244.{i}.0-24": {"PublicIP": f"192.0.2.{100 + i}"} for i in (1, 2)}
    registry = host.plan.registry_file
    registry.write_text(json.dumps({"config": config, "subnets": others}))
    with Agent(host) as agent:
        line = agent.wait_for_line("acquiring a subnet failed")
        assert line == (
            "acquiring a subnet failed: all 2 subnets of length /24 from 10.244.1.0 to 10.244.2.0 are taken: "
            "delete stale leases or widen the network configuration (trying again every 1 to 5 s)"
        )
        assert host.control("/v1/status")["state"] == "waiting for a lease"
        assert not host.subnet_file.exists()
        del others["10.244.2.0-24"]
        registry.write_text(json.dumps({"config": config, "subnets": others}))
        wait_for("it has the free one", host.is_ready, promised(RETRY_S))
        assert str(subnet_of(host)) == "10.244.2.0/24"
        assert agent.said().count(line) == 1


# etcd


@contextmanager
def etcd_of(plan: Plan) -> Iterator[EtcdServer]:
    """An etcd beside the hosts of a lab, not yet started; the lab's own would run from the beginning."""
    server = EtcdServer(
        plan.state / "own-etcd",
        address=str(UNDERLAY_GATEWAY),
        client_port=ETCD_PORT,
        peer_port=ETCD_PORT + 1,
        command=("ip", "netns", "exec", plan.namespace("net"), "etcd"),
    )
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def etcd(host: Host, needs_etcd: None) -> Iterator[EtcdServer]:
    with etcd_of(host.plan) as server:
        yield server


def etcdctl(host: Host, *arguments: str, stdin: str = "") -> None:
    EtcdByHand(Lab.attach(host.plan.name)).etcdctl(*arguments, stdin=stdin)


def test_an_absent_etcd_is_told_once_and_waited_for(host: Host, etcd: EtcdServer) -> None:
    with Agent(host, *USE_ETCD) as agent:
        line = agent.wait_for_line("reading the network configuration failed")
        assert "192.0.2.254:2379" in line
        assert remains_of(host) == {"flannel-udp.sock", "flannel-udp.sock.handover"}
        etcd.start()
        absent = agent.wait_for_line("no network configuration", promised(RETRY_S))  # the next of what is missing
        assert "config put" in absent
        etcdctl(host, "put", f"{PREFIX}/config", '{"Network":"10.244.0.0/16"}')
        wait_for("it works", host.is_ready, promised(RETRY_S))
        assert agent.said().count(line) == 1
        assert agent.said().count(absent) == 1


def test_an_etcd_that_goes_away_and_comes_back_costs_no_packet(needs_etcd: None) -> None:
    with Lab(Plan(fresh_name(), hosts=2, agents=())) as lab, etcd_of(lab.plan) as server:
        server.start()
        hand = EtcdByHand(lab)
        hand.etcdctl("put", f"{PREFIX}/config", '{"Network":"10.244.0.0/16"}')
        h1, h2 = lab.hosts
        for host in lab.hosts:
            host.start_agent(*USE_ETCD)
        for host in lab.hosts:
            host.wait_ready()
            host.attach_pods()
        wait_for_peers(lab.hosts)
        with Flow(h1.pods[0], h2.pods[0]) as flow:
            server.kill()
            wait_for("h1 says so", lambda: "watching the subnets: " in h1.log_file.read_text())
            server.start()
            hand.put("10.244.220.0-24", '{"PublicIP":"192.0.2.99"}')
            wait_for("h1 follows again", lambda: "10.244.220.0/24" in peers_of(h1), promised(RETRY_S))
            flow.wait_for_one_sent_from_now()
        assert flow.missing == []
        assert len([line for line in log_of(h1) if "works again" in line]) == 1


def test_a_wrong_etcd_password_is_told_once_never_shown_and_tried_again(host: Host, etcd: EtcdServer) -> None:
    etcd.start()
    etcdctl(host, "put", f"{PREFIX}/config", '{"Network":"10.244.0.0/16"}')
    etcdctl(host, "user", "add", f"root:{PASSWORD}")
    etcdctl(host, "user", "grant-role", "root", "root")
    etcdctl(host, "auth", "enable")
    environment = {"FLANNELD_ETCD_PASSWORD": WRONG_PASSWORD}
    with Agent(host, *USE_ETCD, "--etcd-username=root", environment=environment) as agent:
        line = agent.wait_for_line("reading the network configuration failed")
        assert "password" in line
        assert remains_of(host) == {"flannel-udp.sock", "flannel-udp.sock.handover"}
        # The operator gives etcd the password that the agents have.
        etcdctl(host, f"--user=root:{PASSWORD}", "user", "passwd", "root", "--interactive=false", stdin=WRONG_PASSWORD)
        wait_for("it works", host.is_ready, promised(RETRY_S))
        said = agent.said()
        assert said.count(line) == 1
    assert not any("secret" in line for line in said)


def test_a_lease_that_cannot_be_renewed_is_given_up_before_etcd_gives_it_away(host: Host, etcd: EtcdServer) -> None:
    etcd.start()
    hand = EtcdByHand(Lab.attach(host.plan.name))
    hand.etcdctl("put", f"{PREFIX}/config", '{"Network":"10.244.0.0/16"}')
    # A lease of 16 s, which the agent keeps alive because it has the host's address: it stops 4 s before its end.
    entries = {"10.244.7.0-24": f'{{"PublicIP":"{host.underlay}"}}'}
    with ExitStack() as running:
        with hand.short_leases(entries, 16):
            agent = running.enter_context(Agent(host, *USE_ETCD))
            agent.wait_ready()
        assert str(subnet_of(host)) == "10.244.7.0/24"
        freeze(etcd.pid)
        stopped_s, used_s = time.monotonic(), cpu_s(agent)
        line = agent.wait_for_line("lost our subnet")
        # 12 s after the last renewal was sent: before etcd may give it away, after 16 s, but on a very busy machine.
        assert time.monotonic() - stopped_s < 12 + promised(1.0)
        key = "10.244.7.0-24 could not be renewed in time: the registry may soon give it to another host"
        assert line == f"lost our subnet 10.244.7.0/24: {key}; forwarding stopped"
        assert host.control("/v1/status")["ready"] is False
        os.kill(etcd.pid, signal.SIGCONT)
        wait_for("the subnet is held again", host.is_ready, promised(RETRY_S))
        assert str(subnet_of(host)) == "10.244.7.0/24"
        cpu = (cpu_s(agent) - used_s) / (time.monotonic() - stopped_s)
        print(f"CPU while etcd hung: {cpu:.1%}; {len(agent.said())} lines")  # noqa: T201 - pytest -s shows it
        assert len(agent.said()) < 30


def cpu_s(agent: Agent) -> float:
    """Return how much processor time the agent has used."""
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_poisoned_store_costs_no_good_peer_and_few_lines(host: Host, etcd: EtcdServer) -> None:
    etcd.start()
    hand = EtcdByHand(Lab.attach(host.plan.name))
    hand.etcdctl("put", f"{PREFIX}/config", '{"Network":"10.244.0.0/16"}')
    good = {f"10.244.{i}.0/24": f"192.0.2.{i}" for i in range(101, 104)}
    for subnet, address in good.items():
        hand.put(subnet.replace("/", "-"), f'{{"PublicIP":"{address}"}}')
    start_s = time.monotonic()
    with Agent(host, *USE_ETCD) as agent:
        agent.wait_ready()
        wait_for("the good peers", lambda: peers_of(host) == good)
        before = len(agent.said())
        own = f'{{"PublicIP":"{host.underlay}"}}'
        for key, value in {
            "no subnet": "?",
            "10.244.110.0-24": "{",
            "0.0.0.0-0": '{"PublicIP":"192.0.2.110"}',
            "10.244.111.0-24": own,
        }.items():
            hand.put(key, value)
        hand.etcdctl("put", f"{PREFIX}/subnets/10.244.112.0-24", stdin="x" * 1024 * 1024)
        for part in range(100):  # 100 puts a transaction are fewer than etcd's bound of 128
            puts = "".join(f"put {PREFIX}/subnets/junk{part}x{n} ?\n" for n in range(100))
            hand.etcdctl("txn", stdin=f"\n{puts}\n\n")
        hand.put("10.244.104.0-24", '{"PublicIP":"192.0.2.104"}')
        wait_for("the peer after them", lambda: "10.244.104.0/24" in peers_of(host), promised(RETRY_S))
        assert peers_of(host) == good | {"10.244.104.0/24": "192.0.2.104"}
        lines = agent.said()[before:]
        print(f"{len(lines)} lines for 10,005 bad keys")  # noqa: T201 - pytest -s shows it
        # The first one began with the good peers, and on a busy machine it all takes longer than one.
        n_spans = 1 + (time.monotonic() - start_s) // SPAN_S
        assert len(lines) <= SPAN_LINES * n_spans
        assert all(sum(f"'{key}'" in line for line in lines) == 1 for key in ("no subnet", "0.0.0.0-0"))
