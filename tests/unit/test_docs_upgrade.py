"""docs/upgrade.md: every test that it names exists, every procedure names one, and the manifest is as it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from flannel_udp.cli.main import agent_options
from tests.kube_api.manifest import find

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "upgrade.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_every_test_that_is_named_exists(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_procedure_names_tests() -> None:
    title, *parts = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    assert [part.splitlines()[0] for part in parts if "`tests/netns/" not in part] == []
    links = re.findall(r"\]\(#([\w-]+)\)", title)
    assert links == [part.splitlines()[0].lower().replace(",", "").replace(" ", "-") for part in parts]


def test_a_rolling_update_lets_the_new_pod_take_over_and_the_old_one_wait() -> None:
    spec = find("DaemonSet")["spec"]
    assert spec["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    assert f"ready for {spec['minReadySeconds']} s" in TEXT
    (container,) = spec["template"]["spec"]["containers"]
    options = agent_options(container["args"], {})
    assert (options.takeover, options.after_takeover) == (True, "wait")
    # Two pods of one node cannot both have a port of the host that the scheduler knows of.
    assert "ports" not in container
    volumes = {volume["name"]: volume.get("hostPath", {}).get("path") for volume in spec["template"]["spec"]["volumes"]}
    assert volumes["run"] == str(options.control_socket.parent)
