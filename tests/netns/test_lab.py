"""The lab as a library: what comes up works, and whatever was there is gone after it goes down."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.errors import FlannelError
from flannel_udp.lab import lab as lab_module
from flannel_udp.lab import netns
from flannel_udp.lab import plan as plan_module
from flannel_udp.lab.capture import trace
from flannel_udp.lab.lab import Lab, lab_names, remove
from flannel_udp.lab.naive import NaivePeer
from flannel_udp.lab.plan import STATE_DIR, Plan
from flannel_udp.lab.probe import ping, ping_matrix, tcp_rate
from flannel_udp.lab.sites import Router
from flannel_udp.lab.tunnel import tunnel_of
from tests.support.agents import unanswered
from tests.support.labs import NEEDS_NETNS, cleaned_up, fresh_name, longest_packet, namespaces_of, state_of
from tests.support.patience import PATIENCE_S, promised
from tests.support.socat import SocatPeer
from tests.support.transfer import Transfer

pytestmark = NEEDS_NETNS

TRANSFER_BYTES = 2_000_000
LAB_LINKS = {"underlay", "h1", "h2", "cni0", "p1", "flannel0"}
SUBNETS = {f"h{i}": IPv4Network(f"10.244.{i}.0/24") for i in range(1, 6)}


@contextmanager
def naive_lab(hosts: int = 2, pods: int = 1, registry: str = "file") -> Iterator[Lab]:
    """A lab whose hosts all run the naive peer."""
    with Lab(Plan(fresh_name(), hosts=hosts, pods=pods, agents=(), registry=registry)) as lab, ExitStack() as peers:
        for host in lab.hosts:
            others = {SUBNETS[other.name]: other.underlay for other in lab.hosts if other is not host}
            peers.enter_context(NaivePeer(host, SUBNETS[host.name], others))
        yield lab


def root_links() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


def test_pods_behind_naive_peers_reach_each_other_from_every_host_to_every_host() -> None:
    with naive_lab(hosts=3, pods=2) as lab:
        times = ping_matrix(lab.pods(), PATIENCE_S)
    assert len(times) == 30
    assert None not in times.values()


def test_a_naive_pair_carries_tcp() -> None:
    with naive_lab() as lab:
        source, target = lab.pods()
        with Transfer(source, target, TRANSFER_BYTES):
            pass


def test_tcp_sends_something_however_short_the_time() -> None:
    with Lab(Plan(fresh_name(), hosts=2, pods=0, agents=())) as lab:
        h1, h2 = lab.hosts
        assert tcp_rate(h1, h2, h2.underlay, duration_s=0.0) > 0


def test_a_packet_is_seen_at_every_step_and_loses_one_of_its_ttl_at_each_router() -> None:
    with naive_lab() as lab:
        source, target = lab.pods()
        steps = trace(source, target, timeout_s=PATIENCE_S)
    packets = [step.packet for step in steps]
    assert [step.interface for step in steps] == ["eth0", "flannel0", "eth0", "flannel0", "eth0"]
    assert all(packets)
    inner = [packet.inside(tunnel_of(source.plan)) or packet for packet in packets if packet]
    assert [packet.ttl for packet in inner] == [64, 63, 62, 61, 60]
    assert packets[2] is not None
    assert (str(packets[2].source), str(packets[2].destination)) == ("192.0.2.1", "192.0.2.2")


def test_a_host_behind_a_router_is_reached_over_it_alone() -> None:
    with Lab(Plan(fresh_name(), hosts=3, pods=0, routers={"r1": Router()}, behind={"h3": "r1"})) as lab:
        h1, h2, h3 = lab.hosts
        assert "via 192.0.2.201 " in h1.run(["ip", "route", "get", str(h3.underlay)]).stdout
        assert "via" not in h1.run(["ip", "route", "get", str(h2.underlay)]).stdout
        assert "via 172.16.1.254 " in h3.run(["ip", "route", "get", str(h1.underlay)]).stdout
        replies = [*ping(h1, [h2.underlay, h3.underlay], PATIENCE_S), *ping(h3, [h2.underlay], PATIENCE_S)]
        assert None not in replies


def test_one_host_alone_is_given_arguments() -> None:
    with Lab(Plan(fresh_name(), pods=0, agent_args=("--workers=1",), host_args={"h2": ("--workers=3",)})) as lab:
        assert [host.control("/v1/status")["workers"] for host in lab.hosts] == [1, 3]


def test_a_packet_that_never_arrives_is_told_from_one_that_does() -> None:
    with naive_lab() as lab:
        source, target = lab.pods()
        lab.host("h2").configure("link set cni0 down")
        steps = trace(source, target)
    assert [step.packet is not None for step in steps] == [True, True, True, True, False]


def test_a_device_that_is_missing_is_named_by_the_trace() -> None:
    with naive_lab() as lab:
        lab.host("h2").configure("link del flannel0")
        with pytest.raises(FlannelError, match="h2: cannot listen on flannel0: No such device"):
            trace(*lab.pods())


def test_socat_and_the_naive_peer_understand_each_other() -> None:
    with Lab(Plan(fresh_name(), agents=())) as lab:
        h1, h2 = lab.hosts
        with (
            NaivePeer(h1, SUBNETS["h1"], {SUBNETS["h2"]: h2.underlay}),
            SocatPeer(h2, SUBNETS["h2"], h1.underlay),
        ):
            assert unanswered(lab.pods()) == []


def test_a_peer_that_cannot_start_says_why() -> None:
    with Lab(Plan(fresh_name(), agents=())) as lab:
        h1, h2 = lab.hosts
        with h1.socket(socket.AF_INET, socket.SOCK_DGRAM) as squatter:
            squatter.bind((str(h1.underlay), 8285))
            with pytest.raises(FlannelError, match=r"h1: the peer ended: .*Address already in use"):
                NaivePeer(h1, SUBNETS["h1"], {SUBNETS["h2"]: h2.underlay})


def test_down_leaves_no_namespace_link_process_or_file() -> None:
    links = root_links()
    with naive_lab(registry="etcd") as lab:
        sleeper = lab.node("h1/p1").popen(["sleep", "1000"])
        stubborn = lab.host("h2").popen(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
        pids = [*netns.processes(namespaces_of(lab.name)), sleeper.pid, stubborn.pid]
        assert len(namespaces_of(lab.name)) == 5
        assert len(set(pids)) >= 5  # two peers, etcd, two of ours
        lab.down()
        sleeper.wait(PATIENCE_S)
        stubborn.wait(PATIENCE_S)
        assert not namespaces_of(lab.name)
        assert not state_of(lab.name).exists()
        assert not (root_links() - links) & LAB_LINKS  # a kernel module that another test loads may bring others
        assert not [pid for pid in pids if Path(f"/proc/{pid}/ns/net").exists()]
    assert lab.name not in lab_names()


# Kernels take a process out of its namespaces before they close its files, and flannel0 takes its time.
LINGERS = """
import ctypes, signal, time

def end(*_):
    assert ctypes.CDLL(None).unshare(0x40000000) == 0  # CLONE_NEWNET
    time.sleep(0.5)
    raise SystemExit

signal.signal(signal.SIGTERM, end)
print("there", flush=True)
signal.pause()
"""


def test_down_waits_for_an_agent_that_has_left_its_namespace_and_not_ended_yet() -> None:
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=())) as lab:
        (host,) = lab.hosts
        process = host._child = host.popen([sys.executable, "-c", LINGERS], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout as said:
            assert said.readline() == "there\n"
    assert process.returncode == 0


def test_down_twice_and_down_of_nothing_are_no_fault() -> None:
    lab = Lab(Plan(fresh_name(), agents=()))
    lab.down()
    with lab:
        lab.down()
    assert remove(lab.name) is False


def test_a_lab_comes_up_while_whoever_removes_another_takes_the_folder_of_all_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labs = tmp_path / "labs"
    for module in (lab_module, plan_module):
        monkeypatch.setattr(module, "STATE_DIR", labs)
    code = "import os, sys\nwhile True:\n try: os.rmdir(sys.argv[1])\n except OSError: pass\n"
    with subprocess.Popen([sys.executable, "-c", code, str(labs)]) as removing:
        try:
            for _ in range(10):
                with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=())) as lab:
                    assert lab.name in lab_names()
                assert lab.name not in lab_names()
        finally:
            removing.kill()


def test_a_folder_of_all_labs_that_comes_and_goes_while_a_lab_comes_up_is_not_taken_for_the_labs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labs, mkdir, met = tmp_path / "labs", os.mkdir, list[Path]()
    for module in (lab_module, plan_module):
        monkeypatch.setattr(module, "STATE_DIR", labs)

    def mkdir_where_others_do(path: Path, mode: int = 0o777) -> None:
        if path == labs and not met:
            met.append(path)
            raise FileExistsError(path)  # another lab's, which is removed before anybody looks
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", mkdir_where_others_do)
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=())) as lab:
        assert lab.name in lab_names()
    assert met == [labs]


def test_a_second_lab_of_the_same_name_is_refused_and_the_first_survives() -> None:
    with naive_lab() as lab:
        message = f"a lab named {lab.name} is up.*flannel-udp lab down --name {lab.name}"
        with pytest.raises(FlannelError, match=message):
            Lab(lab.plan).up()
        assert unanswered(lab.pods()) == []


def test_two_labs_side_by_side_use_the_same_addresses_and_do_not_meet() -> None:
    with naive_lab() as one, naive_lab() as two:
        assert [pod.ip for pod in one.pods()] == [pod.ip for pod in two.pods()]
        two.host("h2").configure("link set eth0 down")
        assert unanswered(one.pods()) == []
        assert set(ping_matrix(two.pods(), timeout_s=0.3).values()) == {None}


def test_another_process_attaches_to_a_lab() -> None:
    with naive_lab(pods=2) as lab:
        attached = Lab.attach(lab.name)
        assert attached.plan == lab.plan
        assert attached.status() == lab.status()
        assert attached.node("h2/p2").run(["ip", "-br", "addr", "show", "eth0"]).stdout.split()[2] == "10.244.2.3/24"
    with pytest.raises(FlannelError, match=f"no lab named {lab.name} is up"):
        Lab.attach(lab.name)


# Each brings a lab half up, in a process of its own that is then killed as the kernel's OOM killer would.
KILLED_AT = {
    "when it is up": "lab.up(); lab.node('h1/p1').popen(['sleep', '1000'], new_session=True); wait()",
    "before its plan is written": "Plan.save = lambda self: wait(); lab.up()",
    "before its agents start": "Lab.start_agents = lambda *_: wait(); lab.up()",
}


@pytest.mark.parametrize("moment", KILLED_AT)
def test_a_killed_lab_is_known_refused_and_removed(moment: str) -> None:
    name = fresh_name()
    code = (
        "import time\nfrom flannel_udp.lab.lab import Lab, Plan\n"
        "def wait(): print('now', flush=True); time.sleep(1000)\n"
        f"lab = Lab(Plan({name!r}, agents=()))\n{KILLED_AT[moment]}\n"
    )
    with cleaned_up(Lab(Plan(name, agents=()))) as lab:
        victim = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert victim.stdout is not None
        with victim.stdout as said:
            assert said.readline() == "now\n"
            victim.kill()
            victim.wait()
        assert name in lab_names()
        with pytest.raises(FlannelError, match=f"lab down --name {name}"):
            lab.up()
        assert remove(name) is True
        assert name not in lab_names()
        assert not namespaces_of(name)
        lab.up()


def test_namespaces_without_a_folder_are_remains_too() -> None:
    with cleaned_up(Lab(Plan(fresh_name(), agents=()))) as lab:
        netns.ip_batch([f"netns add {lab.plan.namespace('h9')}"])
        with pytest.raises(FlannelError, match="a killed one left its remains"):
            lab.up()
        assert not state_of(lab.name).exists()
        assert lab.name in lab_names()


def test_an_agent_that_ends_is_reported_with_its_last_words_and_the_lab_goes_down() -> None:
    lab = Lab(Plan(fresh_name(), agent_args=("--no-such-flag",)))
    with pytest.raises(FlannelError, match=r"(?s)h1: the agent ended; its last words:\n.*no-such-flag"):
        lab.up()
    assert not namespaces_of(lab.name)
    assert not state_of(lab.name).exists()


def test_an_agent_is_stopped_killed_and_started_again_also_by_another_process() -> None:
    with Lab(Plan(fresh_name())) as lab:
        ours = lab.host("h1")
        attached = Lab.attach(lab.name).host("h1")
        subnet, other, pid = ours.subnet, lab.host("h2").subnet, ours.agent_pid()
        assert other is not None
        with pytest.raises(FlannelError, match=rf"h1: the agent runs already \(process {pid}\)"):
            attached.start_agent()
        attached.stop_agent()
        assert ours.agent_pid() is None
        attached.start_agent()
        attached.wait_ready()
        assert ours.agent_pid() == attached.agent_pid() != pid
        ours.kill_agent()
        assert attached.agent_pid() is None
        with pytest.raises(FlannelError, match="h1: the agent ended"):
            attached.wait_ready()
        ours.start_agent()
        ours.wait_ready()
        ours.wait_peers({other})
        assert ours.subnet == subnet
        assert unanswered(lab.pods()) == []


def test_an_agent_whose_start_is_interrupted_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=())) as lab:
        host = lab.host("h1")
        popen = host.popen

        def popen_and_be_interrupted(*words: Any, **options: Any) -> subprocess.Popen[str]:
            child = popen(*words, **options)
            signal.raise_signal(signal.SIGINT)
            return child

        monkeypatch.setattr(host, "popen", popen_and_be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            host.start_agent()
        host.wait_ready()
        attached = Lab.attach(lab.name).host("h1")
        assert attached.agent_pid() == host.control("/v1/status")["pid"]
        attached.stop_agent()  # SIGTERM is not blocked in it
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_take_over_that_is_interrupted_leaves_one_agent_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with Lab(Plan(fresh_name(), hosts=1)) as lab:
        host = lab.host("h1")
        former, wait_until = host.agent_pid(), netns.wait_until

        def interrupt(*, first: bool) -> None:
            def wait(done: Callable[[], bool], timeout_s: float) -> bool:
                assert first or wait_until(done, timeout_s)
                raise KeyboardInterrupt

            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(netns, "wait_until", wait)
                host.replace_agent(PATIENCE_S)

        interrupt(first=True)  # before anything has happened
        assert wait_until(lambda: set(netns.processes([host.namespace])) == {former}, PATIENCE_S)
        assert (host.agent_pid(), host.is_ready()) == (former, True)
        interrupt(first=False)  # when it was done
        known = Lab.attach(lab.name).host("h1").agent_pid()
        assert known == host.control("/v1/status")["pid"] != former


@pytest.mark.parametrize("registry", ["file", "etcd"])
def test_our_agent_and_a_naive_peer_share_a_lab(registry: str) -> None:
    reservations = {str(SUBNETS["h2"]): "192.0.2.2"}
    plan = Plan(fresh_name(), pods=2, registry=registry, agents=("h1",), reservations=reservations)
    with Lab(plan) as lab:
        h1, h2 = lab.hosts
        assert h1.subnet is not None
        with NaivePeer(h2, SUBNETS["h2"], {h1.subnet: h1.underlay}):
            times = ping_matrix(lab.pods(), PATIENCE_S)
            source, target = h2.pod("p1"), h1.pod("p1")
            with Transfer(source, target, TRANSFER_BYTES):
                pass
    assert len(times) == 12
    assert None not in times.values()


def test_a_stale_pid_file_never_leads_to_a_stranger() -> None:
    with Lab(Plan(fresh_name(), agents=())) as lab:
        host = lab.host("h1")
        stranger = subprocess.Popen(["sleep", "1000"])
        try:
            (host.state / "agent.pid").write_text(f"{stranger.pid}\n")
            assert host.agent_pid() is None
            with pytest.raises(FlannelError, match="h1: the agent does not run"):
                host.kill_agent()
            assert netns.end_process(host.namespace, stranger.pid, signal.SIGKILL)
            lab.down()
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()


def test_a_command_that_fails_or_hangs_is_one_clear_error() -> None:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        host = lab.host("h1")
        assert host.run(["false"], check=False).returncode == 1
        assert host.run(["cat"], stdin="hello").stdout == "hello"
        with pytest.raises(FlannelError, match=r"h1: `sh -c echo oops >&2; exit 3` failed \(exit 3\): oops"):
            host.run(["sh", "-c", "echo oops >&2; exit 3"])
        started = time.monotonic()
        with pytest.raises(FlannelError, match=r"h1: `sleep 1000` did not end within 0\.2 s"):
            host.run(["sleep", "1000"], timeout_s=0.2)
        assert time.monotonic() - started < promised(5.0)
        with pytest.raises(FlannelError, match=r"`ip link set nix up` failed in namespace \S+-h1: Cannot find device"):
            host.configure("link set lo up", "link set nix up", "link set lo up")


@pytest.mark.parametrize("path", ["h3", "h1/p2", "x", "", "h1/"])
def test_a_node_that_is_not_there_is_named(path: str) -> None:
    lab = Lab(Plan(fresh_name(), hosts=2, pods=1))
    if path == "h1/":
        assert lab.node(path) is lab.host("h1")
        return
    with pytest.raises(FlannelError, match="has no"):
        lab.node(path)


@pytest.mark.parametrize(
    ("offload", "cut", "coalesced"), [("whole", False, True), ("wire", True, True), ("plain", True, False)]
)
def test_offload_decides_whether_super_packets_leave_a_host_and_whether_one_sees_them(
    offload: str, *, cut: bool, coalesced: bool
) -> None:
    with Lab(Plan(fresh_name(), pods=0, agents=(), offload=offload, underlay_mtu=1400)) as lab:
        longest = longest_packet(lab, lab.net, "h1")
        assert longest == 1400 if cut else longest > 1400
        assert (longest_packet(lab, lab.host("h2"), "eth0") > 1400) is coalesced


def test_the_registry_holds_configuration_and_reservations_when_the_agents_start() -> None:
    reservations = {"10.244.9.0/24": "192.0.2.2"}
    with Lab(Plan(fresh_name(), agents=(), registry="etcd", reservations=reservations)) as lab:
        command = ["etcdctl", "--endpoints=192.0.2.254:2379", "get", "--prefix", "/coreos.com/network/"]
        stored = lab.host("h1").run(["env", "ETCDCTL_API=3", *command]).stdout.splitlines()
    assert stored == [
        "/coreos.com/network/config",
        '{"Network":"10.244.0.0/16"}',
        "/coreos.com/network/subnets/10.244.9.0-24",
        '{"PublicIP":"192.0.2.2"}',
    ]


def test_five_hosts_with_two_pods_come_up_within_seconds() -> None:
    started = time.monotonic()
    with naive_lab(hosts=5, pods=2) as lab:
        assert time.monotonic() - started < promised(5.0)
        assert unanswered(lab.pods()) == []


def test_the_state_folder_is_root_s_alone_to_write() -> None:
    with Lab(Plan(fresh_name(), agents=())) as lab:
        for path in (STATE_DIR, state_of(lab.name), lab.host("h1").state):
            found = path.stat()
            assert found.st_uid == os.geteuid()
            assert not found.st_mode & 0o022
