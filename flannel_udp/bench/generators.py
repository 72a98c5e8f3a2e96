"""What every measure needs: the span and the settings it works with, and servers that run while it does."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from flannel_udp.errors import FlannelError
from flannel_udp.lab.runner import Runner
from flannel_udp.model import Address

GRACE_S = 60.0
"""What a load generator may take longer than asked to before it is killed."""


@dataclass(frozen=True, slots=True)
class Load:
    """How the load is made: for how long, and with which TCP congestion control; empty is the machine's default."""

    seconds: int
    congestion_control: str


def iperf3_server(node: Runner, address: Address) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run an iperf3 server for one test at an address, inside the block."""
    return server(node, ["iperf3", "-s", "-1", "--forceflush", "-B", str(address)], "Server listening")


@contextmanager
def server(node: Runner, command: list[str], greeting: str) -> Iterator[subprocess.Popen[str]]:
    """Run a server inside the block, which begins once the server has printed its greeting."""
    with node.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            said = ""
            for line in process.stdout or ():
                said += line
                if greeting in line:
                    break
            else:
                raise FlannelError(f"{node.path}: `{' '.join(command)}` ended: {said.strip() or '(nothing said)'}")
            yield process
        finally:
            process.kill()  # no fault if it has ended by itself
