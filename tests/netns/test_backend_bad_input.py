"""What keeps a host from running host-gw or alloc: one clear line, and nothing half-done; and what does not."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, move_address, remains_of, wait_for
from tests.support.by_hand import by_hand
from tests.support.kernel_state import kernel_state, lease_end_of, ours_of
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

PORT = 9502
MOVED_TO = IPv4Address("192.0.2.77")
KERNEL = ["host-gw", "alloc"]
WITHOUT_TUN = ("sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh")
"""`ip netns exec`, by which the agent starts, gives it a mount namespace of its own."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        yield lab


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    """A host on which nothing of an agent's is, before and after."""
    (host,) = lab.hosts
    before = kernel_state(host)
    yield host
    host.subnet_file.unlink(missing_ok=True)
    for key in by_hand(lab).subnets():
        by_hand(lab).delete(key)
    host.configure("route flush proto 82", "address flush dev lo label lo:flannel")
    assert kernel_state(host) == before


def test_behind_nat_host_gw_is_waited_with_and_nothing_written_until_the_configuration_is_another(
    lab: Lab, host: Host
) -> None:
    hand, before = by_hand(lab), kernel_state(host)
    hand.choose_backend("host-gw")
    with Agent(host, "--public-ip=203.0.113.9") as agent:
        line = agent.wait_for_line("reading the network configuration failed")
        assert line == (
            "reading the network configuration failed: Backend.Type is host-gw, and our public IP 203.0.113.9 is not "
            "the address 192.0.2.1 of eth0: others cannot route through a host behind NAT: leave --public-ip out, or "
            "choose another type (trying again every 1 to 5 s)"
        )
        assert host.control("/v1/status")["state"] == "waiting for configuration"
        assert (hand.subnets(), kernel_state(host), host.subnet_file.exists()) == ({}, before, False)
        hand.choose_backend("udp")
        agent.wait_ready()
        assert agent.said().count(line) == 1
        (value,) = hand.subnets().values()
        assert '"203.0.113.9"' in value
        assert agent.stop() == 0


def test_a_public_ip_that_the_interface_loses_is_named_until_it_is_back(lab: Lab, host: Host) -> None:
    by_hand(lab).choose_backend("host-gw")
    with Agent(host, f"--public-ip={host.underlay}") as agent:
        agent.wait_ready()
        entries = by_hand(lab).subnets()
        move_address(host, host.underlay, MOVED_TO)
        agent.wait_for_line("no traffic: interface eth0 has lost its address 192.0.2.1: waiting for it")
        # After a while the other address is taken.
        line = agent.wait_for_line(
            "no traffic: Backend.Type is host-gw, and our public IP 192.0.2.1 is not the address 192.0"
        )
        assert not host.is_ready()
        move_address(host, MOVED_TO, host.underlay)
        agent.wait_ready()
        assert agent.said().count(line) == 1
        assert by_hand(lab).subnets() == entries
        assert agent.stop() == 0


@pytest.mark.parametrize("kind", KERNEL)
def test_without_the_right_to_change_the_network_it_is_one_line(lab: Lab, host: Host, kind: str) -> None:
    by_hand(lab).choose_backend(kind)
    wrapper = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    with Agent(host, wrapper=wrapper) as agent:
        assert agent.exit_code() == 1
        (line,) = agent.said()
    assert line.startswith("flannel-udp: missing CAP_NET_ADMIN: run as root, or grant the capabilities")
    assert (remains_of(host), by_hand(lab).subnets()) == (set(), {})


@pytest.mark.parametrize("kind", KERNEL)
def test_no_tun_device_is_needed(lab: Lab, host: Host, kind: str) -> None:
    by_hand(lab).choose_backend(kind)
    with Agent(host, wrapper=WITHOUT_TUN) as agent:
        agent.wait_ready()
        assert agent.stop() == 0


def test_an_address_that_somebody_else_has_is_named_and_routes_stand_without_it(lab: Lab, host: Host) -> None:
    hand = by_hand(lab)
    hand.choose_backend("host-gw")
    hand.put("10.244.2.0-24", '{"PublicIP":"192.0.2.2","BackendType":"host-gw"}')
    with Agent(host, "--clean-on-exit") as agent:
        agent.wait_ready()
        address = (lease_end_of(host) or "").partition("/")[0]
        host.configure(f"address add {address}/32 dev eth0")
        fault = (
            f"{address} is an address of eth0, and not ours, so that routes outlive the lease if the agent is killed: "
            "remove it there"
        )
        wait_for("it is named", lambda: host.control("/v1/status")["problems"] == [fault])
        wait_for("no end", lambda: ours_of(host) == ["10.244.2.0/24 via 192.0.2.2 dev eth0"])
        host.configure(f"address del {address}/32 dev eth0")
        wait_for("it is forgotten", lambda: host.control("/v1/status")["problems"] == [])
        wait_for("an end", lambda: ours_of(host) == [f"10.244.2.0/24 via 192.0.2.2 dev eth0 src {address}"])
        agent.wait_for_line("routes end with the lease again")
        assert [line for line in agent.said() if "lease" in line] == [fault, "routes end with the lease again"]
        assert agent.stop() == 0


def get(host: Host, path: str) -> tuple[str, str]:
    """Return the status line's code and the body."""
    with host.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(("127.0.0.1", PORT))
        sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: sock.recv(65_536), b"")).decode().partition("\r\n\r\n")
    return head.split()[1], body


@pytest.mark.parametrize("kind", KERNEL)
def test_readyz_and_metrics_say_what_is_known_and_no_zero_for_what_nobody_counts(
    lab: Lab, host: Host, kind: str
) -> None:
    by_hand(lab).choose_backend(kind)
    with Agent(host, f"--healthz-port={PORT}") as agent:
        agent.wait_ready()
        assert get(host, "/readyz")[0] == "200"
        samples = [s for family in text_string_to_metric_families(get(host, "/metrics")[1]) for s in family.samples]
        figures = {sample.name.removeprefix("flannel_udp_"): sample.value for sample in samples}
        assert (figures["ready"], figures["peers"], figures["workers"]) == (1, 0, 0)
        assert figures["lease_expires_seconds"] > 0
        of_the_agent = re.compile("event_loop_|lease_|publish_|registry_")
        assert {name for name in figures if not of_the_agent.match(name)} == {
            *("build_info", "peers", "ready", "workers", "offload", "host_repairs_total"),
            *("kernel_drops_total", "degraded", "narrow_paths", "peers_by_health", "underlay_icmp_errors_total"),
        }
        host.configure("link set eth0 down")
        wait_for("not ready", lambda: get(host, "/readyz")[0] == "503")
        host.configure("link set eth0 up", "route add default via 192.0.2.254")
        wait_for("ready", lambda: get(host, "/readyz")[0] == "200")
        assert agent.stop() == 0
