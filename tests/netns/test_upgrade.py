"""From flanneld to our agent and back, host by host, and a DaemonSet's rolling update, under traffic: what is lost.

Nobody runs flanneld here. What it leaves in the kernel is made by hand, as it was seen to make it; for its udp stands
the naive peer, which like it opens a TUN of its own, that goes with the process.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from flannel_udp.lab.kernel_vxlan import KernelPeer
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.naive import NaivePeer
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.kube_api.manifest import find
from tests.support.agents import Agent, remains_of, subnet_of, wait_for, wait_for_peers
from tests.support.by_hand import by_hand
from tests.support.by_hand_vxlan import LeasedVxlan, join_by_hand, mac_of
from tests.support.flow import Flow
from tests.support.kernel_state import kernel_state
from tests.support.kube_cluster import Cluster, cluster
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.mixed import OURS, THEIRS
from tests.support.patience import promised
from tests.support.systemd import Systemd

pytestmark = NEEDS_NETNS

GAP_S = 3.0
"""From the end of one udp agent to the other one's first packet; it is Python's start, mostly."""


@contextmanager
def flows(lab: Lab) -> Iterator[tuple[Flow, Flow]]:
    """Let datagrams pass both ways between the two pods, some before and some after the block; then it is known which
    were lost."""
    p1, p2 = lab.pods()
    with Flow(p1, p2) as there, Flow(p2, p1) as back:
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
        yield there, back
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
            flow.end()


# udp: two processes, of which each takes its flannel0 along


@pytest.fixture
def udp() -> Iterator[tuple[Lab, Callable[[], NaivePeer]]]:
    """h2 runs our agent; what is returned beside the lab starts flanneld's stand-in on h1."""
    reservations = {str(OURS): "192.0.2.1", str(THEIRS): "192.0.2.2"}
    with Lab(Plan(fresh_name(), hosts=2, agents=("h2",), reservations=reservations)) as lab:
        h1, h2 = lab.hosts
        yield lab, partial(NaivePeer, h1, OURS, {THEIRS: h2.underlay})


def test_from_flannelds_udp_and_back_only_what_is_sent_meanwhile_is_lost(
    udp: tuple[Lab, Callable[[], NaivePeer]], record_property: Callable[[str, object], None]
) -> None:
    lab, flanneld = udp
    h1 = lab.hosts[0]
    former = flanneld()
    try:
        with flows(lab) as to_ours:
            former.stop()
            agent = Agent(h1)
            agent.wait_ready()
        with agent:
            assert subnet_of(h1) == OURS
            with flows(lab) as to_flannelds:
                assert agent.stop() == 0
                assert remains_of(h1) == {"subnet.env"}
                former = flanneld()
        for name, flow in zip(("to ours", "back", "to flanneld", "back"), (*to_ours, *to_flannelds), strict=True):
            record_property("figure", f"{name}: {flow.lost} of {flow.sent}")
            assert_one_gap(flow)
    finally:
        former.stop()


def assert_one_gap(flow: Flow) -> None:
    """Nothing was lost but what was sent in one short time; all that came after it arrived."""
    lost = flow.missing
    assert lost, "there was no gap at all: the page says otherwise"
    assert lost[-1] - lost[0] + 1 - len(lost) <= len(lost) // 10 + 2, lost  # some may be on their way at its begin
    assert len(lost) * flow.interval_s < promised(GAP_S)


# vxlan and host-gw: what carries packets stays in the kernel


@pytest.fixture
def vxlan() -> Iterator[tuple[Lab, LeasedVxlan]]:
    """Two hosts that flanneld's vxlan has set up; and that of h1."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    with Lab(Plan(fresh_name(), hosts=2, config=config, agents=())) as lab:
        joined = [join_by_hand(host, subnet) for host, subnet in zip(lab.hosts, (OURS, THEIRS), strict=True)]
        joined[0].learn()
        yield lab, joined[0]


def test_from_flannelds_vxlan_and_back_loses_nothing(vxlan: tuple[Lab, LeasedVxlan]) -> None:
    lab, flanneld = vxlan
    h1, h2 = lab.hosts
    state, mac = kernel_state(h1), mac_of(h1)
    with flows(lab) as both:
        with Agent(h1, "--datapath=kernel") as agent:
            agent.wait_ready()
            assert agent.stop() == 0
        # As flanneld's start was seen to: the device that fits is kept, entries and routes are replaced.
        value = json.loads(by_hand(lab).subnets()[flanneld.key])
        assert value["BackendData"] == {"VNI": 1, "VtepMAC": mac}
        flanneld.peers.clear()  # another process
        flanneld.add(KernelPeer(THEIRS, h2.underlay, mac_of(h2)))
    assert [flow.lost for flow in both] == [0, 0]
    assert kernel_state(h1) == state


@pytest.fixture
def host_gw() -> Iterator[Lab]:
    """Two hosts that flanneld's host-gw has set up."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": "host-gw"}}
    with Lab(Plan(fresh_name(), hosts=2, config=config, agents=())) as lab:
        h1, h2 = lab.hosts
        for host, subnet, other, far in ((h1, OURS, h2, THEIRS), (h2, THEIRS, h1, OURS)):
            host.attach_pods(subnet, 1500)
            host.configure(f"route add {far} via {other.underlay} dev eth0")
            value = f'{{"PublicIP":"{host.underlay}","PublicIPv6":null,"BackendType":"host-gw"}}'
            by_hand(lab).put_leased(str(subnet).replace("/", "-"), value)
        yield lab


def test_from_flannelds_host_gw_and_back_loses_nothing(host_gw: Lab) -> None:
    h1, h2 = host_gw.hosts
    state = kernel_state(h1)
    with flows(host_gw) as both:
        with Agent(h1) as agent:
            agent.wait_ready()
            assert agent.stop() == 0
        # As docs/upgrade.md has it: flanneld's route in the place of ours, then what ours hung on.
        h1.configure(
            f"route replace {THEIRS} via {h2.underlay} dev eth0", f"address del {OURS.network_address}/32 dev lo"
        )
    assert [flow.lost for flow in both] == [0, 0]
    assert kernel_state(h1) == state


# Under systemd; udp's restart is in test_agent_takeover


def test_a_restart_under_systemd_of_vxlan_in_user_space_loses_nothing(tmp_path: Path) -> None:
    ours = "--datapath=userspace"
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    plan = Plan(fresh_name(), hosts=2, config=config, agents=("h2",), agent_args=(ours,))
    with Lab(plan) as lab, Systemd(tmp_path) as systemd, ExitStack() as runs:
        h1, h2 = lab.hosts
        former = runs.enter_context(systemd.run(h1, ours))
        wait_for("ready", systemd.is_ready)
        h1.attach_pods()
        wait_for_peers([h1, h2])
        with flows(lab) as both:
            assert former.stop() == 0
            agent = runs.enter_context(systemd.run(h1, ours))
            wait_for("ready", systemd.is_ready)
            agent.wait_for_line("going on with flannel.1 as the last run left it")
        assert agent.stop() == 0
    assert [flow.lost for flow in both] == [0, 0]


# A DaemonSet's rolling update


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as nodes:
        yield nodes


def as_in_a_pod() -> tuple[str, ...]:
    """Return the command that runs another one as the manifest's container: its capabilities, processes of its own."""
    (container,) = find("DaemonSet")["spec"]["template"]["spec"]["containers"]
    caps = ",".join(["-all", *(f"+{name.lower()}" for name in container["securityContext"]["capabilities"]["add"])])
    limited = ("setpriv", "--no-new-privs", f"--bounding-set={caps}", f"--inh-caps={caps}")
    return ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *limited)


def container_args() -> list[str]:
    (container,) = find("DaemonSet")["spec"]["template"]["spec"]["containers"]
    return [argument for argument in container["args"] if argument != "--kube-subnet-mgr"]


def terminate(pod: Agent) -> int | None:
    """Do what the kubelet does when a pod is deleted, and return the container's exit code."""
    (child,) = Path(f"/proc/{pod.process.pid}/task/{pod.process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    return pod.exit_code()


def test_a_daemonsets_new_pod_takes_over_and_the_old_one_waits_to_be_deleted_and_nothing_is_lost(
    nodes: Cluster,
) -> None:
    lab = nodes.lab
    h1, h2 = lab.hosts
    with ExitStack() as pods:
        pod_of = partial(nodes.agent, wrapper=as_in_a_pod())
        other, old = (pods.enter_context(pod_of(host, *container_args())) for host in (h2, h1))
        for agent in (other, old):
            agent.wait_ready()
        for host in lab.hosts:
            host.attach_pods()
        wait_for_peers(lab.hosts)
        with flows(lab) as both:
            new = pods.enter_context(pod_of(h1, *container_args()))
            new.wait_for_line("took over from process 0")  # which is another container's
            old.wait_for_line("waiting for SIGTERM, and doing nothing else (--after-takeover=wait)")
            new.wait_ready()
            for flow in both:
                flow.wait_for_one_sent_from_now()
            assert old.process.poll() is None  # else the kubelet would start it again, beside the new one
            assert terminate(old) == 0
        assert (terminate(new), terminate(other)) == (0, 0)
    assert [flow.lost for flow in both] == [0, 0]


def test_an_old_agent_that_waits_hands_nothing_over_and_its_successor_says_what_to_do() -> None:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        (h1,), path = lab.hosts, lab.plan.registry_file
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "config": None}))
        with Agent(h1) as old:
            old.wait_for_line("reading the network configuration failed")
            with Agent(h1, "--takeover") as new:
                assert new.exit_code() == 1
                assert "said nothing for 15 s: if it hangs, kill it and start afresh" in new.said()[-1]
            path.write_text(json.dumps(document))
            old.wait_ready()
            assert old.stop() == 0
