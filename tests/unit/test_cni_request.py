"""What the plugin refuses before it does anything: CNI error JSON alone on standard output, exit code 1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.cni.errors import CniError
from flannel_udp.cni.install import MODULES, install_plugin
from flannel_udp.cni.request import VERSIONS, parse_request
from tests.support.patience import PATIENCE_S

ATTACHMENT = {"CNI_CONTAINERID": "abc", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0", "CNI_PATH": "/nowhere"}
CONF = {"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel"}
ENV = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.15.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_plugin(tmp_path_factory.mktemp("bin"), os.path.realpath(sys.executable))


def call(plugin: Path, command: str, conf: Mapping[str, Any] | str, **environ: str) -> tuple[int, Any, str]:
    """Run the plugin and return its exit code, the document it printed and what it said on the side."""
    stdin = conf if isinstance(conf, str) else json.dumps(conf)
    env = {**ATTACHMENT, "CNI_COMMAND": command, **environ}
    done = subprocess.run(
        [plugin], input=stdin, capture_output=True, text=True, env=env, timeout=PATIENCE_S, check=False
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


@pytest.mark.parametrize(
    ("stdin", "code", "part"),
    [
        ("", 6, "no network configuration on standard input"),
        ('{"name": "cb', 6, "is no JSON"),
        ("[" * 100_000, 6, "is no JSON"),
        ("[]", 6, "no JSON object"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), 6, "is no JSON"),
        ("{}", 7, "'name' in the network configuration is missing"),
        ('{"name": "a/b"}', 7, "'a/b'"),
        ('{"name": 7}', 7, "'name' in the network configuration is not a string"),
        ('{"name": "x", "delegate": []}', 7, "'delegate' in the network configuration is not an object"),
        ('{"name": "x", "subnetFile": 1}', 7, "'subnetFile' in the network configuration is not a string"),
        ('{"name": "x", "dataDir": "/a\\u0000"}', 7, "'dataDir' in the network configuration is no path: '/a\\x00'"),
        ('{"name": "x", "subnetFile": "/\\ud800"}', 7, "'subnetFile' in the network configuration is no path"),
        ('{"name": "x", "cniVersion": "9.0"}', 1, "'9.0'"),
    ],
)
def test_broken_configurations(plugin: Path, stdin: str, code: int, part: str) -> None:
    status, error, stderr = call(plugin, "ADD", stdin)
    assert (status, error["code"], stderr) == (1, code, "")
    assert part in error["msg"]
    assert error["cniVersion"] in VERSIONS


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"CNI_CONTAINERID": ""}, "ADD needs CNI_CONTAINERID in the environment"),
        ({"CNI_NETNS": "", "CNI_PATH": ""}, "ADD needs CNI_NETNS, CNI_PATH in the environment"),
        ({"CNI_CONTAINERID": "../../etc/passwd"}, "CNI_CONTAINERID is '../../etc/passwd'"),
        ({"CNI_CONTAINERID": ".."}, "CNI_CONTAINERID is '..'"),
        ({"CNI_CONTAINERID": "a\n"}, "CNI_CONTAINERID is 'a\\n'"),
        ({"CNI_IFNAME": "a/b"}, "CNI_IFNAME 'a/b'"),
        ({"CNI_IFNAME": ".."}, "CNI_IFNAME '..'"),
        ({"CNI_IFNAME": "sixteen-bytes-xx"}, "CNI_IFNAME 'sixteen-bytes-xx'"),
        ({"CNI_IFNAME": "\u00fc" * 8}, "CNI_IFNAME"),  # 16 bytes
        ({"CNI_COMMAND": "UPDATE"}, "unknown CNI_COMMAND 'UPDATE'"),
    ],
)
def test_wrong_environments(plugin: Path, changes: dict[str, str], part: str) -> None:
    environ = {"CNI_COMMAND": "ADD", **ATTACHMENT, **changes}
    with pytest.raises(CniError) as error:
        parse_request(environ, json.dumps(CONF).encode())
    assert (error.value.code, part in error.value.msg) == (4, True), error.value.msg


@pytest.mark.parametrize(("command", "since"), [("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0")])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_command_exists_since_its_version(command: str, since: str, version: str) -> None:
    environ = {"CNI_COMMAND": command, **ATTACHMENT}
    conf = json.dumps({**CONF, "cniVersion": version}).encode()
    if VERSIONS.index(version) >= VERSIONS.index(since):
        assert parse_request(environ, conf).version == version
    else:
        with pytest.raises(CniError) as error:
            parse_request(environ, conf)
        assert error.value.code == 1


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_input_is_understood_or_refused(stdin: bytes) -> None:
    try:
        parse_request({"CNI_COMMAND": "DEL", **ATTACHMENT}, stdin)
    except CniError as error:
        assert "\n" not in error.msg


@pytest.mark.parametrize("version", VERSIONS)
def test_version_answers_in_the_version_it_is_asked_in(plugin: Path, version: str) -> None:
    answer = {"cniVersion": version, "supportedVersions": list(VERSIONS)}
    assert call(plugin, "VERSION", {"cniVersion": version}) == (0, answer, "")


def test_version_of_an_unknown_version_is_the_newest(plugin: Path) -> None:
    for stdin in ("", "{", '{"cniVersion": "7.0.0"}'):
        assert call(plugin, "VERSION", stdin)[1]["cniVersion"] == VERSIONS[-1]


def test_by_hand_it_says_what_it_is(plugin: Path) -> None:
    done = subprocess.run([plugin], capture_output=True, text=True, env={}, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "container runtimes start it" in done.stderr


def test_a_subnet_file_that_lacks_keys_has_all_of_them_named(plugin: Path, tmp_path: Path) -> None:
    subnet_file = tmp_path / "subnet.env"
    conf = {**CONF, "subnetFile": str(subnet_file), "dataDir": str(tmp_path / "data")}
    status, error, _ = call(plugin, "ADD", conf)
    assert (status, error["code"]) == (1, 11)
    assert error["msg"] == f"there is no {subnet_file}: the agent writes it once it has a lease; is it running?"
    subnet_file.write_text("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_MTU=1472\n")
    status, error, _ = call(plugin, "ADD", conf)
    assert (status, error["code"]) == (1, 7)
    assert error["msg"] == f"{subnet_file} lacks FLANNEL_SUBNET, FLANNEL_IPMASQ"
    assert not (tmp_path / "data").exists()


def test_a_delegate_that_is_not_there_leaves_nothing(plugin: Path, tmp_path: Path) -> None:
    (tmp_path / "subnet.env").write_text(ENV)
    conf = {**CONF, "subnetFile": str(tmp_path / "subnet.env"), "dataDir": str(tmp_path / "data")}
    status, error, _ = call(plugin, "ADD", conf)
    assert (status, error["code"]) == (1, 100)
    assert error["msg"].startswith("no executable 'bridge' in CNI_PATH (/nowhere)")
    assert not (tmp_path / "data").exists()


def test_it_loads_nothing_but_its_own_modules_and_light_ones_of_the_standard_library(plugin: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(plugin)!r}); import flannel_udp.cni.plugin; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    loaded = set(done.stdout.split())
    ours = {module for module in loaded if module.startswith("flannel_udp")}
    archived = {f"flannel_udp/{module}".removesuffix("/__init__").replace("/", ".") for module in MODULES}
    assert ours == archived
    heavy = {"asyncio", "logging", "socket", "ssl", "email", "importlib.metadata", "tempfile", "argparse", "zipfile"}
    assert heavy & loaded == set()
