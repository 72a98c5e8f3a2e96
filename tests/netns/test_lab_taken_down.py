"""`lab down` in one terminal while `lab up` builds in another: a line each, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns
from flannel_udp.lab.lab import Lab, lab_names
from flannel_udp.lab.netns import wait_until
from flannel_udp.lab.plan import Plan
from tests.support.labs import NEEDS_NETNS, cleaned_up, fresh_name, namespaces_of, state_of
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

LAB = [sys.executable, "-m", "flannel_udp", "lab"]

MOMENTS: Mapping[str, Callable[[str], bool]] = {
    "it has its name": lambda name: state_of(name).exists(),
    "it has namespaces": lambda name: len(namespaces_of(name)) > 0,
    "its agents start": lambda name: (state_of(name) / "h1" / "agent.pid").exists(),
    "its pods are attached": lambda name: (state_of(name) / "h1" / "pods.json").exists(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_lab_that_is_taken_down_while_it_is_built_says_so_in_a_line(moment: str, tmp_path: Path) -> None:
    name, topology = fresh_name(), tmp_path / "lab.toml"
    # The agent of h2 waits for a configuration, and so the lab for it, however slow `lab down` is to begin.
    topology.write_text('[host.h2]\narguments = ["--registry=file:/nowhere/registry.json"]\n')
    with cleaned_up(Lab(Plan(name))):
        building = subprocess.Popen(
            [*LAB, "up", "--topology", str(topology), "--name", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert wait_until(lambda: MOMENTS[moment](name), PATIENCE_S)
            done = subprocess.run(
                [*LAB, "down", "--name", name], capture_output=True, text=True, timeout=PATIENCE_S, check=False
            )
            said, complaints = building.communicate(timeout=PATIENCE_S)
        finally:
            building.kill()
            building.communicate()
        assert (done.returncode, done.stdout, done.stderr) == (0, f"removed: {name}\n", f"lab: removing {name}\n")
        *progress, last = complaints.splitlines()
        assert (building.returncode, said) == (1, "")
        assert last == f"flannel-udp: the lab {name} was taken down while it was built"
        assert all(line.startswith("lab: ") for line in progress)
        assert name not in lab_names()
        assert not namespaces_of(name)
        assert not list(state_of(name).parent.glob(f"*{name}*"))


def test_one_who_builds_leaves_a_new_lab_of_the_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (Lab(Plan(name, hosts=1, pods=0, agents=())) for name in [fresh_name()] * 2)

    def exchange() -> None:
        second.down()
        second.up()

    with cleaned_up(second):
        monkeypatch.setattr(first, "ask_for_subnets", lambda _hosts: exchange())
        with pytest.raises(FlannelError, match=f"the lab {first.name} was taken down while it was built"):
            first.up()
        assert namespaces_of(second.name)
        assert second.host("h1").run(["true"]).returncode == 0


def test_what_was_begun_in_a_namespace_that_has_gone_is_ended() -> None:
    with cleaned_up(Lab(Plan(fresh_name(), hosts=1, pods=0, registry="file", agents=()))) as lab:
        lab.up()
        host = lab.host("h1")
        host.start_agent()
        pid = host.agent_pid()
        assert pid is not None
        netns.ip_batch([f"netns del {host.namespace}"])  # its processes stay, and nobody finds them by its name
        lab.down()
        assert not netns.identity(state_of(lab.name))
        assert host.agent_pid() is None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
