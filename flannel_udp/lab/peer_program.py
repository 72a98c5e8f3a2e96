"""A foreign peer on a lab host: a program that owns a TUN device, which is then set up the way flanneld does it."""

from __future__ import annotations

import subprocess
from types import TracebackType
from typing import Self

from flannel_udp.errors import FlannelError
from flannel_udp.lab.netns import wait_until
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, OVERLAY_V6
from flannel_udp.model import Address, Prefix

_START_TIMEOUT_S = 90.0
"""On a machine that is busy with other things."""
_STOP_TIMEOUT_S = 5.0
UDP_OVERHEAD_BYTES = {4: 28, 6: 48}
"""What is in front of an inner packet, by IP version: an outer IP header (20, 40) and UDP's (8)."""


def overlay_of(version: int) -> Prefix:
    """Return the lab's overlay network of a family."""
    return OVERLAY if version == 4 else OVERLAY_V6


def endpoint(address: Address, port: int) -> str:
    """Return them as programs take them."""
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


class Peer:
    """Runs `command`, which opens the `device` on `host`, and attaches the host's pods; a context manager.

    The device has the first address of `subnet` alone, the underlay's MTU less the outer headers (`overhead`, in
    bytes), and the route for the whole overlay of that family, unless another `network` is given. By default all is as
    with flannel's udp.
    """

    def __init__(
        self,
        host: Host,
        subnet: Prefix,
        network: Prefix | None,
        command: list[str],
        *,
        device: str = "flannel0",
        overhead: int | None = None,
    ) -> None:
        self.host = host
        self.subnet = subnet
        self.device = device
        self.mtu = host.plan.underlay_mtu - (overhead or UDP_OVERHEAD_BYTES[subnet.version])
        self.process = host.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            self._wait_for_device()
            host.configure(
                # Without an IPv6 address the kernel says nothing of its own into the tunnel, whenever it likes.
                f"link set {device} mtu {self.mtu} addrgenmode none",
                f"addr add {subnet.network_address}/{subnet.max_prefixlen} dev {device}",
                f"link set {device} up",
                f"route add {network or overlay_of(subnet.version)} dev {device}",
            )
            if not host.prefixes:
                host.attach_pods(subnet, self.mtu)
        except BaseException:
            self.stop()
            raise

    def _wait_for_device(self) -> None:
        def settled() -> bool:
            exists = self.host.run(["ip", "link", "show", self.device], check=False).returncode == 0
            return exists or self.process.poll() is not None

        wait_until(settled, _START_TIMEOUT_S)
        if self.process.poll() is not None and self.process.stderr is not None:
            raise FlannelError(f"{self.host.name}: the peer ended: {self.process.stderr.read().strip()}")

    def stop(self) -> None:
        """End the program; the device and its route go with it."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()
