"""python-etcd3, an etcd client that shares no code with ours, reads our leases and writes peers that we pick up.

It needs protobuf < 3.21 and we need a newer one, so each side has an interpreter of its own: this file runs where etcd3
is, and FLANNEL_UDP_PYTHON names the agent's interpreter.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.lab.etcd_server import EtcdServer
from tests.support.patience import PATIENCE_S

etcd3 = pytest.importorskip("etcd3", reason="python-etcd3 is not installed: tox makes an environment that has it")
AGENT_PYTHON = os.environ.get("FLANNEL_UDP_PYTHON", "")
pytestmark = pytest.mark.skipif(not AGENT_PYTHON, reason="FLANNEL_UDP_PYTHON does not name the agent's interpreter")

REPOSITORY = Path(__file__).parents[2]
SUBNETS = "/coreos.com/network/subnets"
KEY, VALUE = "10.1.15.0-24", '{"PublicIP":"192.0.2.1","PublicIPv6":null}'
PEER_KEY, PEER_VALUE = "10.1.16.0-24", '{"PublicIP":"192.0.2.2","PublicIPv6":null}'


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    if shutil.which("etcd") is None:
        pytest.skip("etcd is not installed (apt-get install etcd-server)")
    server = EtcdServer(tmp_path / "etcd")
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(tmp_path / "etcd")


@pytest.fixture
def observer(etcd: EtcdServer) -> Iterator[Any]:
    address, _, port = etcd.endpoint.removeprefix("http://").rpartition(":")
    client = etcd3.client(host=address, port=int(port))
    try:
        yield client
    finally:
        client.close()


class Host:
    """A process that uses our registry; what its watch shows arrives in order."""

    def __init__(self, endpoint: str) -> None:
        self._process = subprocess.Popen(
            [AGENT_PYTHON, Path(__file__).with_name("host.py"), endpoint, KEY, VALUE],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)

    def next(self) -> Any:
        return json.loads(self._lines.get(timeout=PATIENCE_S))

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()


@pytest.fixture
def host(etcd: EtcdServer) -> Iterator[Host]:
    host = Host(etcd.endpoint)
    try:
        yield host
    finally:
        host.stop()


def test_each_side_reads_what_the_other_wrote(host: Host, observer: Any) -> None:
    assert host.next() == {"kind": "Snapshot", "entries": {KEY: VALUE}}

    value, metadata = observer.get(f"{SUBNETS}/{KEY}")
    assert value == VALUE.encode()
    left_s = observer.get_lease_info(metadata.lease_id).TTL
    assert left_s == pytest.approx(86_400, abs=10)

    observer.put(f"{SUBNETS}/{PEER_KEY}", PEER_VALUE, lease=observer.lease(60))
    assert host.next() == {"kind": "Change", "entries": {PEER_KEY: PEER_VALUE}}
    observer.delete(f"{SUBNETS}/{PEER_KEY}")
    assert host.next() == {"kind": "Change", "entries": {PEER_KEY: None}}
