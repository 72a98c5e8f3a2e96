"""The CNI plugin with Debian's bridge, host-local and portmap: pods on two hosts with our agents."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.cni.request import VERSIONS
from flannel_udp.files import subnet_env
from flannel_udp.files.subnet_env import SubnetEnv
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import tcp_rate
from flannel_udp.model import Subnet
from tests.support.agents import subnet_of, up_with_peers, wait_for
from tests.support.cni import (
    NEEDED,
    PLUGINS,
    CniPod,
    PluginError,
    Runtime,
    plugins_are_here,
    without_the_labs_bridge,
)
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = [*NEEDS_NETNS, pytest.mark.skipif(not plugins_are_here(), reason=f"needs {NEEDED}")]

OF_DEBIAN = [version for version in VERSIONS if version != "1.1.0"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=2, pods=0)) as lab:
        yield without_the_labs_bridge(up_with_peers(lab))


@pytest.fixture(scope="module")
def masquerading_lab() -> Iterator[Lab]:
    """Hosts whose agents masquerade, so that their bridges need not."""
    with Lab(Plan(fresh_name(), hosts=2, pods=0, agent_args=("--ip-masq",))) as lab:
        yield without_the_labs_bridge(up_with_peers(lab))


@pytest.fixture
def runtime(lab: Lab, tmp_path: Path) -> Runtime:
    return Runtime(lab.hosts[0], tmp_path)


def script(folder: Path, name: str, text: str) -> Path:
    """Write a delegate of our own and return its folder."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return folder


def kill_both(plugin: subprocess.Popen[str], delegate: Path) -> None:
    """Kill our plugin and then the delegate, whose process id is in the file."""
    plugin.kill()
    plugin.wait(PATIENCE_S)
    os.kill(int(delegate.read_text()), signal.SIGKILL)
    plugin.communicate(timeout=PATIENCE_S)


def listen(node: CniPod | Lab, port: int) -> socket.socket:
    """Return a listening socket inside the pod, or inside the lab's network beyond the hosts."""
    listener = (node.net if isinstance(node, Lab) else node).socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.settimeout(PATIENCE_S)
    listener.bind(("", port))
    listener.listen()
    return listener


def peer_seen(listener: socket.socket, client: socket.socket, address: str, port: int) -> str:
    """Connect, and return the client's address as the server sees it."""
    with listener, client:
        client.settimeout(PATIENCE_S)
        client.connect((address, port))
        connection, (seen, _) = listener.accept()
        connection.close()
    return str(seen)


OUTSIDE = IPv4Address("192.0.2.254")
"""The lab's network beyond the hosts: it has no route to the overlay, so what it answers to was masqueraded."""


@contextmanager
def two_pods(lab: Lab, folder: Path, **delegate: Any) -> Iterator[tuple[CniPod, CniPod]]:
    """Add a pod on each host; when the block is done they are deleted and nothing may be left of them."""
    runtimes = [Runtime(host, folder) for host in lab.hosts]
    near, far = pods = [runtime.new_pod() for runtime in runtimes]
    for runtime, pod in zip(runtimes, pods, strict=True):
        runtime.flannel["delegate"] |= delegate
        runtime.add(pod)
        assert pod.ip in subnet_of(runtime.host)
    yield near, far
    for runtime, pod in zip(runtimes, pods, strict=True):
        runtime.delete(pod)
        assert runtime.remains() == []


def source_seen(source: CniPod, target: CniPod | Lab, address: IPv4Address) -> str:
    """Connect from a pod and return its address as the other side sees it."""
    return peer_seen(listen(target, 7000), source.socket(socket.AF_INET, socket.SOCK_STREAM), str(address), 7000)


N_PACKETS = 5000


def packets_a_system_call(source: CniPod, target: CniPod) -> float:
    """Send TCP until N_PACKETS have passed, and return how many the source's agent carried with one system call."""

    def counted() -> tuple[int, int]:
        counters = source.host.control("/v1/status")["counters"]
        packets: int = counters["out"]["packets"] + counters["in"]["packets"]
        return packets, sum(counters["system_calls"].values())

    packets, calls = counted()

    def have_passed() -> bool:
        tcp_rate(source, target, target.ip, duration_s=0.5)
        return counted()[0] - packets > N_PACKETS

    wait_for(f"{N_PACKETS} packets", have_passed)
    after = counted()
    return (after[0] - packets) / (after[1] - calls)


def test_where_the_bridge_masquerades_pods_see_hosts_and_the_outside_sees_the_host(lab: Lab, tmp_path: Path) -> None:
    with two_pods(lab, tmp_path) as (near, far):
        for source, target in ((near, far), (far, near)):
            # The bridge knows its own subnet only and masquerades what goes to other hosts' pods too, as with flannel.
            assert source_seen(source, target, target.ip) == str(subnet_of(source.host).network_address)
        assert source_seen(near, lab, OUTSIDE) == str(near.host.underlay)


def test_where_the_agent_masquerades_pods_see_pods_and_the_outside_sees_the_host(
    masquerading_lab: Lab, tmp_path: Path
) -> None:
    with two_pods(masquerading_lab, tmp_path) as (near, far):
        assert Runtime(near.host, tmp_path).nat_rules() == []
        for source, target in ((near, far), (far, near)):
            assert source_seen(source, target, target.ip) == str(source.ip)
        assert source_seen(near, masquerading_lab, OUTSIDE) == str(near.host.underlay)


def test_where_nobody_masquerades_pods_see_pods(lab: Lab, tmp_path: Path) -> None:
    with two_pods(lab, tmp_path, ipMasq=False) as (near, far):
        assert source_seen(near, far, far.ip) == str(near.ip)


@pytest.mark.parametrize("which", ["lab", "masquerading_lab"])
def test_tcp_between_pods_is_carried_in_super_packets(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with two_pods(request.getfixturevalue(which), tmp_path) as (near, far):
        # Where the pods' interfaces or the masquerading cut super-packets, it would be less than one.
        assert packets_a_system_call(near, far) > 4


def test_a_pod_has_flannels_mtu_routes_and_gateway(runtime: Runtime) -> None:
    pod = runtime.new_pod()
    runtime.add(pod)
    gateway = str(subnet_of(runtime.host).network_address + 1)
    (link,) = json.loads(pod.run(["ip", "-json", "link", "show", "eth0"]).stdout)
    routes = {route["dst"]: route.get("gateway") for route in json.loads(pod.run(["ip", "-json", "route"]).stdout)}
    assert link["mtu"] == 1472
    assert routes == {"default": gateway, "10.244.0.0/16": gateway, str(subnet_of(runtime.host)): None}
    assert (runtime.state_dir / pod.container_id).stat().st_mode & 0o777 == 0o600
    runtime.delete(pod)


def test_a_port_of_the_host_leads_to_the_pod(lab: Lab, runtime: Runtime) -> None:
    pod = runtime.new_pod(ports=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    runtime.add(pod)
    client = lab.net.socket(socket.AF_INET, socket.SOCK_STREAM)
    assert peer_seen(listen(pod, 80), client, str(lab.hosts[0].underlay), 8080) == "192.0.2.254"
    runtime.delete(pod)
    assert runtime.remains() == []


@pytest.mark.parametrize("version", OF_DEBIAN)
def test_every_version_of_the_spec_that_debians_plugins_speak(lab: Lab, tmp_path: Path, version: str) -> None:
    runtime = Runtime(lab.hosts[0], tmp_path, version)
    del runtime.conflist["plugins"][1:]  # lists exist since 0.3.0
    pod = runtime.new_pod()
    runtime.add(pod)
    assert pod.result["cniVersion"] == version
    runtime.delete(pod)
    assert runtime.remains() == []


def test_del_twice_and_without_the_namespace_is_no_error(runtime: Runtime) -> None:
    runtime.flannel["delegate"]["ipMasq"] = False  # the bridge finds its rules only by the address inside
    pod = runtime.new_pod()
    runtime.add(pod)
    pod.run(["ip", "link", "del", "eth0"])
    runtime.delete(pod, netns=False)
    assert runtime.addresses() == {}
    runtime.delete(pod)
    runtime.delete(runtime.new_pod())  # never added
    assert runtime.remains() == []


def test_check_finds_a_missing_address(runtime: Runtime) -> None:
    pod = runtime.new_pod()
    runtime.flannel["delegate"]["ipMasq"] = False  # the bridge finds its rules only by the address inside
    with pytest.raises(PluginError) as unknown:
        runtime.check(pod)
    assert unknown.value.code == 3
    runtime.add(pod)
    runtime.check(pod)
    pod.configure("addr flush dev eth0")
    with pytest.raises(PluginError) as found:
        runtime.check(pod)
    assert found.value.msg.startswith("bridge: ")
    runtime.delete(pod)
    assert runtime.remains() == []


def test_fifty_pods_at_once_get_fifty_addresses_and_leave_nothing(runtime: Runtime) -> None:
    pods = [runtime.new_pod() for _ in range(50)]
    with ThreadPoolExecutor(len(pods)) as pool:
        list(pool.map(runtime.add, pods))
        assert len({pod.ip for pod in pods}) == len(pods)
        assert sorted(runtime.addresses().values()) == sorted(pod.container_id for pod in pods)
        assert runtime.attachments() == sorted(pod.container_id for pod in pods)
        list(pool.map(runtime.delete, pods))
    assert runtime.remains() == []


def test_a_kill_before_the_delegate_did_anything_leaves_what_del_needs(lab: Lab, tmp_path: Path) -> None:
    # Stops before it becomes the bridge; in DEL it is the bridge at once.
    waiting = f'[ "$CNI_COMMAND" = ADD ] && {{ echo $$ >{tmp_path}/pid; kill -STOP $$; }}\nexec {PLUGINS}/bridge'
    runtime = Runtime(lab.hosts[0], tmp_path, plugins=[script(tmp_path / "own", "bridge", waiting)])
    pod = runtime.new_pod()
    process = runtime.start("ADD", runtime.flannel, pod)
    wait_for("the delegate runs", lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    kill_both(process, tmp_path / "pid")
    assert runtime.attachments() == [pod.container_id]
    runtime.delete(pod)
    assert runtime.remains() == []


def test_a_kill_after_the_delegate_did_everything_leaves_what_del_needs(lab: Lab, tmp_path: Path) -> None:
    lingering = f'{PLUGINS}/bridge || exit\n[ "$CNI_COMMAND" = ADD ] && {{ echo $$ >{tmp_path}/pid; kill -STOP $$; }}'
    runtime = Runtime(lab.hosts[0], tmp_path, plugins=[script(tmp_path / "own", "bridge", lingering)])
    pod = runtime.new_pod()
    process = runtime.start("ADD", runtime.flannel, pod)
    wait_for("the delegate is done", lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    kill_both(process, tmp_path / "pid")
    assert list(runtime.addresses().values()) == [pod.container_id]
    del runtime.conflist["plugins"][1:]
    (tmp_path / "own" / "bridge").unlink()
    runtime.delete(pod)
    assert runtime.remains() == []


def test_an_add_that_fails_in_the_middle_is_undone(lab: Lab, tmp_path: Path) -> None:
    # A whole bridge, and then an error: everything was done and must go again.
    failing = f"""out=$({PLUGINS}/bridge) || {{ echo "$out"; exit 1; }}
[ "$CNI_COMMAND" = ADD ] || exit 0
echo '{{"cniVersion": "1.0.0", "code": 142, "msg": "no more", "details": "really"}}'
exit 1"""
    runtime = Runtime(lab.hosts[0], tmp_path, plugins=[script(tmp_path / "own", "bridge", failing)])
    pod = runtime.new_pod()
    with pytest.raises(PluginError) as failed:
        runtime.add(pod)
    assert (failed.value.code, failed.value.msg) == (142, "bridge: no more")
    assert runtime.remains() == []


def test_where_all_addresses_are_kept_for_containers_that_are_gone_add_says_where(
    runtime: Runtime, tmp_path: Path
) -> None:
    """As after a power cut: who would have run DEL is gone."""
    subnet_file = tmp_path / "subnet.env"
    subnet = IPv4Network("10.1.15.0/29")
    subnet_env.write(subnet_file, SubnetEnv(IPv4Network("10.1.0.0/16"), Subnet(subnet), 1472, ip_masq=False))
    runtime.flannel["subnetFile"] = str(subnet_file)
    reserved = runtime.addresses_dir / "cbr0"
    reserved.mkdir(parents=True)
    _gateway, *addresses = subnet.hosts()
    for address in addresses:
        (reserved / str(address)).write_text("gone\r\neth0")
    with pytest.raises(PluginError) as failed:
        runtime.add(runtime.new_pod())
    assert "no IP addresses available in range set" in failed.value.msg
    assert f"{reserved} has a file for each address" in failed.value.msg
    assert set(runtime.addresses().values()) == {"gone"}


def test_where_undoing_fails_too_del_has_what_it_needs(lab: Lab, tmp_path: Path) -> None:
    broken = f'[ "$CNI_COMMAND" = ADD ] && {PLUGINS}/bridge >/dev/null\nexit 7'
    runtime = Runtime(lab.hosts[0], tmp_path, plugins=[script(tmp_path / "own", "bridge", broken)])
    pod = runtime.new_pod()
    with pytest.raises(PluginError) as failed:
        runtime.add(pod)
    assert failed.value.msg == "bridge failed in ADD (exit code 7) without a CNI error"
    assert runtime.attachments() == [pod.container_id]
    (tmp_path / "own" / "bridge").unlink()
    runtime.delete(pod)
    assert runtime.remains() == []


def test_a_damaged_state_file_costs_no_address(runtime: Runtime) -> None:
    pod = runtime.new_pod()
    runtime.add(pod)
    (runtime.state_dir / pod.container_id).write_text('{"type": "bri')
    with pytest.raises(PluginError) as damaged:
        runtime.check(pod)
    assert "is damaged" in damaged.value.msg
    runtime.delete(pod)
    assert runtime.remains() == []


@pytest.fixture
def runtime_of_1_1(lab: Lab, tmp_path: Path) -> Runtime:
    """A bridge that speaks CNI 1.1, as Debian's does not yet: Debian's own for what 1.0 has, STATUS and GC kept."""
    speaks = f"""conf=$(cat)
case $CNI_COMMAND in
STATUS | GC) printf '%s' "$conf" >{tmp_path}/$CNI_COMMAND ;;
*) printf '%s' "$conf" | sed 's/"cniVersion": "1.1.0"/"cniVersion": "1.0.0"/g' | {PLUGINS}/bridge ;;
esac"""
    runtime = Runtime(lab.hosts[0], tmp_path, "1.1.0", [script(tmp_path / "own", "bridge", speaks)])
    del runtime.conflist["plugins"][1:]
    runtime.flannel["delegate"]["ipMasq"] = False  # without CNI_NETNS, as in GC, a bridge leaves its rules
    return runtime


def test_gc_detaches_what_the_runtime_no_longer_has(runtime_of_1_1: Runtime, tmp_path: Path) -> None:
    runtime = runtime_of_1_1
    kept, _ = pods = [runtime.new_pod() for _ in range(2)]
    for pod in pods:
        runtime.add(pod)
    with pytest.raises(PluginError) as unsaid:
        runtime.call("GC", runtime.flannel)
    assert unsaid.value.code == 7
    valid = {"cni.dev/valid-attachments": [{"containerID": kept.container_id, "ifname": "eth0"}]}
    runtime.call("GC", runtime.flannel, extra=valid)
    assert runtime.attachments() == [kept.container_id]
    assert list(runtime.addresses().values()) == [kept.container_id]
    given_on = json.loads((tmp_path / "GC").read_text())
    assert given_on | valid == given_on
    runtime.call("GC", runtime.flannel, extra={"cni.dev/valid-attachments": None})  # Go's empty list
    assert runtime.attachments() == []
    for pod in pods:
        runtime.delete(pod)
        pod.configure("link del eth0")  # without CNI_NETNS a bridge gives back the address only
    assert runtime.remains() == []


def test_status_says_whether_add_would_work(runtime_of_1_1: Runtime, tmp_path: Path) -> None:
    runtime = runtime_of_1_1
    runtime.call("STATUS", runtime.flannel)
    assert json.loads((tmp_path / "STATUS").read_text())["type"] == "bridge"
    for change, part in (
        ({"subnetFile": str(tmp_path / "nowhere")}, "is it running?"),
        ({"delegate": {"type": "brigde"}}, "no executable 'brigde' in CNI_PATH"),
    ):
        with pytest.raises(PluginError) as unavailable:
            runtime.call("STATUS", runtime.flannel, extra=change)
        assert unavailable.value.code == 50
        assert part in unavailable.value.msg
