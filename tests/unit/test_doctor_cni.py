"""What `flannel-udp doctor` makes of CNI configurations and plugins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.doctor import cni
from flannel_udp.doctor.cni import (
    ask_cni,
    judge_configurations,
    judge_file_read,
    judge_plugins,
    judge_versions,
    plugins_of,
    versions_spoken,
)
from flannel_udp.doctor.finding import Verdict

FLANNEL = {"name": "cbr0", "plugins": [{"type": "flannel"}, {"type": "portmap"}]}
FOLDER = Path("/conf")


@pytest.mark.parametrize(
    ("files", "kubernetes", "verdict"),
    [
        ({"10-flannel.conflist": FLANNEL}, False, Verdict.OK),
        ({"10-flannel.conflist": FLANNEL, "87-podman.conflist": {"plugins": []}}, False, Verdict.OK),
        ({"10-flannel.conflist": FLANNEL, "05-other.conf": {"type": "bridge"}}, False, Verdict.FAULT),
        ({"10-flannel.conflist": FLANNEL, "00.conf": None}, False, Verdict.FAULT),
        ({"10.conf": {"type": "bridge"}}, False, Verdict.SKIPPED),
        ({"10.conf": {"type": "bridge"}}, True, Verdict.FAULT),
        ({}, True, Verdict.FAULT),
    ],
)
def test_which_cni_configuration_is_first(files: dict[str, Any], kubernetes: bool, verdict: Verdict) -> None:
    assert judge_configurations(files, FOLDER, kubernetes=kubernetes).verdict is verdict


@pytest.mark.parametrize(
    ("conf", "written", "agrees"),
    [
        ({}, "/run/flannel/subnet.env", True),
        ({"subnetFile": ""}, "/run/flannel/subnet.env", True),
        ({"subnetFile": "/run/../run/flannel/subnet.env"}, "/run/flannel/subnet.env", True),
        ({}, "/run/flannel/other.env", False),
        ({"subnetFile": "/run/flannel/other.env"}, "/run/flannel/subnet.env", False),
        ({"subnetFile": "/run/flannel/\0"}, "/run/flannel/subnet.env", False),
    ],
)
def test_whether_the_plugin_reads_what_the_agent_writes(conf: dict[str, Any], written: str, agrees: bool) -> None:
    single = {"name": "cbr0", "type": "flannel", **conf}
    listed = {"name": "cbr0", "plugins": [{"type": "tuning"}, {"type": "flannel", **conf}, {"type": "flannel"}]}
    for document in (single, listed):
        found = list(judge_file_read(document, FOLDER / "10.conflist", Path(written)))
        assert len(found) == (not agrees)
        for item in found:
            assert item.verdict is Verdict.FAULT
            assert item.what.startswith("by /conf/10.conflist the plugin reads ")
            assert item.mend == f'write "subnetFile": "{written}" there, beside "type": "flannel"'


def test_a_link_to_the_agents_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "var", target_is_directory=True)
    conf = {"type": "flannel", "subnetFile": str(tmp_path / "run" / "subnet.env")}
    assert list(judge_file_read(conf, FOLDER / "10.conf", tmp_path / "var" / "subnet.env")) == []


def test_the_plugins_that_a_configuration_needs() -> None:
    assert plugins_of(FLANNEL) == ["flannel", "bridge", "host-local", "portmap"]
    delegating = {"type": "flannel", "delegate": {"type": "ptp"}, "ipam": {"type": "static"}}
    assert plugins_of(delegating) == ["flannel", "ptp", "static"]
    odd: list[Any] = [None, [], {"plugins": 3}, {"plugins": [1, {"type": 2}]}]
    assert [plugins_of(document) for document in odd] == [[], [], [], []]
    missing = judge_plugins(["flannel", "bridge"], {"bridge"}, [Path("/bin")])
    assert (missing.verdict, missing.mend) == (Verdict.FAULT, "flannel-udp cni install --bin-dir=/bin")


@pytest.mark.parametrize(
    ("script", "spoken"),
    [
        ("""echo '{"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0"]}'""", ["0.3.1", "0.4.0"]),
        ("""echo '{"code": 999, "msg": "needs Python 3.11"}'; exit 1""", "needs Python 3.11"),
        ("echo Traceback >&2; echo 'ImportError: no x' >&2; exit 1", "it says no versions: ImportError: no x"),
        ("echo 7", "it says no versions"),
    ],
)
def test_what_a_plugin_says_of_its_versions(tmp_path: Path, script: str, spoken: list[str] | str) -> None:
    plugin = tmp_path / "bridge"
    plugin.write_text(f"#!/bin/sh\n{script}\n")
    plugin.chmod(0o755)
    assert versions_spoken(plugin) == spoken


def test_a_plugin_that_does_not_speak_the_configurations_version_is_named() -> None:
    old, new, broken = Path("/bin/bridge"), Path("/bin/flannel"), Path("/bin/portmap")
    spoken: dict[Path, list[str] | str] = {old: ["0.3.1", "0.4.0"], new: ["0.3.1", "0.4.0", "1.0.0"]}
    assert list(judge_versions(spoken, "0.4.0", FOLDER / "10.conflist")) == []
    (found,) = judge_versions(spoken, "1.0.0", FOLDER / "10.conflist")
    assert found.what == (
        "/conf/10.conflist is of CNI 1.0.0, and /bin/bridge speaks 0.3.1, 0.4.0: pods cannot be started"
    )
    assert found.mend.startswith('write "cniVersion": "0.4.0" there, or install ')
    (found,) = judge_versions({broken: "it is broken"}, "1.0.0", FOLDER / "10.conflist")
    assert found.what == "/bin/portmap: it is broken: pods cannot be started"


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have doctor find itself in a container beside the host's programs."""
    monkeypatch.setattr(cni, "is_contained", lambda: True)


@pytest.mark.parametrize("lacking", ["net.d", "bin"])
@pytest.mark.usefixtures("container")
def test_in_a_container_without_the_hosts_folders_nothing_is_said_of_them(tmp_path: Path, lacking: str) -> None:
    """It would be: install it, which would write into the container."""
    for name in {"net.d", "bin"} - {lacking}:
        (tmp_path / name).mkdir()
    (found,) = ask_cni(tmp_path / "net.d", [tmp_path / "bin"], None, kubernetes=True)
    assert found.verdict is Verdict.SKIPPED
    assert found.what == f"not asked: this container lacks the host's {tmp_path / lacking}"


def test_on_a_host_a_folder_that_is_missing_is_one_without_a_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cni, "is_contained", lambda: False)
    found = list(ask_cni(tmp_path / "net.d", [tmp_path / "bin"], None, kubernetes=True))
    assert [item.verdict for item in found] == [Verdict.FAULT, Verdict.SKIPPED]


@pytest.mark.usefixtures("container")
def test_in_a_container_plugins_may_be_in_a_folder_of_the_hosts_that_is_not_mounted(tmp_path: Path) -> None:
    (tmp_path / "10.conf").write_text(json.dumps({"cniVersion": "0.4.0", "type": "flannel"}))
    folders = [tmp_path, tmp_path / "lib"]
    configuration, plugins = ask_cni(tmp_path, folders, None, kubernetes=True)
    assert (configuration.verdict, plugins.verdict) == (Verdict.OK, Verdict.NOTE)
    assert plugins.what.endswith(f"is seen from this container: look in the host's {folders[1]}")
    folders[1].mkdir()
    assert [item.verdict for item in ask_cni(tmp_path, folders, None, kubernetes=True)] == [Verdict.OK, Verdict.FAULT]


@pytest.mark.usefixtures("container")
def test_in_a_container_a_plugin_that_the_hosts_python_runs_is_not_asked(tmp_path: Path) -> None:
    conf = {"cniVersion": "0.4.0", "type": "flannel", "delegate": {"type": "ptp"}, "ipam": {"type": "static"}}
    (tmp_path / "10.conf").write_text(json.dumps(conf))
    for name in ("ptp", "static", "flannel"):
        (tmp_path / name).write_text("""#!/bin/sh\necho '{"supportedVersions": ["0.3.1", "0.4.0"]}'\n""")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "flannel").write_text("#!/missing/python3 -IS\n")
    found = list(ask_cni(tmp_path, [tmp_path], None, kubernetes=True))
    assert [item.verdict for item in found] == [Verdict.OK, Verdict.OK, Verdict.SKIPPED]
    assert str(tmp_path / "flannel") in found[2].what


def test_on_a_host_a_plugin_that_nothing_runs_keeps_pods_from_being_started(tmp_path: Path) -> None:
    (tmp_path / "flannel").write_text("#!/missing/python3 -IS\n")
    (tmp_path / "flannel").chmod(0o755)
    assert versions_spoken(tmp_path / "flannel") == "cannot run it: what its first line names is missing"
