"""A foreign peer on a lab host: a program that owns flannel0, which is then set up the way flanneld does it."""

from __future__ import annotations

import subprocess
from ipaddress import IPv4Network
from types import TracebackType
from typing import Self

from flannel_udp.errors import FlannelError
from flannel_udp.lab.netns import wait_until
from flannel_udp.lab.node import Host

_START_TIMEOUT_S = 5.0
_OVERHEAD_BYTES = 28  # outer IPv4 and UDP headers


class Peer:
    """Runs `command`, which opens flannel0 on `host`, and attaches the host's pods; a context manager.

    flannel0 has the first address of `subnet` as a /32, the underlay's MTU less the outer headers, and the route for
    the whole `network`.
    """

    def __init__(self, host: Host, subnet: IPv4Network, network: IPv4Network, command: list[str]) -> None:
        self.host = host
        self.subnet = subnet
        self.mtu = host.plan.underlay_mtu - _OVERHEAD_BYTES
        self.process = host.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            self._wait_for_device()
            host.configure(
                # Without an IPv6 address the kernel says nothing of its own into the tunnel, whenever it likes.
                f"link set flannel0 mtu {self.mtu} addrgenmode none",
                f"addr add {subnet.network_address}/32 dev flannel0",
                "link set flannel0 up",
                f"route add {network} dev flannel0",
            )
            if not host.pod_addresses():
                host.attach_pods(subnet, self.mtu)
        except BaseException:
            self.stop()
            raise

    def _wait_for_device(self) -> None:
        def settled() -> bool:
            exists = self.host.run(["ip", "link", "show", "flannel0"], check=False).returncode == 0
            return exists or self.process.poll() is not None

        wait_until(settled, _START_TIMEOUT_S)
        if self.process.poll() is not None and self.process.stderr is not None:
            raise FlannelError(f"{self.host.name}: the peer ended: {self.process.stderr.read().strip()}")

    def stop(self) -> None:
        """End the program; flannel0 and its route go with it."""
        self.process.terminate()
        try:
            self.process.wait(_START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()
