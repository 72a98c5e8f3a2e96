"""DirectRouting with udp: of hosts on one link and one behind a router all pods reach all, the near ones directly."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.files import subnet_env
from flannel_udp.lab import netns
from flannel_udp.lab.capture import Packet
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.naive import NaivePeer
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, UNDERLAY_GATEWAY, Plan
from flannel_udp.lab.probe import ping, ping_matrix, tcp_rate
from flannel_udp.lab.sites import Router
from flannel_udp.lab.tunnel import tunnel_of
from tests.support.agents import (
    Agent,
    Log,
    command_json,
    command_line,
    log_of,
    pid_of,
    subnet_of,
    up_with_peers,
    wait_for,
)
from tests.support.behind_router import make_router, route_past, route_straight
from tests.support.by_hand import by_hand
from tests.support.flow import Flow
from tests.support.ip_monitor import ip_monitor
from tests.support.kernel_state import kernel_state, lease_end_of, ours_of
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S
from tests.support.standstill import freeze

pytestmark = NEEDS_NETNS

CONFIG = {"Network": str(OVERLAY), "Backend": {"Type": "udp", "DirectRouting": True}}
WITHOUT = {"Network": str(OVERLAY), "Backend": {"Type": "udp"}}
_ETH_P_IP = 0x0800


def route_to(peer: Host, own: Host) -> str:
    """Return the route to a peer on the link, as it stands while the lease lives."""
    return f"{subnet_of(peer)} via {peer.underlay} dev eth0 src {subnet_of(own).network_address}"


def datapaths(host: Host) -> dict[str, str]:
    """Return what `peers` says: public IP → datapath."""
    return {peer["public_ip"]: peer["datapath"] for peer in host.control("/v1/peers")}


def wait_for_datapaths(host: Host, expected: dict[Host, str]) -> float:
    wanted = {str(peer.underlay): datapath for peer, datapath in expected.items()}
    return wait_for(f"{host.name} has {wanted}", lambda: datapaths(host) == wanted)


@contextmanager
def seen_by(host: Host) -> Iterator[list[Packet]]:
    """Collect what leaves and enters a host's eth0 in the block: what is in the tunnel only."""
    found: list[Packet] = []
    with host.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as tap:  # of no protocol until it is bound
        tap.bind(("eth0", 0x0003))
        tap.setblocking(False)
        yield found
        while True:
            try:
                data, address = tap.recvfrom(65_535)
            except BlockingIOError:
                return
            packet = Packet.parse(data) if address[1] == _ETH_P_IP else None
            if packet is not None and packet.inside(tunnel_of(host.plan)) is not None:
                found.append(packet)


# Two on one link, one behind a router

KINDS = [("udp", None), ("vxlan", "kernel"), ("vxlan", "userspace"), ("ipip", "userspace")]
MTU = {"udp": 1472, "vxlan": 1450, "ipip": 1480}


@pytest.fixture(scope="module", params=KINDS, ids=["udp", "vxlan by the kernel", "vxlan in user space", "ipip"])
def trio(request: pytest.FixtureRequest) -> Iterator[Lab]:
    kind, datapath = request.param
    config = {"Network": str(OVERLAY), "Backend": {"Type": kind, "DirectRouting": True}}
    arguments = () if datapath is None else (f"--datapath={datapath}",)
    with Lab(
        Plan(fresh_name(), hosts=3, config=config, agent_args=arguments, routers={"r1": Router()}, behind={"h3": "r1"})
    ) as lab:
        yield up_with_peers(lab)


def tunnel_device(lab: Lab) -> str:
    tunnel = tunnel_of(lab.plan)
    assert tunnel is not None
    return tunnel.device


def by_kernel(lab: Lab) -> bool:
    return "--datapath=kernel" in lab.plan.agent_args


def direct_routes(host: Host) -> list[str]:
    """Return our routes out of eth0."""
    return [line for line in ours_of(host) if " dev eth0 " in line]


def test_the_near_ones_have_a_route_and_the_far_one_the_tunnel(trio: Lab) -> None:
    h1, h2, h3 = trio.hosts
    wait_for_datapaths(h1, {h2: "direct", h3: "tunnel"})
    wait_for_datapaths(h2, {h1: "direct", h3: "tunnel"})
    wait_for_datapaths(h3, {h1: "tunnel", h2: "tunnel"})
    expected = [[route_to(h2, h1)], [route_to(h1, h2)], []]
    wait_for("their routes", lambda: [direct_routes(host) for host in trio.hosts] == expected)
    assert {subnet_env.require(host.subnet_file).mtu for host in trio.hosts} == {MTU[trio.plan.backend]}


def test_the_kernel_s_tunnel_has_nothing_of_a_peer_that_is_direct(trio: Lab) -> None:
    if not by_kernel(trio):
        pytest.skip("our own packet path keeps all peers")
    h1, h2, h3 = trio.hosts
    device = tunnel_device(trio)

    def neighbours() -> list[str]:
        shown = h1.run(["ip", "-4", "neighbour", "show", "dev", device, "nud", "permanent"]).stdout.splitlines()
        return [line.split()[0] for line in shown]

    wait_for("the far one alone", lambda: neighbours() == [str(subnet_of(h3).network_address)])
    forwarding = h1.run(["bridge", "fdb", "show", "dev", device]).stdout
    assert f"dst {h3.underlay} " in forwarding
    assert f"dst {h2.underlay} " not in forwarding


def test_all_pods_reach_all_by_ping_and_tcp(trio: Lab) -> None:
    pods = trio.pods()
    wait_for("traffic", lambda: None not in ping_matrix(pods, timeout_s=0.5).values())
    for source in pods:
        for target in pods:
            if source is not target:
                assert tcp_rate(source, target, target.ip, duration_s=0.1) > 0
    wait_for("nothing is wrong", lambda: all(host.control("/v1/status")["problems"] == [] for host in trio.hosts))


def test_between_the_near_ones_no_packet_is_in_a_tunnel(trio: Lab) -> None:
    h1, h2, h3 = trio.hosts
    p1, p2, p3 = trio.pods()
    with seen_by(h1) as tunnelled:
        for source, target in ((p1, p2), (p2, p1), (h1, p2), (p1, p3)):
            assert None not in ping(source, [target.ip], PATIENCE_S)
    ends = {frozenset((packet.source, packet.destination)) for packet in tunnelled}
    assert ends == {frozenset((h1.underlay, h3.underlay))}
    assert not any(h2.underlay in pair for pair in ends)


def test_status_peers_route_get_and_metrics_tell(trio: Lab) -> None:
    h1, h2, h3 = trio.hosts
    assert h1.control("/v1/status")["backend"]["direct"] == 1
    assert ", 1 of 2 peers direct" in command_line(h1, "status").stdout
    rows = {row["public_ip"]: row for row in command_json(h1, "peers")}
    assert rows[str(h2.underlay)]["packets_out"] is None
    assert (rows[str(h3.underlay)]["packets_out"] is None) == by_kernel(trio)
    near = command_json(h1, "route", "get", str(h2.pods[0].ip))
    assert (near["datapath"], "port" in near, "tunnel" in near, "diverted" in near) == ("direct", False, False, False)
    assert f"via {h2.underlay} dev eth0 direct subnet" in command_line(h1, "route", "get", str(h2.pods[0].ip)).stdout
    far = command_json(h1, "route", "get", str(h3.pods[0].ip))
    assert (far["datapath"], far["tunnel"], "diverted" in far) == ("tunnel", tunnel_device(trio), False)


def test_doctor_finds_nothing_wrong_and_notes_what_a_strict_rp_filter_would_drop(trio: Lab) -> None:
    h1, device = trio.hosts[0], tunnel_device(trio)

    def rows() -> dict[str, list[dict[str, Any]]]:
        command = [sys.executable, "-m", "flannel_udp", "doctor", "--json", "--iface=eth0", *trio.plan.registry_args]
        paths = ["--control-socket", str(h1.control_socket), "--subnet-file", str(h1.subnet_file)]
        found: dict[str, list[dict[str, Any]]] = {}
        for row in json.loads(h1.run([*command, *paths], check=False).stdout):
            found.setdefault(row["question"], []).append(row)
        return found

    def all_is_well() -> bool:
        found = rows()
        questions = ("agent", "forwarding", "routes", "rp_filter", "peers")
        return all([row["ok"] for row in found[question]] == [True] for question in questions)

    wait_for("all is well", all_is_well)
    set_rp_filter(h1, device, 1)
    try:
        _, noted = rows()["rp_filter"]
    finally:
        set_rp_filter(h1, device, 0)
    assert noted["ok"]
    assert noted["what"].startswith(f"strict on {device}: a host whose datapath here is direct")
    assert noted["mend"].endswith("/rp_filter=2" if "." in device else ".rp_filter=2")


def test_a_route_that_is_deleted_comes_back_and_is_counted(trio: Lab) -> None:
    h1, h2, _ = trio.hosts
    what = "route" if by_kernel(trio) else "direct"
    before, expected = h1.control("/v1/status")["host_repairs"][what], ours_of(h1)
    h1.configure(f"route del {subnet_of(h2)}")
    wait_for("it is back", lambda: ours_of(h1) == expected)
    wait_for("it is counted", lambda: h1.control("/v1/status")["host_repairs"][what] == before + 1)


def test_a_tunnel_device_made_anew_keeps_the_routes_and_their_end(trio: Lab) -> None:
    h1, device = trio.hosts[0], tunnel_device(trio)
    expected = ours_of(h1)
    h1.configure(f"link del {device}")
    if not by_kernel(trio):
        assert ours_of(h1) == expected
    wait_for("it is back", lambda: any(device in line for line in kernel_state(h1)))
    wait_for("its routes", lambda: ours_of(h1) == expected)
    shown = ["address", "show", "dev", device]
    wait_for("its address ends", lambda: " dynamic " in h1.run(["ip", "-4", "-o", *shown], check=False).stdout)


def test_a_foreign_route_past_ours_is_named_with_what_ours_is(trio: Lab) -> None:
    h1, h2, _ = trio.hosts
    subnet = subnet_of(h2)
    h1.configure(f"route replace {subnet} via {UNDERLAY_GATEWAY} proto static")

    def problems() -> str:
        return "\n".join(h1.control("/v1/status")["problems"])

    named = "is not ours: remove it" if by_kernel(trio) else f"ip route del {subnet} via {UNDERLAY_GATEWAY}"
    wait_for("it is named", lambda: named in problems())
    h1.configure(f"route del {subnet} via {UNDERLAY_GATEWAY}")
    wait_for("ours is back", lambda: direct_routes(h1) == [route_to(h2, h1)])
    wait_for("all is well", lambda: problems() == "")


def test_the_external_interface_has_to_forward_too(trio: Lab) -> None:
    h1 = trio.hosts[0]

    def forward(flag: str) -> None:
        path = Path("/proc/sys/net/ipv4/conf/eth0/forwarding")
        netns.call_inside(h1.namespace, lambda: path.write_text(f"{flag}\n"))

    forward("0")
    try:
        wait_for(
            "it is named",
            lambda: any("sysctl -w net.ipv4.conf.eth0.forwarding=1" in p for p in h1.control("/v1/status")["problems"]),
        )
    finally:
        forward("1")
    wait_for("all is well", lambda: h1.control("/v1/status")["problems"] == [])


# The underlay changes


@pytest.fixture(scope="module")
def duo() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=2, config=CONFIG)) as lab:
        make_router(lab)
        yield up_with_peers(lab)


def test_a_peer_that_moves_behind_a_router_and_back_ten_times_is_followed(duo: Lab) -> None:
    move_ten_times(duo)
    h1 = duo.hosts[0]
    assert h1.control("/v1/status")["host_repairs"]["direct"] == 0


def test_it_is_followed_by_the_kernel_s_tunnel_as_well() -> None:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan", "DirectRouting": True}}
    with Lab(Plan(fresh_name(), hosts=2, config=config, agent_args=("--datapath=kernel",))) as lab:
        make_router(lab)
        move_ten_times(up_with_peers(lab))
        h1, h2 = lab.hosts
        h1.kill_agent()
        assert ours_of(h1) == [route_to(h2, h1)]
        by_hand(lab).configure({"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}})
        p1, p2 = lab.pods()
        with Flow(p1, p2, 0.002) as flow:
            flow.wait_for_one_sent_from_now()
            h1.start_agent("--clean-on-exit")
            h1.wait_ready()
            first = subnet_of(h2).network_address
            wait_for("the tunnel again", lambda: ours_of(h1) == [f"{subnet_of(h2)} via {first} dev flannel.1 onlink"])
            flow.wait_for_one_sent_from_now()
            flow.end()
            assert flow.missing == []
        h1.stop_agent()
        assert not any(str(subnet_of(h1).network_address) in line for line in kernel_state(h1) if "cni0" not in line)


def move_ten_times(lab: Lab) -> None:
    """Part two hosts on one link by a router, and join them again, ten times under traffic."""
    h1, h2 = lab.hosts
    p1, p2 = lab.pods()
    took_s = []
    wait_for_datapaths(h1, {h2: "direct"})
    wait_for_datapaths(h2, {h1: "direct"})
    with Flow(p1, p2, 0.002) as there, Flow(p2, p1, 0.002) as back:
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
        for _ in range(10):
            for move, routes in ((route_past, 0), (route_straight, 1)):
                began_s = time.monotonic()
                move(h1, h2)
                wait_for("both follow", lambda n=routes: [len(direct_routes(host)) for host in lab.hosts] == [n, n])  # type: ignore[misc]
                took_s.append(time.monotonic() - began_s)
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
            flow.end()
    print(f"followed in {min(took_s):.2f} to {max(took_s):.2f} s; lost {there.lost} and {back.lost}")  # noqa: T201
    assert (there.missing, back.missing) == ([], [])
    wait_for_datapaths(h1, {h2: "direct"})


def test_a_peer_with_another_address_gets_another_route(duo: Lab) -> None:
    h1, h2 = duo.hosts
    by_hand(duo).put("10.244.240.0-24", '{"PublicIP":"192.0.2.90"}')
    expected = {route_to(h2, h1), f"10.244.240.0/24 via 192.0.2.90 dev eth0 src {subnet_of(h1).network_address}"}
    wait_for("its route", lambda: set(ours_of(h1)) == expected)
    by_hand(duo).put("10.244.240.0-24", '{"PublicIP":"198.51.100.90"}')
    wait_for("its route is gone", lambda: ours_of(h1) == [route_to(h2, h1)])
    h1.configure("route add 198.51.100.90 dev eth0")
    wait_for("it is on the link now", lambda: any("via 198.51.100.90" in line for line in ours_of(h1)))
    by_hand(duo).delete("10.244.240.0-24")
    wait_for("it is gone", lambda: ours_of(h1) == [route_to(h2, h1)])
    h1.configure("route del 198.51.100.90 dev eth0")


# The lease, the agent's end, the option


def test_kill_9_and_a_start_keep_the_routes_and_lose_nothing(duo: Lab) -> None:
    h1, h2 = duo.hosts
    p1, p2 = duo.pods()
    with Flow(p1, p2, 0.002) as there, Flow(p2, p1, 0.002) as back:
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
        h1.kill_agent()
        assert ours_of(h1) == [route_to(h2, h1)]
        assert (lease_end_of(h1) or "").startswith(f"{subnet_of(h1).network_address}/32 ")
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
        h1.start_agent()
        h1.wait_ready()
        wait_for_datapaths(h1, {h2: "direct"})
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
            flow.end()
    assert (there.missing, back.missing) == ([], [])
    assert ours_of(h1) == [route_to(h2, h1)]


def test_a_take_over_loses_nothing_and_writes_no_route(duo: Lab, tmp_path: Path) -> None:
    h1, h2 = duo.hosts
    p1, p2 = duo.pods()
    old, told = pid_of(h1), tmp_path / "told"
    with Flow(p1, p2, 0.002) as there, Flow(p2, p1, 0.002) as back, ExitStack() as running:
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
        with ip_monitor(h1, told, "-4", "monitor", "route"):
            agent = running.enter_context(Agent(h1, "--takeover"))
            agent.wait_for_take_over(old)
            wait_for_datapaths(h1, {h2: "direct"})
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
            flow.end()
        assert agent.stop() == 0
        assert [line for line in told.read_text().splitlines() if "proto 82" in line] == []
    assert (there.missing, back.missing) == ([], [])
    h1.start_agent()
    h1.wait_ready()


def test_sigterm_leaves_routes_that_end_with_the_lease(duo: Lab) -> None:
    h1, h2 = duo.hosts
    h1.stop_agent()
    assert ours_of(h1) == [route_to(h2, h1)]
    assert (lease_end_of(h1) or "").endswith("sec")
    h1.start_agent()
    h1.wait_ready()


def test_a_lease_that_is_lost_takes_the_routes_along(duo: Lab) -> None:
    h1, h2 = duo.hosts
    log = Log(h1)
    by_hand(duo).delete(str(subnet_of(h1)).replace("/", "-"))
    wait_for("the loss is noticed", lambda: bool(log.lines("lost our subnet")))
    wait_for("ready again", h1.is_ready)
    wait_for("its route", lambda: ours_of(h1) == [route_to(h2, h1)])


def test_a_reservation_needs_no_end(duo: Lab) -> None:
    h1, h2 = duo.hosts
    hand, key = by_hand(duo), str(subnet_of(h1)).replace("/", "-")
    hand.put(key, f'{{"PublicIP":"{h1.underlay}","PublicIPv6":null}}')
    wait_for("no end", lambda: ours_of(h1) == [f"{subnet_of(h2)} via {h2.underlay} dev eth0"])
    wait_for("no address on lo", lambda: lease_end_of(h1) is None)
    shown = h1.run(["ip", "-4", "-o", "address", "show", "dev", "flannel0"]).stdout
    assert "valid_lft forever" in shown
    log = Log(h1)
    hand.delete(key)
    wait_for("the loss is noticed", lambda: bool(log.lines("lost our subnet")))
    wait_for("ready again", h1.is_ready)
    wait_for("its route", lambda: ours_of(h1) == [route_to(h2, h1)])


def test_without_the_option_a_restart_leaves_nothing_of_it(duo: Lab) -> None:
    """The last one here: the cluster is without the option from then on."""
    by_hand(duo).configure(WITHOUT)
    for host in duo.hosts:
        wait_for("its route", lambda host=host: len(ours_of(host)) == 1)  # type: ignore[misc]
        host.kill_agent()
        assert len(ours_of(host)) == 1
        host.start_agent()
    for host in duo.hosts:
        host.wait_ready()
        wait_for("the routes are gone", lambda host=host: ours_of(host) == [])  # type: ignore[misc]
        wait_for("nor an end", lambda host=host: lease_end_of(host) is None)  # type: ignore[misc]
        assert "valid_lft forever" in host.run(["ip", "-4", "-o", "address", "show", "dev", "flannel0"]).stdout
        said = "removed what an earlier run left: our routes to peers: 1"
        wait_for("it is said", lambda host=host, said=said: said in log_of(host))  # type: ignore[misc]
    p1, p2 = duo.pods()
    wait_for("traffic", lambda: ping(p1, [p2.ip], timeout_s=0.5) != [None])
    assert "datapath" not in duo.hosts[0].control("/v1/peers")[0]


# Hosts that answer by the tunnel


def test_a_host_that_answers_by_the_tunnel_is_cut_off_by_a_strict_rp_filter_only_and_named() -> None:
    """As flanneld's udp does, which knows no DirectRouting."""
    plan = Plan(fresh_name(), hosts=2, config=CONFIG, agents=("h1",), reservations={"10.244.99.0/24": "192.0.2.2"})
    with Lab(plan) as lab:
        h1, h2 = lab.hosts
        subnet = next(iter(plan.reservations))
        with NaivePeer(h2, IPv4Network(subnet), {subnet_of(h1): h1.underlay}):
            wait_for_datapaths(h1, {h2: "direct"})
            p1, p2 = lab.pods()
            wait_for("traffic", lambda: ping(p1, [p2.ip], timeout_s=0.5) != [None])
            set_rp_filter(h1, "flannel0", 1)

            def problems() -> list[str]:
                ping(p1, [p2.ip], timeout_s=0.2)
                found: list[str] = h1.control("/v1/status")["problems"]
                return [text for text in found if "rp_filter of flannel0" in text]

            wait_for("it is named", lambda: bool(problems()))
            assert problems()[0].endswith("sysctl -w net.ipv4.conf.flannel0.rp_filter=2")
            assert ping(p1, [p2.ip], timeout_s=0.2) == [None]
            set_rp_filter(h1, "flannel0", 2)
            wait_for("traffic", lambda: ping(p1, [p2.ip], timeout_s=0.5) != [None])
            wait_for("all is well", lambda: problems() == [])


def test_nothing_is_forwarded_after_the_lease_by_a_frozen_agent() -> None:
    with Lab(Plan(fresh_name(), hosts=2, config=CONFIG)) as lab:
        up_with_peers(lab)
        h1, h2 = lab.hosts
        pid = h1.agent_pid()
        assert pid is not None
        wait_for_datapaths(h1, {h2: "direct"})
        freeze(pid)
        try:
            first = subnet_of(h1).network_address
            for device in ("lo label lo:flannel", "flannel0"):
                h1.configure(f"address change {first}/32 dev {device} valid_lft 2 preferred_lft 1")
            wait_for("the kernel removes the route", lambda: ours_of(h1) == [])
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_for("it is back", lambda: ours_of(h1) == [route_to(h2, h1)])


def set_rp_filter(host: Host, device: str, value: int) -> None:
    path = Path(f"/proc/sys/net/ipv4/conf/{device}/rp_filter")
    netns.call_inside(host.namespace, lambda: path.write_text(f"{value}\n"))
