"""What keeps an agent from starting: one clear line, the right exit code, nothing half-written, nothing left behind."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from flannel_udp.backend.table import BACKENDS
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, in_mounts_of, remains_of, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

SECRET = "tell-nobody"  # noqa: S105 - of no account anywhere


@pytest.fixture(scope="module")
def bare() -> Iterator[Host]:
    """A host on which no agent gets far."""
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        yield lab.hosts[0]


def refused(
    host: Host,
    *arguments: str,
    code: int,
    wrapper: Sequence[str] = (),
    iface: str = "eth0",
) -> str:
    """Start an agent that cannot run, and return its last line: the only one that is no ordinary progress."""
    registry = host.plan.registry_file.read_text()
    with Agent(host, *arguments, wrapper=wrapper, iface=iface) as agent:
        assert agent.exit_code() == code, agent.said()
        said = agent.said()
    complaints = [line for line in said if line.startswith("flannel-udp: ")]
    assert said[-1:] == complaints, said
    assert [line for line in said[:-1] if not line.startswith(("using interface", "kept CAP_"))] == []
    assert remains_of(host) == set()
    assert host.plan.registry_file.read_text() == registry
    return complaints[0].removeprefix("flannel-udp: ")


# Rights


def test_an_ordinary_user_is_told_what_is_missing(bare: Host) -> None:
    # The user may read all files only because the interpreter may live where nobody but root can.
    keep = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")
    wrapper = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *keep)
    line = refused(bare, code=1, wrapper=wrapper)
    assert line.startswith("missing CAP_NET_ADMIN and CAP_NET_RAW: run as root, or grant the capabilities")


@pytest.mark.parametrize(("dropped", "named"), [("net_admin", "CAP_NET_ADMIN"), ("net_raw", "CAP_NET_RAW")])
def test_root_without_a_capability_is_told_which(bare: Host, dropped: str, named: str) -> None:
    wrapper = ("setpriv", f"--bounding-set=-{dropped}", f"--inh-caps=-{dropped}")
    assert refused(bare, code=1, wrapper=wrapper).startswith(f"missing {named}: run as root, or grant")


def test_no_tun_device_is_told_with_what_to_do(bare: Host) -> None:
    # `ip netns exec`, by which the agent starts, gives it a mount namespace of its own.
    wrapper = ("sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh")
    line = refused(bare, code=1, wrapper=wrapper)
    assert line.startswith("cannot open /dev/net/tun: No such file or directory: load the driver (modprobe tun)")
    assert Path("/dev/net/tun").exists()


# Interfaces and ports


def test_an_interface_that_comes_later_is_waited_for(bare: Host) -> None:
    """A VPN's, say: made by another service, without an address at first."""
    with Agent(bare, iface="late0") as agent:
        line = agent.wait_for_line("finding the external interface failed: ")
        assert "--iface=late0: no such interface; interfaces that are up with an IPv4 or IPv6 address: eth0 (" in line
        assert bare.control("/v1/status")["state"] == "waiting for the external interface"
        bare.configure("link add late0 type bridge", "link set late0 up")
        try:
            agent.wait_for_line("--iface=late0: late0 has no IPv4 address")
            bare.configure("addr add 198.51.100.7/24 dev late0")
            agent.wait_for_line("using interface late0, address 198.51.100.7")
            agent.wait_ready()
            assert agent.stop() == 0
        finally:
            bare.configure("link del late0")
    bare.subnet_file.unlink()


def test_a_default_route_that_comes_later_is_waited_for(bare: Host) -> None:
    bare.configure("route del default")
    try:
        with Agent(bare, iface="") as agent:
            none = "default route: this host has none for"  # which family is on is not known yet
            agent.wait_for_line(f"no interface to use: {none} IPv4; {none} IPv6; name one with --iface")
            bare.configure("route add default dev eth0")  # without a source, too
            agent.wait_for_line("using interface eth0, address 192.0.2.1")
            agent.wait_ready()
            assert agent.stop() == 0
            bare.configure("route del default")
    finally:
        bare.configure("route add default via 192.0.2.254")
    bare.subnet_file.unlink()


def test_a_way_to_an_address_that_comes_later_is_waited_for(bare: Host) -> None:
    bare.configure("route del default")
    try:
        with Agent(bare, "--iface-can-reach=203.0.113.9", iface="") as agent:
            agent.wait_for_line("--iface-can-reach=203.0.113.9: no route leads there")
            assert bare.control("/v1/status")["state"] == "waiting for the external interface"
            bare.configure("route add default dev eth0")  # which has no source of its own
            agent.wait_for_line("using interface eth0, address 192.0.2.1")
            agent.wait_ready()
            assert agent.stop() == 0
    finally:
        bare.configure("route replace default via 192.0.2.254")
    bare.subnet_file.unlink()


def test_only_what_the_command_line_alone_gets_wrong_ends_with_2(bare: Host) -> None:
    assert refused(bare, "--iface-regex=(", code=2).startswith("--iface-regex: '(' is not a regular expression")
    assert refused(bare, "--iface-can-reach=a.example", code=2).startswith("--iface-can-reach: 'a.example' is not")


def test_a_port_in_use_is_told(bare: Host) -> None:
    with bare.socket(socket.AF_INET, socket.SOCK_DGRAM) as squatter:
        squatter.bind((str(bare.underlay), 8285))
        line = refused(bare, code=1)
    assert line.startswith("UDP port 8285 on 192.0.2.1 is in use: does another flanneld or flannel-udp run here?")


# etcd's flags


def test_a_password_in_the_url_is_refused_and_not_repeated(bare: Host) -> None:
    line = refused(bare, "--registry=etcd", f"--etcd-endpoints=http://me:{SECRET}@192.0.2.254:2379", code=2)
    assert "--etcd-username and --etcd-password" in line
    assert SECRET not in line


# Configurations that are wrong, or right and not for this host: a corrected one is waited for


@contextmanager
def registry_with(host: Host, config: Mapping[str, object]) -> Iterator[Callable[[], object]]:
    """Put another configuration into the registry; what is yielded puts the right one back, as the end does."""
    file = host.plan.registry_file
    good = file.read_text()
    file.write_text(json.dumps({"config": config}))
    try:
        yield lambda: file.write_text(good)
    finally:
        file.write_text(good)


def waits_until_it_is_right(host: Host, config: Mapping[str, object], *faults: str, iface: str = "eth0") -> None:
    """See an agent say these faults once, take nothing, and run as soon as the configuration is a right one."""
    with registry_with(host, config) as correct, Agent(host, iface=iface) as agent:
        for fault in faults:
            agent.wait_for_line(f"reading the network configuration failed: {fault} (trying again every")
        # Before each try it looks at the interface once more, and says so.
        wait_for("it waits", lambda: host.control("/v1/status")["state"] == "waiting for configuration")
        assert remains_of(host) == {host.control_socket.name, f"{host.control_socket.name}.handover"}
        assert json.loads(host.plan.registry_file.read_bytes()).get("subnets", {}) == {}
        complaints = [line for line in agent.said() if "failed" in line]
        assert len(complaints) == len(faults)
        if iface == "eth0":
            correct()
            agent.wait_ready()
            assert "reading the network configuration: works now" in agent.said()
        assert agent.stop() == 0
    host.subnet_file.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("config", "faults"),
    [
        (
            {"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard", "PSK": 1}},
            [f'Backend.Type is "wireguard": this agent has no such backend, it has {", ".join(BACKENDS)}'],
        ),
        (
            {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00::/48", "Backend": {"Type": "ipip"}},
            ["EnableIPv6 is true: the backend ipip carries IPv4 only"],
        ),
        (
            {"Network": "10.244.0.0/16", "SubnetLen": 99, "Backend": {"Port": 0}},
            ["SubnetLen is 99: expected at most 30", "Backend.Port is 0: expected 1 to 65535"],
        ),
        (
            {"Network": "10.244.0.0/16", "Backend": {"MTU": 1473}},
            ["Backend.MTU is 1473: the MTU of eth0, 1500, leaves room for 1472: lower the one or raise the other"],
        ),
        (
            {"Network": "192.0.2.0/24"},
            [
                (
                    "the overlay network 192.0.2.0/24 is the own network of interface eth0: "
                    "choose another Network, or remove that address from eth0"
                )
            ],
        ),
    ],
    ids=["unknown backend", "dual stack", "two faults", "MTU beyond the interface", "the host's own network"],
)
def test_a_configuration_that_cannot_be_run_is_said_once_and_a_better_one_waited_for(
    bare: Host, config: dict[str, object], faults: list[str]
) -> None:
    waits_until_it_is_right(bare, config, *faults)


def test_an_underlay_too_narrow_for_a_tunnel_is_one_clear_line(bare: Host) -> None:
    bare.configure("link add narrow0 mtu 90 type bridge", "addr add 198.51.100.1/24 dev narrow0", "link set narrow0 up")
    try:
        line = "the MTU of narrow0, 90, leaves no room for a tunnel: raise it"
        waits_until_it_is_right(bare, {"Network": "10.244.0.0/16"}, line, iface="narrow0")
    finally:
        bare.configure("link del narrow0")


# Disks


def test_a_full_disk_leaves_the_old_subnet_env_and_no_other_file() -> None:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        (host,) = lab.hosts
        disk = host.state / "tiny"
        disk.mkdir()
        script = (
            f"mount -t tmpfs -o size=64k none {disk} && echo old >{disk}/subnet.env; "
            f'dd if=/dev/zero of={disk}/ballast bs=4k 2>/dev/null; exec "$@"'
        )
        with Agent(host, f"--subnet-file={disk}/subnet.env", wrapper=("sh", "-c", script, "sh")) as agent:
            agent.wait_for_line(f"not ready: cannot write {disk}/subnet.env: No space left on device")
            in_its_mounts = in_mounts_of(agent)

            def files() -> set[str]:
                return set(host.run([*in_its_mounts, "ls", "-A", str(disk)]).stdout.split())

            # While it tries again, once a second, there is a draft for a moment.
            wait_for("no other file", lambda: files() - {".subnet.env.lock"} == {"ballast", "subnet.env"})
            assert host.run([*in_its_mounts, "cat", f"{disk}/subnet.env"]).stdout == "old\n"
            assert agent.stop() == 0
        disk.rmdir()
        assert remains_of(host) == set()


def test_a_directory_that_takes_no_subnet_env_is_one_clear_line(bare: Host) -> None:
    with Agent(bare, "--subnet-file=/proc/flannel/subnet.env") as agent:
        agent.wait_for_line("not ready: cannot write /proc/flannel/subnet.env: ")
        assert not bare.is_ready()
        assert agent.stop() == 0
    assert remains_of(bare) == set()
