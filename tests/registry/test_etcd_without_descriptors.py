"""A process that may open nothing any more, and gRPC's words about that, which end in what lies behind them."""

from __future__ import annotations

import subprocess
import sys

from flannel_udp.lab.etcd_server import free_port
from tests.support.patience import PATIENCE_S

PROGRAM = """
import asyncio, resource, sys
from flannel_udp.errors import RegistryError
from flannel_udp.options import EtcdOptions
from flannel_udp.registry.etcd.registry import EtcdRegistry

async def ask():
    registry = EtcdRegistry(EtcdOptions(endpoints=(sys.argv[1],)))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
    for _ in range(3):
        try:
            await registry.list()
        except RegistryError as error:
            print(error)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    await registry.close()

asyncio.run(ask())
"""


def test_too_many_open_files_is_one_line_and_no_traceback() -> None:
    endpoint = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, endpoint], capture_output=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout.decode() == f"no etcd endpoint answers: {endpoint} (socket: Too many open files)\n" * 3
    assert b"Traceback" not in done.stderr
