"""Lay a lab's cables: two ends of a veth, or where there is delay or loss two TAP devices and a relay between them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from flannel_udp.errors import FlannelError
from flannel_udp.files.atomic import replace_file
from flannel_udp.lab import ethtool, netns
from flannel_udp.lab.interruptible import undivided
from flannel_udp.lab.node import Node, clean_environment
from flannel_udp.lab.relay import READY

EXIT = "eth0"
"""What every host, router and pod calls its end."""
_START_TIMEOUT_S, _STOP_TIMEOUT_S = 60.0, 5.0
"""For what takes a tenth of a second, on a busy machine."""
_CUT = dict.fromkeys(ethtool.CUTTING, False)
_CARDS: Mapping[str, Mapping[str, bool]] = {
    "whole": {},
    "wire": _CUT | dict.fromkeys(ethtool.GRO, True),
    "plain": _CUT | dict.fromkeys(ethtool.GRO, False),
}
"""By `Plan.offload` what a node's end is like."""


def lay(node: Node, switch: Node, bridge: str) -> None:
    """Lay the cable of a host or a router from its eth0 to a port, named after it, of a bridge in `switch`.

    A relayed one carries nothing until its `Relay` is started. Raises `FlannelError`.
    """
    plan, port = node.plan, node.name
    mtu, cable = plan.mtu_of(node.name), plan.cable(node.name)
    if cable.is_relayed:
        switch.configure(f"tuntap add dev {port} mode tap", f"link set {port} mtu {mtu}")
        node.configure(f"tuntap add dev {EXIT} mode tap", f"link set {EXIT} mtu {mtu}")
    else:
        switch.configure(f"link add {port} mtu {mtu} type veth peer name {EXIT} mtu {mtu} netns {node.namespace}")
        # Cut at both ends; only the node's end joins, as only a real card does.
        if features := _CARDS[plan.offload]:
            ethtool.set_features(node.namespace, EXIT, features)
            ethtool.set_features(switch.namespace, port, _CUT)
    switch.configure(f"link set {port} master {bridge} up")
    if cable.rate is not None:
        for end, interface in ((node, EXIT), (switch, port)):
            _limit(end, interface, cable.rate, mtu)


def _limit(node: Node, interface: str, rate: int, mtu: int) -> None:
    """Let an interface send so much a second, by a token bucket (tc-tbf(8))."""
    # What may leave at once: 5 ms of the rate, and a few packets of whatever length.
    burst_bytes = max(rate // 8 // 200, 32_768, 2 * mtu)
    shape = ["root", "tbf", "rate", f"{rate}bit", "burst", str(burst_bytes), "latency", "50ms"]
    node.run(["tc", "qdisc", "replace", "dev", interface, *shape])


class Relay:
    """The process that carries the frames of a cable with delay or loss; it ends with the lab."""

    def __init__(self, node: Node, switch: Node) -> None:
        self.node, self._switch = node, switch
        self._pid_file: Path = node.plan.state / f"relay-{node.name}.pid"
        self._child: subprocess.Popen[str] | None = None

    def pid(self) -> int | None:
        """Return its process id, ``None`` while it does not run."""
        try:
            pid = int(self._pid_file.read_text())
        except FileNotFoundError:
            return None
        return pid if netns.holds(self._switch.namespace, pid) else None

    def start(self) -> None:
        """Start it, and wait until it carries frames. Raises `FlannelError`."""
        plan, name = self.node.plan, self.node.name
        cable = plan.cable(name)
        try:
            with undivided():
                self._child = self._switch.popen(
                    [
                        *(sys.executable, "-P", "-m", "flannel_udp.lab.relay"),
                        *("--near", self.node.namespace, EXIT, "--far", self._switch.namespace, name),
                        *("--delay-ms", str(cable.delay_ms), "--loss", str(cable.loss)),
                        *("--seed", f"{plan.seed} {name}"),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=clean_environment(),
                    new_session=True,
                )
            assert self._child.stdout is not None  # noqa: S101 - for mypy
            with self._child.stdout as said:
                answered = netns.is_readable(said.fileno(), _START_TIMEOUT_S)
                line = said.readline() if answered else "it says nothing"
            if line != READY:
                raise FlannelError(f"the relay of the link {name} has not started: {line.strip() or 'it ended'}")
            replace_file(self._pid_file, b"%d\n" % self._child.pid)
        except BaseException:  # nobody would find it again, and it holds the devices
            self.collect()
            raise

    def stop(self) -> None:
        """End it, whoever has started it; nothing if it does not run."""
        if (pid := self.pid()) is not None:
            netns.end_process(self._switch.namespace, pid, signal.SIGKILL, _STOP_TIMEOUT_S)

    def collect(self) -> None:
        """End a relay of ours that nothing leads to any more, and collect its exit status."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
