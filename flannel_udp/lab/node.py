"""A lab's nodes: run commands in them; on a host also the agent, and the bridge with the pods behind it."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence, Set
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import Any

from flannel_udp.errors import FlannelError, did_you_mean
from flannel_udp.files import subnet_env
from flannel_udp.files.atomic import replace_file
from flannel_udp.files.subnet_env import SubnetEnv
from flannel_udp.lab import netns
from flannel_udp.lab.interruptible import undivided
from flannel_udp.lab.plan import HostSubnet, Plan
from flannel_udp.lab.runner import Runner
from flannel_udp.model import Address, Prefix, Subnet, prefix_order

logger = logging.getLogger(__name__)

AGENT_TIMEOUT_S, _STOP_TIMEOUT_S = 60.0, 30.0
"""For what takes one or two seconds, unless the hosts of a lab share few processors with much else."""
_HTTP_TIMEOUT_S = 30.0
_LOG_LINES = 12


class Node(Runner):
    """One network namespace of a lab."""

    def __init__(self, plan: Plan, *path: str) -> None:
        self.plan = plan
        self.name = path[-1]
        self.hostname = "-".join(path)
        """What the others resolve, as a host name may have no slash: ``h1``, ``h1-p1``."""
        self.namespace = plan.namespace(*path)
        # The name within the lab: h1, h1/p1.
        super().__init__("/".join(path), ("ip", "netns", "exec", self.namespace))
        self.state = plan.state.joinpath(*path)
        self.subnet_file = self.state / "subnet.env"
        self.control_socket = self.state / "flannel-udp.sock"
        self.state_dir = plan.state.joinpath("lib", *path)
        """An agent's, which outlives it: each host of the lab has an id of its own."""

    @property
    def flags(self) -> dict[str, str]:
        """How an agent of this node, and every command that asks it, is told where things are: flags and values.

        Only hosts have an agent: elsewhere, as the files are not there, the answer is that none runs here.
        """
        return {
            "iface": "eth0",
            "subnet-file": str(self.subnet_file),
            "control-socket": str(self.control_socket),
            "state-dir": str(self.state_dir),
            **self.plan.registry_flags,
        }

    def configure(self, *lines: str) -> None:
        """Run `ip` commands inside, all in one go. Raises `FlannelError` naming the one that failed."""
        netns.ip_batch(lines, namespace=self.namespace)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket that lives inside and can be used from here."""
        return netns.call_inside(self.namespace, lambda: socket.socket(family, kind, protocol))


class Pod(Node):
    """A namespace behind a host's bridge."""

    def __init__(self, host: Host, name: str) -> None:
        super().__init__(host.plan, host.name, name)
        self.host = host

    @property
    def ip(self) -> IPv4Address:
        """The pod's IPv4 address. Raises `FlannelError` before it is attached."""
        address = self.address(4)
        assert isinstance(address, IPv4Address)  # noqa: S101 - for mypy
        return address

    def address(self, version: int) -> Address:
        """Return the pod's address of a family, by IP version. Raises `FlannelError` before it is attached."""
        address = self.known_address(version)
        if address is None:
            raise FlannelError(
                f"{self.path} has no IPv{version} address yet: the pods of {self.host.name} are in no such subnet"
            )
        return address

    def known_address(self, version: int) -> Address | None:
        """Return the same, ``None`` while it has none."""
        return self.host.pod_addresses(version).get(self.name)


class Host(Node):
    """A machine of the lab: eth0 on the underlay, and where it was told to, our agent and pods."""

    def __init__(self, plan: Plan, name: str) -> None:
        super().__init__(plan, name)
        self.underlay = plan.underlay(name)
        """The IPv4 address, which it has if the plan's families say so; see `underlay_of`."""
        self.log_file = self.state / "agent.log"
        self.pods = [Pod(self, pod) for pod in plan.pod_names]
        self._pid_file = self.state / "agent.pid"
        self._pods_file = self.state / "pods.json"
        self._child: subprocess.Popen[str] | None = None

    def pod(self, name: str) -> Pod:
        """Return the pod of that name: ``p1``."""
        for pod in self.pods:
            if pod.name == name:
                return pod
        hint = did_you_mean(name, self.plan.pod_names)
        raise FlannelError(f"{self.name} has no pod {name}: the lab has {self.plan.pods} a host{hint}")

    def underlay_of(self, version: int) -> Address:
        """Return its address of a family on the underlay, by IP version."""
        return self.plan.underlay_of(self.name, version)

    # The agent

    @property
    def runs_agent(self) -> bool:
        """Whether the plan gives this host our agent."""
        return self.name in self.plan.agent_hosts

    def ask_for(self, subnet: Subnet, networks: Sequence[Prefix]) -> None:
        """Leave a subnet.env as if the host had had that subnet of these networks: its agent asks for it again.

        So the lease is one like every other, and ends like every other.
        """
        v4, v6 = (next((n for n in networks if n.version == version), None) for version in (4, 6))
        assert not isinstance(v4, IPv6Network)  # noqa: S101 - for mypy
        assert not isinstance(v6, IPv4Network)  # noqa: S101 - for mypy
        subnet_env.write(
            self.subnet_file, SubnetEnv(v4, subnet, self.plan.underlay_mtu, ip_masq=False, ipv6_network=v6)
        )

    def start_agent(self, *extra_args: str) -> None:
        """Start our agent; `wait_ready` tells when it is up. Raises `FlannelError` if it runs already."""
        if (pid := self.agent_pid()) is not None:
            raise FlannelError(f"{self.name}: the agent runs already (process {pid})")
        with undivided():
            self._child = self._spawn_agent(*extra_args)
            replace_file(self._pid_file, b"%d\n" % self._child.pid)

    def replace_agent(self, timeout_s: float = AGENT_TIMEOUT_S) -> None:
        """Start an agent that takes over from the one that runs, which ends then.

        Raises `FlannelError` if none runs, or the new one does not take over in time: then the former one goes on.
        """
        if self.agent_pid() is None:
            raise FlannelError(f"{self.name}: the agent does not run")
        former, child = self._child, self._spawn_agent("--takeover")
        try:
            netns.wait_until(lambda: self._serving_pid() == child.pid or child.poll() is not None, timeout_s)
        finally:  # Ctrl-C, too: nobody would find the new one again
            if taken := self._serving_pid() == child.pid:
                self._child = child
                replace_file(self._pid_file, b"%d\n" % child.pid)
            else:
                child.kill()
                child.wait()
        if not taken:
            raise FlannelError(f"{self.name}: nobody has taken over; the last words:\n{self._last_words()}")
        if former is not None:
            with suppress(subprocess.TimeoutExpired):
                former.wait(_STOP_TIMEOUT_S)

    def _spawn_agent(self, *extra_args: str) -> subprocess.Popen[str]:
        command = [
            # -P: root must not import whatever lies in the folder that the lab was started from.
            *(sys.executable, "-P", "-m", "flannel_udp"),
            *(word for flag, value in self.flags.items() for word in (f"--{flag}", value)),
            *self.plan.agent_args,
            *self.plan.host_args.get(self.name, ()),
            *extra_args,
        ]
        with self.log_file.open("a") as log:
            return self.popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=clean_environment(),
                new_session=True,
            )

    def _serving_pid(self) -> int | None:
        """Return the process that answers on the control socket and is ready, ``None`` if there is none."""
        try:
            status = self.control("/v1/status")
        except FlannelError:
            return None
        return int(status["pid"]) if status["ready"] else None

    def agent_pid(self) -> int | None:
        """Return the agent's process id, ``None`` when it does not run."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None
        if self._child is not None:
            return self._child.pid
        try:
            pid = int(self._pid_file.read_text())
        except FileNotFoundError:
            return None
        return pid if netns.holds(self.namespace, pid) else None

    def stop_agent(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """End the agent with SIGTERM, as a service manager does. Raises `FlannelError` if it takes longer."""
        self._end_agent(signal.SIGTERM, timeout_s)

    def kill_agent(self) -> None:
        """End the agent with SIGKILL: it can clean up nothing."""
        self._end_agent(signal.SIGKILL, _STOP_TIMEOUT_S)

    def collect_agent(self) -> None:
        """End an agent of ours that no namespace leads to any more, and collect its exit status.

        Its namespace may have lost its name, or the agent has left it and still closes its files: that may take time.
        """
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child = None

    def _end_agent(self, number: signal.Signals, timeout_s: float) -> None:
        pid = self.agent_pid()
        if pid is None:
            raise FlannelError(f"{self.name}: the agent does not run")
        if self._child is not None:
            self._child.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout_s)
            ended = self._child.returncode is not None
        else:
            ended = netns.end_process(self.namespace, pid, number, timeout_s)
        if not ended:
            raise FlannelError(f"{self.name}: the agent (process {pid}) did not end within {timeout_s:g} s")
        self._pid_file.unlink(missing_ok=True)

    def control(self, path: str) -> Any:
        """GET `path` from the agent's control socket, return the JSON. Raises `FlannelError` if no answer comes."""
        connection = http.client.HTTPConnection("localhost", timeout=_HTTP_TIMEOUT_S)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection.sock:
            try:
                connection.sock.settimeout(_HTTP_TIMEOUT_S)
                connection.sock.connect(str(self.control_socket))
                connection.request("GET", path)
                return json.load(connection.getresponse())
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise FlannelError(f"{self.name}: no answer from the agent at {self.control_socket}: {error}") from None

    @property
    def backend(self) -> str | None:
        """How the agent lets packets travel; ``None`` while none runs, or has no network configuration."""
        try:
            facts = self.control("/v1/status").get("backend")
        except FlannelError:
            return None
        return None if facts is None else str(facts["type"])

    def is_ready(self) -> bool:
        """Tell whether subnet.env is written and the agent says that its traffic rules stand."""
        try:
            return self.subnet_file.exists() and self.control("/v1/status").get("ready") is True
        except FlannelError:
            return False

    def wait_ready(self, timeout_s: float = AGENT_TIMEOUT_S) -> None:
        """Wait for the agent. Raises `FlannelError` with its last words if it ends or the time is up."""
        netns.wait_until(lambda: self.is_ready() or self.agent_pid() is None, timeout_s)
        if self.agent_pid() is None:
            raise FlannelError(f"{self.name}: the agent ended; its last words:\n{self._last_words()}")
        if not self.is_ready():
            raise FlannelError(
                f"{self.name}: the agent is not ready after {timeout_s:g} s; its last words:\n{self._last_words()}"
            )

    def wait_peers(self, subnets: Set[Prefix], timeout_s: float = AGENT_TIMEOUT_S) -> None:
        """Wait until the agent has these subnets among its peers: readiness says nothing about the other hosts."""

        def missing() -> set[Prefix]:
            return set(subnets) - {ip_network(peer["subnet"]) for peer in self.control("/v1/peers")}

        if not netns.wait_until(lambda: not missing(), timeout_s):
            unknown = ", ".join(map(str, sorted(missing(), key=prefix_order)))
            raise FlannelError(f"{self.name}: after {timeout_s:g} s the agent does not know the peers {unknown}")

    def _last_words(self) -> str:
        lines = self.log_file.read_text(errors="replace").splitlines() if self.log_file.exists() else []
        return "\n".join(f"  {line}" for line in lines[-_LOG_LINES:]) or "  (it said nothing)"

    # The pods

    @property
    def subnet(self) -> IPv4Network | None:
        """The host's share of the overlay by IPv4, ``None`` while it has none."""
        return self._known[0].v4

    def subnet_of(self, version: int) -> Prefix | None:
        """Return its share by a family, by IP version; ``None`` while it has none."""
        return self._known[0].of(version)

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """What it has by any family, IPv4 first."""
        return self._known[0].prefixes

    @property
    def mtu(self) -> int | None:
        """The overlay's in bytes, as the host's pods have it; ``None`` while nobody says."""
        return self._known[1]

    @property
    def _known(self) -> tuple[Subnet, int | None]:
        """Subnet and MTU, as the agent says, else whoever attached the pods."""
        return self._subnet_env() or self._attached() or (Subnet(None), None)

    def _subnet_env(self) -> tuple[Subnet, int] | None:
        env = subnet_env.read(self.subnet_file)
        return (env.subnet, env.mtu) if env else None

    def _attached(self) -> tuple[Subnet, int] | None:
        if not self._pods_file.exists():
            return None
        record = json.loads(self._pods_file.read_text(encoding="utf-8"))
        return Subnet.made_of(map(ip_network, record["subnets"])), record["mtu"]

    def pod_addresses(self, version: int = 4) -> dict[str, Address]:
        """Return the attached pods that have an address of this family, and the addresses."""
        subnet, mtu = self._attached() or (Subnet(None), 0)
        part = subnet.of(version)
        return {} if part is None else {name: HostSubnet(part, mtu).pod_address(name) for name in self.plan.pod_names}

    @property
    def pods_mtu(self) -> int | None:
        """What the pods' links carry, in bytes; ``None`` while they are not attached."""
        attached = self._attached()
        return None if attached is None else attached[1]

    def settle_pods(self) -> bool:
        """Attach the pods to the subnet that the agent has now, if they are in none or in another one; return whether.

        Raises `FlannelError` while no agent has written a subnet.
        """
        attached, said = self._attached(), self._subnet_env()
        if attached is not None and said is not None and attached[0] == said[0]:
            return False
        if attached is not None:
            self.configure("link del cni0", *(f"link del {pod.name}" for pod in self.pods))
        self.attach_pods()
        return attached is not None

    def attach_pods(self, subnet: Prefix | Subnet | None = None, mtu: int | None = None) -> None:
        """Put the bridge cni0 and the pods behind it into the subnet, as a CNI plugin does.

        Subnet and MTU (bytes) are the agent's by default; a host without our agent has to be told both.
        """
        if subnet is not None and mtu is not None:
            given = (subnet if isinstance(subnet, Subnet) else Subnet.made_of([subnet]), mtu)
        elif (said := self._subnet_env()) is not None:
            given = said
        else:
            raise FlannelError(f"{self.name}: no agent has written a subnet: give subnet and mtu")
        whole, mtu = given
        parts = [HostSubnet(part, mtu) for part in whole.prefixes]
        addresses = {pod: [part.pod_address(pod.name) for part in parts] for pod in self.pods}
        lines = [
            "link add cni0 type bridge",
            *(f"addr add {interface_address(part.gateway, part.subnet)} dev cni0" for part in parts),
            "link set cni0 up",
        ]
        for pod in self.pods:
            lines += [
                f"link add {pod.name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod.namespace}",
                f"link set {pod.name} master cni0 up",
            ]
        self.configure(*lines)
        for pod, own in addresses.items():
            pod.configure(
                "link set lo up",
                *(f"addr add {interface_address(a, part.subnet)} dev eth0" for a, part in zip(own, parts, strict=True)),
                "link set eth0 up",
                *(f"route add default via {part.gateway}" for part in parts),
            )
        record = json.dumps({"subnets": [str(part.subnet) for part in parts], "mtu": mtu}) + "\n"
        replace_file(self._pods_file, record.encode())


def clean_environment() -> dict[str, str]:
    """Return our environment without what the machine's own agent is told by its service manager."""
    return {k: v for k, v in os.environ.items() if not k.startswith("FLANNELD_") and k != "NOTIFY_SOCKET"}


def interface_address(address: Address, network: Prefix) -> str:
    """Return what `ip addr add` is told: an IPv6 address is used at once, nobody else in a lab can have it."""
    return f"{address}/{network.prefixlen}{' nodad' if address.version == 6 else ''}"
