"""The faults run by name only (`tox -e faults`): they take minutes, and write the tables of docs/reliability.md."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.faults.came_out import NAME, CameOut
from tests.faults.recorder import Recorder


def pytest_configure(config: pytest.Config) -> None:
    """Run the rows' tests, too, and write to the page that FLANNEL_UDP_FAULTS_PAGE names."""
    if page := os.environ.get("FLANNEL_UDP_FAULTS_PAGE"):
        config.pluginmanager.register(CameOut(Path(page)), NAME)


@pytest.fixture(scope="session")
def needs_etcd() -> None:
    if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
        pytest.skip("etcd or etcdctl is not installed (apt-get install etcd-server etcd-client)")


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Recorder:
    """The figures of this run."""
    came_out = request.config.pluginmanager.get_plugin(NAME)
    return came_out.recorder if isinstance(came_out, CameOut) else Recorder()
