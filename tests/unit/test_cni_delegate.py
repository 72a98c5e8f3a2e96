"""The delegate's configuration: flannel's, key by key; and what is kept of it until DEL."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.cni import state
from flannel_udp.cni.delegate import delegate_conf
from flannel_udp.cni.errors import CniError
from flannel_udp.cni.install import CONFLIST_TEXT, install_conflist, install_plugin
from flannel_udp.cni.state import Attachment
from flannel_udp.errors import UsageError
from flannel_udp.files.subnet_env import SubnetEnv
from flannel_udp.model import Subnet

ROOT = Path(__file__).parents[2]
V4 = SubnetEnv(IPv4Network("10.1.0.0/16"), Subnet(IPv4Network("10.1.15.0/24")), 1472, ip_masq=False)
DUAL = SubnetEnv(
    IPv4Network("10.1.0.0/16"),
    Subnet(IPv4Network("10.1.15.0/24"), IPv6Network("fd00:1:2::/64")),
    1472,
    ip_masq=True,
    ipv6_network=IPv6Network("fd00:1::/48"),
)
CONF = {"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel"}


def test_the_least_configuration_is_a_bridge_with_host_local() -> None:
    assert delegate_conf(CONF, V4) == {
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "bridge",
        "ipMasq": True,
        "mtu": 1472,
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.1.15.0/24"}]],
            "routes": [{"dst": "10.1.0.0/16"}],
        },
    }


def test_dual_stack_is_a_second_range_and_route() -> None:
    conf = delegate_conf(CONF, DUAL)
    assert conf["ipam"]["ranges"] == [[{"subnet": "10.1.15.0/24"}], [{"subnet": "fd00:1:2::/64"}]]
    assert conf["ipam"]["routes"] == [{"dst": "10.1.0.0/16"}, {"dst": "fd00:1::/48"}]
    assert conf["ipMasq"] is False


def test_ipv6_alone_is_one_range_and_route() -> None:
    only = SubnetEnv(None, Subnet(None, DUAL.subnet.v6), 1472, ip_masq=True, ipv6_network=DUAL.ipv6_network)
    conf = delegate_conf(CONF, only)
    assert conf["ipam"]["ranges"] == [[{"subnet": "fd00:1:2::/64"}]]
    assert conf["ipam"]["routes"] == [{"dst": "fd00:1::/48"}]


def test_what_is_given_wins_but_for_ranges_and_name() -> None:
    given: dict[str, Any] = {
        **CONF,
        "delegate": {"type": "ipvlan", "mtu": 1300, "ipMasq": False, "master": "eth1"},
        "ipam": {"type": "dhcp", "ranges": [[{"subnet": "192.0.2.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
        "runtimeConfig": {"portMappings": []},
    }
    assert delegate_conf(given, V4) == {
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "ipvlan",
        "ipMasq": False,
        "mtu": 1300,
        "master": "eth1",
        "runtimeConfig": {"portMappings": []},
        "ipam": {
            "type": "dhcp",
            "ranges": [[{"subnet": "10.1.15.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.1.0.0/16"}],
        },
    }


@pytest.mark.parametrize(
    ("change", "msg"),
    [
        ({"delegate": {"name": "x"}}, "'delegate' must not have 'name': flannel fills it in"),
        ({"delegate": {"ipam": {}}}, "'delegate' must not have 'ipam': flannel fills it in"),
        ({"delegate": {"type": 7}}, "'type' in 'delegate' must be a string"),
        ({"delegate": {"type": "flannel"}}, "'type' in 'delegate' is 'flannel', the plugin itself"),
        ({"ipam": {"routes": ["10.0.0.0/8"]}}, "'routes' in 'ipam' must be a list of objects"),
    ],
)
def test_what_a_configuration_must_not_say(change: dict[str, Any], msg: str) -> None:
    with pytest.raises(CniError) as error:
        delegate_conf({**CONF, **change}, V4)
    assert (error.value.code, error.value.msg) == (7, msg)


def test_what_is_kept_is_private_and_flannels_plugin_can_read_it(tmp_path: Path) -> None:
    attachment = Attachment("abc", "net1", delegate_conf(CONF, V4))
    data_dir = tmp_path / "cni" / "flannel"
    state.save(data_dir, attachment)
    assert state.load(data_dir, "abc") == attachment
    path = data_dir / "abc"
    assert (path.stat().st_mode & 0o777, data_dir.stat().st_mode & 0o777) == (0o600, 0o700)
    kept = json.loads(path.read_text())
    assert {key: kept[key] for key in attachment.conf} == attachment.conf


def test_what_flannels_plugin_kept_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "abc").write_text(json.dumps(delegate_conf(CONF, V4)))
    kept = state.load(tmp_path, "abc")
    assert kept == Attachment("abc", "", delegate_conf(CONF, V4))
    assert kept.is_of("cbr0", "net1")
    assert not kept.is_of("other", "eth0")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"type": 1}', "\0\0\0"])
def test_damage_is_seen_and_overwritten(tmp_path: Path, content: str) -> None:
    (tmp_path / "abc").write_text(content)
    with pytest.raises(state.Damaged, match="is damaged"):
        state.load(tmp_path, "abc")
    attachment = Attachment("abc", "eth0", delegate_conf(CONF, V4))
    state.save(tmp_path, attachment)
    assert state.load(tmp_path, "abc") == attachment


def test_a_second_attachment_does_not_replace_the_first(tmp_path: Path) -> None:
    first = Attachment("abc", "eth0", delegate_conf(CONF, V4))
    assert [state.save(tmp_path, first), state.save(tmp_path, first)] == [True, False]
    for second in (Attachment("abc", "net1", first.conf), Attachment("abc", "eth0", {**first.conf, "name": "other"})):
        with pytest.raises(CniError, match="give the other network a dataDir of its own"):
            state.save(tmp_path, second)
    assert state.load(tmp_path, "abc") == first


def test_the_remains_of_a_killed_add_are_no_container_and_go_with_del(tmp_path: Path) -> None:
    (tmp_path / ".abc.tmp").write_text("{")
    assert list(state.container_ids(tmp_path)) == []
    state.remove(tmp_path, "abc")
    assert list(tmp_path.iterdir()) == []


def test_a_data_dir_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    attachment = Attachment("abc", "eth0", delegate_conf(CONF, V4))
    with pytest.raises(CniError) as error:
        state.save(tmp_path / "file" / "data", attachment)
    assert error.value.code == 5


def test_the_example_is_what_the_command_installs_and_it_replaces_none(tmp_path: Path) -> None:
    assert (ROOT / "examples" / "cni" / "10-flannel.conflist").read_text() == CONFLIST_TEXT
    path = install_conflist(tmp_path)
    assert path is not None
    assert path.read_text() == CONFLIST_TEXT
    path.write_text("mine")
    assert install_conflist(tmp_path) is None
    assert path.read_text() == "mine"


def test_an_agents_other_subnet_file_is_named_in_the_configuration(tmp_path: Path) -> None:
    path = install_conflist(tmp_path, Path("/run/other/subnet.env"))
    assert path is not None
    document = json.loads(path.read_text())
    assert document["plugins"][0].pop("subnetFile") == "/run/other/subnet.env"
    assert document == json.loads(CONFLIST_TEXT)


def test_all_of_the_plugin_is_within_the_grammar_of_the_oldest_python_that_runs_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(install_plugin(tmp_path, sys.executable)) as archive:
        for name in archive.namelist():
            if name.endswith(".py"):
                ast.parse(archive.read(name), name, feature_version=(3, 10))


def test_the_oldest_python_runs_it(tmp_path: Path) -> None:
    python = "/usr/bin/python3.10"
    if not Path(python).exists():
        pytest.skip(f"there is no {python} here: Ubuntu 22.04 has it")
    plugin = install_plugin(tmp_path, python)
    call = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "a", "CNI_NETNS": "/x", "CNI_IFNAME": "eth0", "CNI_PATH": "/bin"}
    conf = {**CONF, "cniVersion": "0.4.0", "subnetFile": str(tmp_path / "none")}
    done = subprocess.run([plugin], input=json.dumps(conf).encode(), env=call, capture_output=True, check=False)
    assert (json.loads(done.stdout)["code"], done.stderr) == (11, b"")  # so far it came: there is no subnet file


def test_an_old_python_is_told_to_the_runtime_and_not_by_a_traceback(tmp_path: Path) -> None:
    plugin = install_plugin(tmp_path, sys.executable)
    with zipfile.ZipFile(plugin) as archive:
        ast.parse(archive.read("__main__.py"), feature_version=(3, 7))  # the oldest whose grammar is known
    old = "import runpy, sys; sys.version_info = (3, 9, 2); runpy.run_path(sys.argv[1], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", old, plugin], capture_output=True, text=True, check=False)
    error = json.loads(done.stdout)
    assert (done.returncode, error["code"], done.stderr) == (1, 999, "")
    assert error["msg"].startswith(f"flannel-udp's plugin needs Python 3.10 or later, and {sys.executable} is 3.9: ")


@pytest.mark.parametrize("python", ["python3", "/a b/python3", "/" + "x" * 200])
def test_an_interpreter_that_cannot_begin_a_script_is_refused(tmp_path: Path, python: str) -> None:
    with pytest.raises(UsageError, match="give an absolute path"):
        install_plugin(tmp_path, python)
