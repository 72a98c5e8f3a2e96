"""A live agent asked by its commands, its health server and its service manager; and a second agent beside it."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import (
    Agent,
    acquaint,
    command_json,
    command_line,
    drops_of,
    subnet_of,
    unanswered,
    up_with_peers,
    wait_for,
)
from tests.support.by_hand import FileByHand
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S
from tests.support.systemd import open_notify_socket

pytestmark = NEEDS_NETNS

HEALTH_PORT = 8080


# status, peers, route


def test_status_tells_what_the_agent_is_doing(pair: Lab) -> None:
    h1 = pair.hosts[0]
    status = command_json(h1, "status")
    subnet = subnet_of(h1)
    assert status["pid"] == h1.agent_pid()
    assert (status["state"], status["ready"], status["peers"]) == ("running", True, 1)
    assert (status["network"], status["subnet"], status["public_ip"]) == ("10.244.0.0/16", str(subnet), "192.0.2.1")
    assert status["interface"] == {"name": "eth0", "address": "192.0.2.1", "mtu": 1500}
    assert status["tunnel"] == {"name": "flannel0", "address": f"{subnet.network_address}/32", "mtu": 1472}
    assert status["backend"] == {"type": "udp", "port": 8285}
    assert status["lease"]["key"] == str(subnet).replace("/", "-")
    assert 86_000 < status["lease"]["expires_in_s"] <= 86_401  # the file registry rounds up to whole seconds
    text = command_line(h1, "status").stdout
    for fact in ("running (ready)", str(subnet), "192.0.2.1", "flannel0", "port 8285"):
        assert fact in text


def test_traffic_and_drops_are_counted(pair: Lab) -> None:
    h1, h2 = pair.hosts
    acquaint(pair.hosts)
    (before,) = command_json(h1, "peers")
    dropped = drops_of(h1, "out").get("no_route", 0)
    for _ in range(3):  # one ping of three waits for the last answer only about as long as the first one took
        h1.pods[0].run(["ping", "-c1", "-W60", "-s", "100", str(h2.pods[0].ip)])
    h1.pods[0].run(["ping", "-c2", "-i0.01", "-W1", "10.244.255.7"], check=False)
    wait_for("both are dropped", lambda: drops_of(h1, "out").get("no_route", 0) >= dropped + 2)
    (after,) = command_json(h1, "peers")
    assert {name: after[name] - before[name] for name in ("packets_out", "bytes_out", "packets_in", "bytes_in")} == {
        "packets_out": 3,
        "bytes_out": 3 * 128,
        "packets_in": 3,
        "bytes_in": 3 * 128,
    }
    assert drops_of(h1, "out")["no_route"] == dropped + 2
    assert "dropped: no_route" in command_line(h1, "status").stdout


def test_peers_lists_the_other_host(pair: Lab) -> None:
    h1, h2 = pair.hosts
    (peer,) = command_json(h1, "peers")
    assert (peer["subnet"], peer["public_ip"]) == (str(subnet_of(h2)), "192.0.2.2")
    (line,) = command_line(h1, "peers").stdout.splitlines()[1:]
    assert line.split()[:2] == [str(subnet_of(h2)), "192.0.2.2"]


def test_route_get_names_the_peer_or_says_why_there_is_none(pair: Lab) -> None:
    h1, h2 = pair.hosts
    cases = {
        str(h2.pods[0].ip): ("peer", str(subnet_of(h2))),
        str(h1.pods[0].ip): ("own subnet", str(subnet_of(h1))),
        "10.244.255.7": ("no route", None),
        "198.51.100.1": ("outside network", None),
    }
    for address, (verdict, subnet) in cases.items():
        route = command_json(h1, "route", "get", address)
        assert (route["address"], route["verdict"], route.get("subnet")) == (address, verdict, subnet)
        assert route["reason"]
    route = command_json(h1, "route", "get", str(h2.pods[0].ip))
    shown = command_line(h1, "route", "get", str(h2.pods[0].ip))
    assert shown.returncode == 0
    assert f"via 192.0.2.2:8285 dev eth0 tunnel flannel0 subnet {subnet_of(h2)}" in shown.stdout
    assert route["reason"] in shown.stdout
    assert {name: route[name] for name in ("public_ip", "port", "interface", "tunnel")} == {
        "public_ip": "192.0.2.2",
        "port": 8285,
        "interface": "eth0",
        "tunnel": "flannel0",
    }


def test_route_get_fails_where_one_of_the_addresses_has_no_route(pair: Lab) -> None:
    h1, h2 = pair.hosts
    there, here = str(h2.pods[0].ip), str(h1.pods[0].ip)
    assert command_line(h1, "route", "get", there, here).returncode == 0
    assert command_line(h1, "route", "get", there, "10.244.255.7", here).returncode == 1
    assert command_line(h1, "route", "get", "198.51.100.1").returncode == 1
    assert [route["address"] for route in command_json(h1, "route", "get", there, here)] == [there, here]


def test_route_list_has_all_that_packets_have_a_route_to(pair: Lab) -> None:
    h1, h2 = pair.hosts
    own, theirs = subnet_of(h1), subnet_of(h2)
    by_hand = FileByHand(pair)
    by_hand.put("10.244.250.0-24", '{"PublicIP": "192.0.2.1"}')  # under our own address
    try:
        wait_for("the entry is known", lambda: len(command_json(h1, "route", "list")) == 3)
        routes = {route.pop("subnet"): route for route in command_json(h1, "route", "list")}
    finally:
        by_hand.delete("10.244.250.0-24")
    assert list(routes) == [*map(str, sorted((own, theirs))), "10.244.250.0/24"]
    assert routes[str(own)] == {"verdict": "own subnet"}
    assert routes["10.244.250.0/24"]["verdict"] == "own subnet"
    assert "with this host's public IP" in routes["10.244.250.0/24"]["reason"]
    assert routes[str(theirs)] == {
        "verdict": "peer",
        "public_ip": "192.0.2.2",
        "port": 8285,
        "interface": "eth0",
        "tunnel": "flannel0",
    }
    shown = command_line(h1, "route", "list", "--peer=192.0.2.2")
    assert shown.stdout == f"{theirs} via 192.0.2.2:8285 dev eth0 tunnel flannel0\n"
    wait_for("the entry is gone", lambda: len(command_json(h1, "route", "list")) == 2)


def backend(kind: str) -> dict[str, Any]:
    return {"Network": str(OVERLAY), "Backend": {"Type": kind}}


def test_route_list_has_the_routes_that_the_kernel_has_for_us() -> None:
    with Lab(Plan(fresh_name(), hosts=2, config=backend("host-gw"), families="46")) as lab:
        h1, h2 = up_with_peers(lab).hosts
        theirs = [str(h2.subnet_of(version)) for version in (4, 6)]
        lines = command_line(h1, "route", "list").stdout.splitlines()
        assert len(lines) == 4
        assert f"{theirs[0]} via 192.0.2.2 dev eth0" in lines
        assert f"{theirs[1]} via 2001:db8::2 dev eth0" in lines


def test_route_list_is_empty_where_the_routes_are_somebody_elses_business() -> None:
    with Lab(Plan(fresh_name(), hosts=2, config=backend("alloc"))) as lab:
        h1 = up_with_peers(lab).hosts[0]
        own = subnet_of(h1)
        assert command_line(h1, "route", "list").stdout == f"{own} own subnet\n"


@pytest.mark.parametrize(
    "words", [("route", "get", "10.244.1"), ("route", "get", "fe80::1%eth0"), ("route", "get", "")]
)
def test_what_is_no_address_is_wrong_usage(pair: Lab, words: tuple[str, ...]) -> None:
    done = command_line(pair.hosts[0], *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"flannel-udp: {words[2]!r} is not an IP address\n"


def test_the_control_socket_is_its_owners_alone(pair: Lab) -> None:
    assert pair.hosts[0].control_socket.stat().st_mode & 0o777 == 0o600


# A second agent beside it


def test_a_second_agent_on_the_same_control_socket_is_refused(pair: Lab) -> None:
    h1 = pair.hosts[0]
    with Agent(h1) as second:
        assert second.exit_code() == 1
        (line,) = second.said()
        assert line == (
            f"flannel-udp: another flannel-udp is running (pid {h1.agent_pid()}, on {h1.control_socket}): "
            "stop it first, or take its place with --takeover; for another overlay beside it choose another "
            "--control-socket and --subnet-file"
        )
    assert command_json(h1, "status")["ready"] is True
    assert unanswered(pair.pods()) == []


def test_a_second_agent_beside_it_is_refused_and_takes_nothing_along(pair: Lab, tmp_path: Path) -> None:
    h1 = pair.hosts[0]
    env = h1.subnet_file.read_text()
    with Agent(h1, "--control-socket", str(tmp_path / "second.sock")) as second:
        assert second.exit_code() == 1
        line = second.said()[-1]
        assert line == (
            f"flannel-udp: another flannel-udp (pid {h1.agent_pid()}) has the overlay network 10.244.0.0/16: "
            "stop it first, or take its place with --takeover"
        )
    assert list(tmp_path.iterdir()) == []
    assert h1.subnet_file.read_text() == env
    assert "flannel1" not in h1.run(["ip", "-br", "link"]).stdout
    assert unanswered(pair.pods()) == []


# Health and readiness


@pytest.fixture
def host() -> Iterator[Host]:
    """A host on which nothing runs yet, and a registry without a configuration."""
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        lab.plan.registry_file.write_text("{}")
        yield lab.hosts[0]


def configure(host: Host) -> None:
    """Write the configuration, as an operator does who is later than the agents."""
    document = host.state / "net-conf.json"
    document.write_text('{"Network": "10.244.0.0/16"}')
    registry = f"file:{host.plan.registry_file}"
    done = command_without_agent(host, "config", "put", str(document), "--registry", registry)
    document.unlink()
    assert done == (0, "stored: the registry's first network configuration\n", "")


def command_without_agent(host: Host, *words: str) -> tuple[int, str, str]:
    done = host.run([sys.executable, "-m", "flannel_udp", *words], check=False)
    return done.returncode, done.stdout, done.stderr


def health(host: Host, path: str, address: str = "192.0.2.1") -> int:
    """Return the status code that the health server answers with, 0 if nothing listens."""
    connection = http.client.HTTPConnection(address, HEALTH_PORT, timeout=PATIENCE_S)
    connection.sock = host.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.sock.connect((address, HEALTH_PORT))
        connection.request("GET", path)
        return connection.getresponse().status
    except ConnectionRefusedError:
        return 0
    finally:
        connection.close()


def test_readyz_and_the_service_manager_hear_of_readiness_only_when_traffic_can_flow(
    host: Host, tmp_path: Path
) -> None:
    with open_notify_socket(host, tmp_path / "notify") as manager:
        told: list[str] = []

        def hear() -> list[str]:
            try:
                while True:
                    told.append(manager.recv(4096).decode())
            except BlockingIOError:
                return told

        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with Agent(host, f"--healthz-port={HEALTH_PORT}", environment=environment) as agent:
            agent.wait_for_line("holds no network configuration")
            assert (health(host, "/healthz"), health(host, "/readyz")) == (200, 503)
            assert health(host, "/readyz", "127.0.0.1") == 503  # on all addresses, flanneld's default
            assert "READY=1" not in hear()
            assert not host.subnet_file.exists()
            status = command_json(host, "status")
            assert (status["state"], status["ready"]) == ("waiting for configuration", False)
            assert command_json(host, "peers") == []

            configure(host)
            wait_for("readyz is 200", lambda: health(host, "/readyz") == 200)
            assert host.subnet_file.exists()
            assert health(host, "/healthz") == 200
            wait_for("READY=1", lambda: "READY=1" in hear())
            assert agent.stop() == 0
            assert hear()[-1] == "STOPPING=1"
            assert told.count("READY=1") == 1
        assert health(host, "/healthz") == 0


def errors_of(host: Host) -> dict[str, tuple[str, bool]]:
    """Return the last errors of the agent's parts, and whether each is over."""
    return {part: (met["text"], met["over"]) for part, met in command_json(host, "status")["last_errors"].items()}


def test_status_is_waited_for_and_tells_the_last_errors_of_what_kept_it(host: Host) -> None:
    argv = [sys.executable, "-m", "flannel_udp", "status", "--wait=5m", "--control-socket", str(host.control_socket)]
    waiting = host.popen(argv, stdout=subprocess.DEVNULL)
    try:
        with Agent(host) as agent:
            agent.wait_for_line("holds no network configuration")
            assert "holds no network configuration" in errors_of(host)["configuration"][0]
            assert waiting.poll() is None
            one = {"Network": "10.244.0.0/16", "SubnetMin": "10.244.1.0", "SubnetMax": "10.244.1.0"}
            taken = {"10.244.1.0-24": {"PublicIP": "192.0.2.9"}}
            host.plan.registry_file.write_text(json.dumps({"config": one, "subnets": taken}))
            wait_for("there is no subnet", lambda: "lease" in errors_of(host))
            assert errors_of(host)["configuration"][1]
            text, over = errors_of(host)["lease"]
            assert text.startswith("all 1 subnets of length /24 from 10.244.1.0 to 10.244.1.0 are taken")
            assert not over
            assert "error      lease, " in command_line(host, "status").stdout
            assert waiting.poll() is None
            host.plan.registry_file.write_text(json.dumps({"config": one}))
            assert waiting.wait(60) == 0
            assert errors_of(host)["lease"][1]
            document = host.plan.registry_file.read_text()
            host.plan.registry_file.unlink()
            wait_for("the watch fails", lambda: not errors_of(host).get("watch", ("", True))[1])
            host.plan.registry_file.write_text(document)
            wait_for("the watch works", lambda: errors_of(host)["watch"][1])
            assert agent.stop() == 0
    finally:
        waiting.kill()
        waiting.wait()


def test_readyz_is_503_again_while_the_lease_is_lost(host: Host) -> None:
    document = {"config": {"Network": "10.244.0.0/16", "SubnetMin": "10.244.1.0", "SubnetMax": "10.244.1.0"}}
    host.plan.registry_file.write_text(json.dumps(document))
    with Agent(host, f"--healthz-port={HEALTH_PORT}", "--healthz-ip=192.0.2.1") as agent:
        agent.wait_ready()
        assert health(host, "/readyz") == 200
        FileByHand(Lab.attach(host.plan.name)).put("10.244.1.0-24", '{"PublicIP": "192.0.2.9"}')
        wait_for("readyz is 503", lambda: health(host, "/readyz") == 503)
        assert health(host, "/healthz") == 200
