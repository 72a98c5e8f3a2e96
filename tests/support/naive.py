"""The naive peer (naive_peer.c) on a lab host: the oracle that is not our engine, and the benches' baseline."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY
from tests.support.peer import Peer

_SOURCE = Path(__file__).with_name("naive_peer.c")
_CFLAGS = ("-std=c11", "-D_DEFAULT_SOURCE", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wsign-compare", "-Werror")


@functools.cache
def build_naive_peer() -> Path:
    """Compile the peer once a process; the binary is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="naive-peer-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    binary = folder / "naive_peer"
    subprocess.run(["cc", *_CFLAGS, "-o", str(binary), str(_SOURCE)], check=True, timeout=60)
    return binary


class NaivePeer(Peer):
    """One packet a system call, TTL as flanneld has it. `peers` maps subnets to the public IPs behind them."""

    def __init__(
        self, host: Host, subnet: IPv4Network, peers: Mapping[IPv4Network, IPv4Address], network: IPv4Network = OVERLAY
    ) -> None:
        routes = [f"{peer_subnet}={address}" for peer_subnet, address in peers.items()]
        command = [str(build_naive_peer()), "flannel0", f"{host.underlay}:{host.plan.port}", *routes]
        super().__init__(host, subnet, network, command)
