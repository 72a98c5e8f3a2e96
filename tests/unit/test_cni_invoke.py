"""The plugin with delegates that fail in every way: small scripts, so that no root is needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.cni import invoke
from flannel_udp.cni.errors import CniError
from flannel_udp.cni.install import install_plugin
from tests.support.patience import PATIENCE_S

ENV = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.15.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
LOG = 'echo "$CNI_COMMAND $CNI_IFNAME" >>log'
RESULT = """echo '{"cniVersion": "1.0.0"}'"""


class Host:
    """The installed plugin, a subnet file, and a delegate named `bridge` that does what a test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugin = install_plugin(folder / "bin", os.path.realpath(sys.executable))
        self.subnet_file = folder / "subnet.env"
        self.subnet_file.write_text(ENV)

    def delegate(self, *lines: str) -> None:
        """Put a shell script in the delegate's place; it keeps a log of the calls."""
        path = self.folder / "bin" / "bridge"
        path.write_text("\n".join(("#!/bin/sh", f"cd {self.folder}", LOG, *lines, "")))
        path.chmod(0o755)

    def call(self, command: str, ifname: str = "eth0", **changes: Any) -> Any:
        """Run a command and return what the plugin printed; of an error, code and message."""
        conf = {"cniVersion": "1.1.0", "name": "cbr0", "type": "flannel", "subnetFile": str(self.subnet_file)}
        env = {"CNI_COMMAND": command, "CNI_CONTAINERID": "abc", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": ifname}
        done = subprocess.run(
            [self.plugin],
            input=json.dumps(conf | {"dataDir": str(self.folder / "data")} | changes),
            env=env | {"CNI_PATH": str(self.folder / "bin"), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        printed = json.loads(done.stdout) if done.stdout else {}
        assert done.returncode == (1 if "code" in printed else 0), done
        return (printed["code"], printed["msg"]) if done.returncode else printed

    def calls(self) -> list[str]:
        """Return what the delegate was called for since this was asked last."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def keeps_state(self) -> bool:
        """Tell whether the container's state file is there."""
        return (self.folder / "data" / "abc").exists()


def test_a_bridge_of_a_former_subnet_is_told_with_what_mends_it(host: Host) -> None:
    said = '\\"cni0\\" already has an IP address different from 10.1.15.1/24'
    host.delegate("cat <<'E'", f'{{"code": 999, "msg": "failed to set bridge addr: {said}"}}', "E", "exit 1")
    _, msg = host.call("ADD")
    assert "already has an IP address different from 10.1.15.1/24; if that is a former subnet's: stop the pods" in msg
    assert "`ip link del cni0`" in msg


@pytest.mark.parametrize("ipam", [{}, {"dataDir": "/var/lib/own"}])
def test_addresses_that_are_used_up_are_told_with_where_they_are_kept(host: Host, ipam: dict[str, str]) -> None:
    said = "failed to allocate for range 0: no IP addresses available in range set: 10.1.15.1-10.1.15.254"
    host.delegate(f"""echo '{{"code": 999, "msg": "{said}"}}'""", "exit 1")
    _, msg = host.call("ADD", ipam=ipam)
    folder = f"{ipam.get('dataDir', '/var/lib/cni/networks')}/cbr0"
    assert msg.startswith(f"bridge: {said}; if fewer pods than that run here: {folder} has a file for each address")
    assert "remove those whose container is gone" in msg


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.delegate(RESULT)
    return host


@pytest.mark.parametrize(
    ("dying", "error"),
    [
        ("exit 3", (100, "bridge failed in ADD (exit code 3) without a CNI error")),
        ("kill -KILL $$", (100, "bridge failed in ADD (signal 9) without a CNI error")),
        ("echo nonsense; exit 1", (100, "bridge failed in ADD (exit code 1) without a CNI error")),
        ("echo '{}'; exit 1", (100, "bridge failed in ADD (exit code 1) without a CNI error")),
        ("""echo '{"code": 7, "msg": "no"}'; exit 1""", (7, "bridge: no")),
        ("""echo '{"code": "7", "msg": "no"}'; exit 1""", (100, "bridge: no")),
        ("true", (6, "bridge succeeded in ADD, and its result is no JSON object")),
        ("echo '[]'", (6, "bridge succeeded in ADD, and its result is no JSON object")),
    ],
)
def test_a_failed_add_is_undone_and_its_error_passed_on(host: Host, dying: str, error: tuple[int, str]) -> None:
    host.delegate('[ "$CNI_COMMAND" = DEL ] && exit', dying)
    assert host.call("ADD") == error
    assert host.calls() == ["ADD eth0", "DEL eth0"]
    assert not host.keeps_state()


def test_a_delegate_that_cannot_be_executed_is_named(host: Host) -> None:
    (host.folder / "bin" / "bridge").write_text("")
    executable = f"{host.folder}/bin/bridge"
    assert host.call("ADD") == (100, f"cannot run {executable}: Exec format error")
    (host.folder / "bin" / "bridge").unlink()
    assert host.call("DEL")[1].startswith("no executable 'bridge' in CNI_PATH")  # not undone, so it is still kept


def test_a_second_add_leaves_alone_what_the_first_did(host: Host) -> None:
    host.call("ADD")
    host.delegate("[ $CNI_COMMAND = DEL ]")
    assert host.call("ADD")[0] == 100
    assert host.calls() == ["ADD eth0", "ADD eth0"]
    assert host.keeps_state()
    host.call("DEL")
    assert (host.calls(), host.keeps_state()) == (["DEL eth0"], False)


@pytest.mark.parametrize("other", [{"name": "other", "ifname": "net1"}, {"ifname": "net1"}])
def test_the_del_after_a_refused_second_attachment_leaves_the_first_alone(host: Host, other: dict[str, str]) -> None:
    host.call("ADD")
    host.calls()
    assert "give the other network a dataDir of its own" in host.call("ADD", **other)[1]
    assert host.call("CHECK", prevResult={}, **other)[0] == 3
    assert host.call("DEL", **other) == {}
    assert host.calls() == []
    host.call("DEL")
    assert (host.calls(), host.keeps_state()) == (["DEL eth0"], False)


def test_a_container_is_detached_also_after_its_network_got_another_name(host: Host) -> None:
    host.call("ADD")
    host.calls()
    assert host.call("DEL", name="cni0") == {}
    assert (host.calls(), host.keeps_state()) == (["DEL eth0"], False)


@pytest.mark.parametrize("command", ["CHECK", "DEL"])
def test_the_result_of_add_is_handed_on_in_the_version_in_which_it_comes(host: Host, command: str) -> None:
    host.call("ADD", cniVersion="1.0.0")
    host.delegate(f"cat >{host.folder}/given")
    host.call(command, cniVersion="0.4.0", prevResult={"cniVersion": "0.4.0", "routes": []})
    given = json.loads((host.folder / "given").read_text())
    assert (given["cniVersion"], given["prevResult"]) == ("0.4.0", {"cniVersion": "0.4.0", "routes": []})


def test_what_flannels_own_plugin_kept_is_detached_by_any_interface(host: Host) -> None:
    (host.folder / "data").mkdir()
    (host.folder / "data" / "abc").write_text('{"type": "bridge", "name": "cbr0"}')
    host.call("DEL", "net1")
    assert (host.calls(), host.keeps_state()) == (["DEL net1"], False)


@pytest.mark.parametrize("previous", [7, [], {"ips": 1}, {"ips": [1]}, {"routes": [{}]}, {"routes": {"dst": 1}}])
def test_check_refuses_what_is_no_result(host: Host, previous: Any) -> None:
    host.call("ADD")
    expected = (7, "'prevResult' in the network configuration is no result of ADD")
    assert host.call("CHECK", prevResult=previous or [1]) == expected
    assert host.calls() == ["ADD eth0"]


def test_a_failed_del_can_be_tried_again(host: Host) -> None:
    host.call("ADD")
    host.delegate("exit 1")
    assert host.call("DEL")[0] == 100
    host.delegate()
    assert host.call("DEL") == {}
    assert not host.keeps_state()


def test_one_failure_in_gc_stops_nothing_else(host: Host) -> None:
    host.call("ADD")
    (host.folder / "data" / "aaa").write_text("{")
    valid: dict[str, Any] = {"cni.dev/valid-attachments": []}
    code, msg = host.call("GC", **valid)
    assert (code, "aaa is damaged" in msg) == (6, True)
    assert host.calls()[1:] == ["DEL eth0", "GC eth0"]
    assert not host.keeps_state()


def test_a_closed_standard_input_is_an_error_as_any_other(host: Host) -> None:
    env = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/nowhere"}
    done = subprocess.run(
        ["sh", "-c", f"{host.plugin} <&-"], env=env, capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, json.loads(done.stdout)["code"], done.stderr) == (1, 6, b"")


def test_a_delegate_reads_any_length_or_nothing_and_has_the_signals_of_a_shell(host: Host) -> None:
    long = {"type": "bridge", "text": "x" * 1_000_000}
    path = (f"{host.folder}/bin",)
    host.delegate("cat")
    assert json.loads(invoke.run("ADD", long, path, os.environ)) == long
    host.delegate("exit 0")
    assert invoke.run("ADD", long, path, os.environ) == b""
    host.delegate("kill -PIPE $$")
    with pytest.raises(CniError, match=f"signal {signal.SIGPIPE:d}"):
        invoke.run("ADD", long, path, os.environ)
