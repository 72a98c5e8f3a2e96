"""`flannel-udp doctor` on a host in order, and on hosts where one thing is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.cni.install import CONFLIST_TEXT
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import wait_until
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import subnet_of, up_with_peers
from tests.support.labs import NEEDS_NETNS, empty_namespace, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS


@pytest.fixture(scope="module", params=["udp", "host-gw"])
def duo(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two hosts in order; tests leave them so."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": request.param}}
    with Lab(Plan(fresh_name(), hosts=2, config=config)) as lab:
        yield up_with_peers(lab)


@pytest.fixture
def h1(duo: Lab) -> Host:
    """The host that is examined; its agent finds all well, what an earlier test did is over."""
    (host, peer) = duo.hosts
    target = str(subnet_of(peer)[1])

    problems: list[str] = []

    def is_well() -> bool:
        host.run(["ping", "-c", "1", "-W", "1", target], check=False)  # who was ill has to be heard again
        problems[:] = host.control("/v1/status")["problems"]
        return not problems

    assert wait_until(is_well, PATIENCE_S), problems
    return host


def run_doctor(host: Host, *arguments: str, wrapper: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [*wrapper, sys.executable, "-m", "flannel_udp", "doctor", "--iface=eth0", *host.plan.registry_args]
    paths = ["--control-socket", str(host.control_socket), "--subnet-file", str(host.subnet_file)]
    ends_s = time.monotonic() + PATIENCE_S
    while True:
        done = host.run([*command, *paths, *arguments], check=False, timeout_s=PATIENCE_S)
        # As an agent may be, or a registry, on a busy machine: that is asked again.
        if "did not answer within" not in done.stdout or time.monotonic() > ends_s:
            return done


def rows_of(host: Host, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    done = run_doctor(host, "--json", *arguments)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def faults(host: Host, *arguments: str) -> dict[str, tuple[str, str]]:
    """Return what is wrong, by question; the exit code has to say whether anything is."""
    code, rows = rows_of(host, *arguments)
    found = {row["question"]: (row["what"], row["mend"]) for row in rows if not row["ok"]}
    assert code == bool(found)
    return found


def mend(host: Host, command: str) -> None:
    """Do what the doctor says; iptables-legacy has one lock for all hosts in namespaces, and is to wait for it."""
    host.run(["sh", "-c", re.sub(r"\b(ip6?tables(-legacy|-nft)?) ", r"\1 -w ", command)])


def test_all_is_well_on_a_host_in_order(h1: Host) -> None:
    code, rows = rows_of(h1)
    assert ([row for row in rows if not row["ok"]], code) == ([], 0)
    assert all(set(row) == {"question", "ok", "what", "mend"} for row in rows)
    assert {row["question"] for row in rows} >= {
        "agent",
        "forwarding",
        "routes",
        "cut off",
        "firewall for pods",
        "peers",
    }
    lines = run_doctor(h1).stdout.splitlines()
    assert lines[0].startswith("ok    agent: flannel-udp ")
    assert lines[-1] == "nothing is wrong"
    assert not any("\x1b" in line for line in lines)


def test_a_host_that_does_not_forward(h1: Host) -> None:
    device = "flannel0" if h1.backend == "udp" else "eth0"
    h1.run(["sysctl", "-w", f"net.ipv4.conf.{device}.forwarding=0"])
    what, command = faults(h1)["forwarding"]
    assert what == f"{device} does not forward: dropped is what other hosts send to our pods"
    mend(h1, command)
    assert "forwarding" not in faults(h1)


def test_a_foreign_route(h1: Host, duo: Lab) -> None:
    peer = subnet_of(duo.hosts[1])
    h1.configure(f"route add blackhole {peer[2]}")
    what, command = faults(h1)["routes"]
    assert what.startswith(f"packets for {peer[2]}/32 are refused, not sent to ")
    mend(h1, command)
    assert "routes" not in faults(h1)


FIREWALLS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "iptables": (
        [
            "iptables -w -P INPUT DROP",
            "iptables -w -A INPUT -i lo -j ACCEPT",
            "iptables -w -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "iptables -w -A INPUT -p tcp --dport 22 -j ACCEPT",
        ],
        ["iptables -w -P INPUT ACCEPT", "iptables -w -F INPUT"],
    ),
    "nft": (
        [
            "nft add table inet own",
            "nft add chain inet own in { type filter hook input priority 0; policy drop; }",
            "nft add rule inet own in ct state established,related accept",
            "nft add rule inet own in tcp dport { 22, 8000-9000 } accept",
        ],
        ["nft delete table inet own"],
    ),
    # iptables lists no chain that has one of its names and another priority.
    "nft, iptables' names": (
        [
            "nft add table ip mangle",
            "nft add chain ip mangle INPUT { type filter hook input priority -10; policy drop; }",
            "nft add rule ip mangle INPUT ct state established,related accept",
        ],
        ["nft delete table ip mangle"],
    ),
    # Zones behind jumps, as firewalld lays them out.
    "nft, zones": (
        [
            "nft add table inet own",
            "nft add chain inet own in { type filter hook input priority 10; policy accept; }",
            *(f"nft add chain inet own {name}" for name in ("zones", "public", "allow")),
            "nft add rule inet own allow tcp dport 22 accept",
            "nft add rule inet own allow ip6 daddr fe80::/64 udp dport 546 accept",
            "nft add rule inet own public jump allow",
            "nft add rule inet own public meta l4proto { icmp, ipv6-icmp } accept",
            "nft add rule inet own zones iifname eth0 goto public",
            "nft add rule inet own zones goto public",
            "nft add rule inet own in ct state { established, related } accept",
            "nft add rule inet own in ct status dnat accept",
            "nft add rule inet own in iifname lo accept",
            "nft add rule inet own in meta mark and 0xff == 0x7 drop",
            "nft add rule inet own in jump zones",
            "nft add rule inet own in ct state { invalid } drop",
            "nft add rule inet own in reject with icmpx type admin-prohibited",
        ],
        ["nft delete table inet own"],
    ),
}


@pytest.mark.parametrize("tool", FIREWALLS)
def test_an_own_firewall_that_closes_the_port(h1: Host, tool: str) -> None:
    if shutil.which(tool.partition(",")[0]) is None:
        pytest.skip(f"needs {tool}")
    close, undo = FIREWALLS[tool]
    try:
        for line in close:
            h1.run(line.split())
        found = faults(h1)
        if h1.backend != "udp":
            assert "firewall" not in found
            return
        what, command = found["firewall"]
        assert what.startswith("this host's own firewall drops UDP port 8285: nothing of other hosts reaches pods: ")
        mend(h1, command)
        assert "firewall" not in faults(h1)
    finally:
        for line in undo:
            h1.run(line.split())


def test_a_firewall_that_forwards_nothing(h1: Host) -> None:
    if shutil.which("nft") is None:
        pytest.skip("needs nft")
    h1.run(["nft", "add", "table", "inet", "own"])
    try:
        h1.run(["nft", "add chain inet own through { type filter hook forward priority 0; policy drop; }"])
        what, command = faults(h1)["firewall for pods"]
        assert what.endswith("nftables: table own: the policy of through")
        mend(h1, command)
        assert "firewall for pods" not in faults(h1)
    finally:
        h1.run(["nft", "delete", "table", "inet", "own"])


def test_rules_that_their_tool_cannot_list_are_named_as_what_cannot_be_told(h1: Host, tmp_path: Path) -> None:
    nft = shutil.which("nft")
    if nft is None:
        pytest.skip("needs nft")
    (tmp_path / "nft").symlink_to(nft)
    h1.run(["iptables-nft", "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "-j", "DROP"])
    try:  # a container made them, and the host has no iptables
        done = run_doctor(h1, "--json", wrapper=("env", f"PATH={tmp_path}"))
        found = {row["question"]: row for row in json.loads(done.stdout)}["firewall for pods"]
        assert found["ok"]
        assert "iptables-nft: table raw: iptables-nft is missing: install iptables" in found["what"]
    finally:
        h1.run(["iptables-nft", "-t", "raw", "-F"])


def test_a_host_without_nft_is_told_which_tables_it_alone_could_list(h1: Host, tmp_path: Path) -> None:
    if shutil.which("nft") is None:
        pytest.skip("needs nft")
    (tmp_path / "iptables-nft").symlink_to(shutil.which("iptables-nft") or "")

    def told() -> dict[str, Any]:
        done = run_doctor(h1, "--json", wrapper=("env", f"PATH={tmp_path}"))
        row: dict[str, Any] = {row["question"]: row for row in json.loads(done.stdout)}["firewall for pods"]
        return row

    assert "nftables" not in told()["what"]
    h1.run(["nft", "add", "table", "inet", "own"])
    try:
        h1.run(["nft", "add chain inet own through { type filter hook forward priority 0; policy drop; }"])
        assert told()["ok"]
        assert "nftables: table own: nft is missing: install nftables" in told()["what"]
    finally:
        h1.run(["nft", "delete", "table", "inet", "own"])


def test_a_cni_configuration_by_which_the_plugin_reads_another_file_than_the_agents(h1: Host, tmp_path: Path) -> None:
    folders = f"--conf-dir={tmp_path / 'net.d'}", f"--bin-dir={tmp_path / 'bin'}"
    install = [sys.executable, "-m", "flannel_udp", "cni", "install", *folders]
    h1.run(install)
    for name in ("bridge", "host-local", "portmap"):
        (tmp_path / "bin" / name).symlink_to(tmp_path / "bin" / "flannel")
    what, command = faults(h1, *folders)["CNI configuration"]
    conflist = tmp_path / "net.d" / "10-flannel.conflist"
    assert what == (
        f"by {conflist} the plugin reads /run/flannel/subnet.env, and the agent writes {h1.subnet_file}: "
        "pods cannot be started, or get addresses of another subnet"
    )
    assert command == f'write "subnetFile": "{h1.subnet_file}" there, beside "type": "flannel"'
    conflist.unlink()
    h1.run([*install, f"--subnet-file={h1.subnet_file}"])
    assert faults(h1, *folders) == {}


def test_another_cni_configuration_goes_first(h1: Host, tmp_path: Path) -> None:
    conflist = CONFLIST_TEXT.replace('"flannel",', f'"flannel", "subnetFile": "{h1.subnet_file}",')
    (tmp_path / "10-flannel.conflist").write_text(conflist)
    (tmp_path / "05-other.conf").write_text('{"cniVersion": "1.0.0", "name": "other", "type": "ptp"}')
    plugins = tmp_path / "bin"
    plugins.mkdir()
    for name in ("flannel", "bridge", "host-local", "portmap"):
        (plugins / name).write_text("""#!/bin/sh\necho '{"supportedVersions": ["0.3.1", "0.4.0"]}'\n""")
        (plugins / name).chmod(0o755)
    arguments = f"--conf-dir={tmp_path}", f"--bin-dir={plugins}"
    what, command = faults(h1, *arguments)["CNI configuration"]
    assert what.startswith(f"{tmp_path}/05-other.conf (of ptp) comes before 10-flannel.conflist: ")
    mend(h1, command)
    assert faults(h1, *arguments) == {}
    (tmp_path / "10-flannel.conflist").write_text(conflist.replace("0.4.0", "1.0.0"))
    what, command = faults(h1, *arguments)["CNI plugins"]
    assert "10-flannel.conflist is of CNI 1.0.0, and " in what
    assert command.startswith('write "cniVersion": "0.4.0" there, or install ')
    (tmp_path / "10-flannel.conflist").write_text(conflist)
    (plugins / "flannel").write_text("")
    assert "cannot run it: Exec format error" in faults(h1, *arguments)["CNI plugins"][0]
    (plugins / "flannel").unlink()
    assert faults(h1, *arguments)["CNI plugins"][1] == f"flannel-udp cni install --bin-dir={plugins}"


def test_source_checks_where_other_hosts_are_reached_by_another_device(h1: Host, duo: Lab) -> None:
    h1.configure("link add other type veth peer name far", "link set other up", "link set far up")
    h1.configure(f"route add {duo.hosts[1].underlay}/32 dev other")
    h1.run(["sysctl", "-w", "net.ipv4.conf.eth0.rp_filter=1"])
    try:
        what, command = faults(h1)["rp_filter"]
        assert "are reached by another device" in what
        mend(h1, command)
        assert "rp_filter" not in faults(h1)
    finally:
        h1.configure("link del other")


def test_a_host_that_cannot_be_sent_to(h1: Host, duo: Lab) -> None:
    peer = duo.hosts[1].underlay
    h1.configure(f"route add blackhole {peer}")
    try:
        what, _ = faults(h1)["underlay"]
        assert what == f"no way to 1 of 1 other hosts ({peer}, say: refused (blackhole))"
    finally:
        h1.configure(f"route del blackhole {peer}")


def test_rules_by_mark_or_port_are_named_as_what_cannot_be_told(h1: Host) -> None:
    h1.configure(
        "rule add pref 100 fwmark 5 lookup 77",
        f"rule add pref 101 ipproto udp to {OVERLAY} lookup 77",
        "rule add pref 102 fwmark 6 to 198.51.100.0/24 lookup 77",
        "rule add pref 103 not fwmark 7 lookup 77",
    )
    try:
        (row,) = (row for row in rows_of(h1)[1] if row["question"] == "rules")
        assert row["ok"]
        assert row["what"].endswith(
            f': "100: from all fwmark 0x5/0xffffffff lookup 77", "101: from all to {OVERLAY} ipproto 17 lookup 77"'
        )
    finally:
        h1.configure(*(f"rule del pref {number}" for number in range(100, 104)))


ANOTHERS_ADDRESS = OVERLAY[250 * 256 + 1]
"""The first one of a subnet that no host of the lab gets: it is not among the first hundred."""


def test_a_subnet_file_that_says_something_else(h1: Host) -> None:
    file = h1.subnet_file.with_name("other.env")
    file.write_text(h1.subnet_file.read_text().replace(f"{subnet_of(h1)[1]}/", f"{ANOTHERS_ADDRESS}/"))
    try:
        assert (
            f"but the agent has {subnet_of(h1)} of {OVERLAY}" in faults(h1, f"--subnet-file={file}")["subnet file"][0]
        )
    finally:
        file.unlink()


def test_a_bridge_inside_the_overlay_is_a_doubt_until_another_host_has_its_subnet(h1: Host, duo: Lab) -> None:
    h1.configure("link add lxdbr0 type bridge", f"addr add {ANOTHERS_ADDRESS}/24 dev lxdbr0", "link set lxdbr0 up")
    try:
        code, rows = rows_of(h1)
        assert ([row for row in rows if not row["ok"]], code) == ([], 0)
        assert {
            "question": "bridges",
            "ok": True,
            "what": f"lxdbr0 has {ANOTHERS_ADDRESS}/24, which is inside the overlay network {OVERLAY}: should a host "
            "get that subnet, it is not reached from here",
            "mend": "give lxdbr0 another address, or choose another Network",
        } in rows
        h1.configure(f"addr replace {subnet_of(duo.hosts[1])[1]}/24 dev lxdbr0")
        found = [row for row in rows_of(h1)[1] if row["question"] == "routes"]
        assert any(f"{subnet_of(duo.hosts[1])[1]}/32 are kept on this host, " in row["what"] for row in found)
        assert {row["mend"] for row in found} == {
            "take the address that brought it off lxdbr0, or choose another Network"
        }
    finally:
        h1.configure("link del lxdbr0")


def test_a_pods_bridge_without_an_address(h1: Host) -> None:
    gateway = f"{subnet_of(h1)[1]}/{subnet_of(h1).prefixlen}"
    h1.configure(f"addr del {gateway} dev cni0")
    found = faults(h1)
    what, command = found.pop("bridges")
    assert what == f"cni0 has lost its address {gateway}: our pods have no gateway by IPv4"
    assert "agent" not in found  # which says the same
    mend(h1, command)
    assert "bridges" not in faults(h1)


def test_in_the_agents_own_container_nothing_is_said_of_what_is_not_seen_there(h1: Host, tmp_path: Path) -> None:
    """Its /proc has its own processes only, and the network is the host's."""
    container = ("unshare", "--pid", "--fork", "--mount-proc")
    conf_dir, bin_dir = tmp_path / "net.d", tmp_path / "bin"
    done = run_doctor(h1, "--json", f"--conf-dir={conf_dir}", f"--bin-dir={bin_dir}", wrapper=container)
    said = {row["question"]: row["what"] for row in json.loads(done.stdout)}
    assert said["CNI configuration"] == f"not asked: this container lacks the host's {conf_dir} and {bin_dir}"
    assert "CNI plugins" not in said
    if h1.backend == "udp":  # host-gw has no device that a manager could take
        assert "are not seen from inside this container" in said["network managers"]
    assert done.returncode == 0


def test_no_agent_is_the_first_line_and_the_rest_is_asked_all_the_same() -> None:
    plan = Plan(fresh_name(), hosts=1, pods=0, agents=())
    with Lab(plan) as lab:
        (host,) = lab.hosts
        lines = run_doctor(host).stdout.splitlines()
        assert lines[0].startswith("FAULT agent: flannel-udp is not running: ")
        assert "mend: systemctl start flannel-udp" in lines[0]
        found = faults(host)
        assert set(found) <= {"agent", "subnet file", "forwarding"}
        assert any(row["question"] == "registry" and "10." in row["what"] for row in rows_of(host)[1])
        port = host.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with port:
            port.bind(("", 8285))
            assert faults(host)["UDP port"][0] == "another process has 8285, and no agent can start"


def test_a_registry_file_that_never_answers_is_waited_for_some_seconds(tmp_path: Path) -> None:
    pipe = tmp_path / "registry.json"
    os.mkfifo(pipe)
    with empty_namespace() as name:
        command = [
            "ip",
            "netns",
            "exec",
            name,
            sys.executable,
            "-m",
            "flannel_udp",
            "doctor",
            f"--registry=file:{pipe}",
        ]
        done = subprocess.run(
            [*command, "--control-socket=/nonexistent"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    assert (done.returncode, done.stderr) == (1, "")
    assert f"FAULT registry: file:{pipe}: " in done.stdout


def test_a_host_with_nothing_at_all_is_answered() -> None:
    with empty_namespace() as name:
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "flannel_udp", "doctor"]
        missing = [
            "--control-socket=/nonexistent/sock",
            "--subnet-file=/nonexistent/env",
            "--registry=file:/nonexistent/r",
        ]
        done = subprocess.run([*command, *missing], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAULT registry: file:/nonexistent/r: " in done.stdout
    assert "FAULT interface: no interface to use: " in done.stdout
