"""A path that loses large packets without a word: found, fitted to, named, and used in full again once it is mended."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from flannel_udp.lab.kernel_vxlan import VXLAN_OVERHEAD_BYTES
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host, Pod
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import Agent, command_line, pid_of, restart_agents, start_agents, up_with_peers, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.routers import put_routers_between
from tests.support.transfer import Transfer

pytestmark = NEEDS_NETNS

OUTER_HEADER_BYTES = 28
NARROW = 1400
INNER = NARROW - OUTER_HEADER_BYTES
VLAN_TAG_BYTES = 4
"""What a veth takes beyond the MTU of its end (linux, __is_skb_forwardable)."""
FULL = 1500 - OUTER_HEADER_BYTES
SOME_BYTES = 2 << 20
SLOW_S = 300.0
"""A path is searched again after 30 s, and on a busy machine a search may go wrong."""


@contextmanager
def narrow_lab(**plan: Any) -> Iterator[Lab]:
    """Three hosts whose cards cut, and h2 behind a port of the bridge that loses what is larger."""
    with Lab(Plan(fresh_name(), hosts=3, offload="plain", **plan)) as lab:
        up_with_peers(lab)
        narrow(lab, NARROW)
        yield lab


def narrow(lab: Lab, mtu: int) -> None:
    lab.net.configure(f"link set h2 mtu {mtu}")


def limits_of(host: Host) -> dict[str, int | None]:
    return {row["public_ip"]: row["path_mtu"] for row in host.control("/v1/peers")}


def problems_of(host: Host) -> list[str]:
    problems: list[str] = host.control("/v1/status")["problems"]
    return problems


def is_named(host: Host, text: str) -> bool:
    return any(text in problem for problem in problems_of(host))


def named_alone(host: Host, text: str) -> dict[str, Any]:
    """Wait until that is all that is named, and return that status: a peer may seem ill for a moment, now or soon."""
    found: list[dict[str, Any]] = []

    def is_alone() -> bool:
        found[:] = [host.control("/v1/status")]
        return [text in problem for problem in found[0]["problems"]] == [True]

    wait_for(f"only this is named: {text}", is_alone)
    return found[0]


def wait_for_limit(host: Host, peer: Host, limit: int | None) -> None:
    wait_for(f"the limit is {limit}", lambda: limits_of(host)[str(peer.underlay)] == limit, SLOW_S)


def answers(source: Pod, target: Pod, n_bytes: int, *, fragment: bool) -> bool:
    """Ping once, with packets of `n_bytes`, whatever the pod's kernel remembers of the path."""
    source.configure("route flush cache")
    size, df = str(n_bytes - OUTER_HEADER_BYTES), "dont" if fragment else "do"
    return source.run(["ping", "-c1", "-W1", "-M", df, "-s", size, str(target.ip)], check=False).returncode == 0


def passes(source: Pod, target: Pod, n_bytes: int, *, fragment: bool) -> None:
    """Wait until such a ping is answered: on a busy machine one may come back too late."""
    wait_for(f"{n_bytes} bytes pass", lambda: answers(source, target, n_bytes, fragment=fragment))


@contextmanager
def pinging(source: Pod, target: Pod) -> Iterator[None]:
    """Ping all the time: what was judged while the machine stood still is asked again, as long as packets go there."""
    ping = source.popen(["ping", "-i0.2", "-q", str(target.ip)], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        ping.kill()
        ping.wait()


def test_bulk_tcp_passes_and_the_peer_is_named_until_the_path_is_mended() -> None:
    with narrow_lab() as lab:
        h1, h2, h3 = lab.hosts
        one, other = h1.pods[0], h2.pods[0]
        with Transfer(one, other, SOME_BYTES), Transfer(other, one, SOME_BYTES):
            pass
        for host, peer, inner in ((h1, h2, INNER), (h2, h1, INNER + VLAN_TAG_BYTES)):
            named = f"peer {peer.underlay} ({peer.subnet}): the path carries packets of {inner} bytes, not {FULL}"
            with pinging(one, other):
                wait_for_limit(host, peer, inner)
                status = named_alone(host, named)
            assert f"set Backend.MTU to {inner}" in status["problems"][0]
            assert (status["ready"], status["degraded"], status["narrow_paths"]) == (True, ["path"], 1)
        assert limits_of(h1)[str(h3.underlay)] is None
        passes(one, other, INNER, fragment=False)
        assert not answers(one, other, INNER + 1, fragment=False)
        passes(one, other, 4_000, fragment=True)
        passes(one, h3.pods[0], FULL, fragment=False)
        assert str(INNER) in command_line(h1, "peers").stdout
        narrow(lab, 1500)
        with pinging(one, other):
            wait_for_limit(h1, h2, None)
        wait_for("nothing is named", lambda: problems_of(h1) == [])
        passes(one, other, FULL, fragment=False)


def test_a_limit_survives_a_take_over_and_other_peers_coming_and_going() -> None:
    with narrow_lab() as lab:
        h1, h2, h3 = lab.hosts
        one, other = h1.pods[0], h2.pods[0]
        with Transfer(one, other, SOME_BYTES):
            pass
        with pinging(one, other):
            wait_for_limit(h1, h2, INNER)
        old = pid_of(h1)
        with Agent(h1, "--takeover") as agent:
            agent.wait_for_take_over(old)
            assert limits_of(h1)[str(h2.underlay)] == INNER
            assert not answers(one, other, INNER + 1, fragment=False)
            h3.stop_agent()
            h3.start_agent()
            h3.wait_ready()
            wait_for("h2 knows as well", lambda: answers(one, other, 4_000, fragment=True), SLOW_S)
            with pinging(one, other):
                wait_for_limit(h1, h2, INNER)


def test_a_peer_that_answers_no_echoes_is_not_judged() -> None:
    with narrow_lab() as lab:
        h1, h2, _ = lab.hosts
        h2.run(["sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1"])
        with pinging(h1.pods[0], h2.pods[0]):
            for _ in range(5):
                answers(h1.pods[0], h2.pods[0], FULL, fragment=False)
        assert limits_of(h1)[str(h2.underlay)] is None


def test_a_path_that_says_what_it_carries_is_no_fault() -> None:
    with Lab(Plan(fresh_name(), hosts=3, agents=(), underlay_mtu=1500)) as lab:
        put_routers_between(lab, NARROW)
        start_agents(lab.hosts[:2])
        h1, h2 = lab.hosts[:2]
        with Transfer(h1.pods[0], h2.pods[0], SOME_BYTES), pinging(h1.pods[0], h2.pods[0]):
            for _ in range(10):
                answers(h1.pods[0], h2.pods[0], FULL, fragment=False)
        assert (limits_of(h1)[str(h2.underlay)], problems_of(h1)) == (None, [])


@pytest.mark.parametrize("datapath", ["kernel", "userspace"])
def test_with_vxlan_the_mtu_that_is_advised_is_the_underlays_and_just_fits(datapath: str) -> None:
    config: dict[str, Any] = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    with Lab(Plan(fresh_name(), hosts=2, offload="plain", config=config, agents=())) as lab:
        start_agents(lab.hosts, f"--datapath={datapath}")
        narrow(lab, NARROW)
        h1, h2 = lab.hosts
        one, other = h1.pods[0], h2.pods[0]

        def limit() -> int | None:
            return limits_of(h1)[str(h2.underlay)]

        assert not answers(one, other, 1500 - VXLAN_OVERHEAD_BYTES[4], fragment=False)
        with pinging(one, other):
            fits = {n - VXLAN_OVERHEAD_BYTES[4]: n for n in (NARROW, NARROW + VLAN_TAG_BYTES)}
            wait_for("the limit is found", lambda: limit() in fits, SLOW_S)
            inner, option = next((inner, option) for inner, option in fits.items() if inner == limit())
        wait_for("it is named", partial(is_named, h1, f"set Backend.MTU to {option}, or mend the MTU"))
        for host in lab.hosts:
            host.stop_agent()
        document = json.loads(lab.plan.registry_file.read_text())
        document["config"]["Backend"]["MTU"] = option
        lab.plan.registry_file.write_text(json.dumps(document))
        restart_agents(lab.hosts, f"--datapath={datapath}")
        assert [host.mtu for host in lab.hosts] == [inner, inner]
        passes(one, other, inner, fragment=False)
        assert not answers(one, other, inner + 1, fragment=False)


@pytest.mark.parametrize("mtu", [1300, 700])
def test_host_gw_names_the_path_and_leaves_it(mtu: int) -> None:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "host-gw"}}
    with Lab(Plan(fresh_name(), hosts=2, offload="plain", config=config)) as lab:
        up_with_peers(lab)
        h1, h2 = lab.hosts
        narrow(lab, mtu)
        with pinging(h1.pods[0], h2.pods[0]):
            wait_for_limit(h1, h2, mtu)
            status = named_alone(h1, f"{mtu} bytes, not 1500")
        assert "Backend.MTU" not in status["problems"][0]
