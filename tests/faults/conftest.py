"""The faults run by name only (`tox -e faults`): they take minutes, and write the table of docs/reliability.md."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.recorder import Recorder


@pytest.fixture(scope="session")
def needs_etcd() -> None:
    if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
        pytest.skip("etcd or etcdctl is not installed (apt-get install etcd-server etcd-client)")


@pytest.fixture(scope="session")
def record() -> Iterator[Recorder]:
    """The table; written at the end of the run to the page that FLANNEL_UDP_FAULTS_PAGE names."""
    recorder = Recorder()
    yield recorder
    if page := os.environ.get("FLANNEL_UDP_FAULTS_PAGE"):
        recorder.write(Path(page))
