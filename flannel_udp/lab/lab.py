"""Class `Lab`: a whole overlay network of namespaces, brought up, attached to, taken down.

    fu-NAME-net     bridge "underlay" 192.0.2.254/24, ports h1, h2, r1, …; the lab's etcd, if it has one
    fu-NAME-r1      eth0 192.0.2.201/24; bridge "site" 172.16.1.254/24, ports of what is behind it
    fu-NAME-h1      eth0 192.0.2.1/24; our agent; bridge cni0 with its subnet's first address, ports p1, …
    fu-NAME-h1-p1   eth0 with an address of the host's subnet, default route to cni0

With IPv6 the same by 2001:db8::/64 (behind r1 2001:db8:1::/64): the bridges have ::fe, h1 has ::1, r1 ::c9.

Outside are only names (`ip netns`) and /run/flannel-udp-lab/NAME/, so labs may use the same addresses side by side.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flannel_udp.errors import FlannelError, did_you_mean
from flannel_udp.lab import netns
from flannel_udp.lab.etcd_server import EtcdServer
from flannel_udp.lab.interruptible import uninterrupted
from flannel_udp.lab.memory import require_memory
from flannel_udp.lab.node import AGENT_TIMEOUT_S, Host, Node, Pod
from flannel_udp.lab.plan import STATE_DIR, Plan, check_name, lab_of_namespace
from flannel_udp.lab.registry import require_registry, start_registry
from flannel_udp.lab.sites import network_behind
from flannel_udp.lab.underlay import Underlay, require_nat
from flannel_udp.model import Prefix, Subnet

logger = logging.getLogger(__name__)

_AGENT_S = 3.0
"""What each host has more time for, as all agents start at once: one needs a second of a processor."""
_ROUNDS, _ROUND_S = 20, 0.1
"""How often, and after how many seconds again, a lab is removed that somebody else is still building."""


class Lab:
    """A lab; as a context manager it is up inside the block and gone after it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.name = plan.name
        self.hosts = [Host(plan, name) for name in plan.host_names]
        self.underlay = Underlay(plan)
        self.net, self.routers = self.underlay.net, self.underlay.routers
        self._etcd: EtcdServer | None = None

    @classmethod
    def attach(cls, name: str) -> Self:
        """Return the lab of that name, which another process brought up. Raises `FlannelError` if there is none."""
        netns.require()
        plan = Plan.load(name)
        if plan is None:
            raise no_lab(name)
        return cls(plan)

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.down()

    def up(self) -> None:
        """Build everything, start the agents, attach their pods. What fails midway is taken down again.

        Raises `FlannelError`: not root, a lab of that name exists, an agent did not get ready.
        """
        netns.require()
        require_registry(self.plan)
        require_nat(self.plan)
        require_memory(len(self.plan.agent_hosts))
        with self._claim() as stands:
            try:
                for host in self.hosts:
                    host.state.mkdir()
                self.plan.save()
                self._build()
                self.ask_for_subnets(self.hosts)
                self._etcd = start_registry(self.plan)
                self.start_agents(AGENT_TIMEOUT_S + _AGENT_S * len(self.hosts), self.hosts)
                if not stands():
                    raise FlannelError(f"the lab {self.name} is gone")
            except BaseException as error:
                if stands():
                    self.down()
                    raise
                self._end_remains()
                if isinstance(error, FlannelError | OSError):
                    raise FlannelError(f"the lab {self.name} was taken down while it was built") from None
                raise

    def down(self) -> None:
        """Remove everything; no fault if it is gone already."""
        remove(self.name)
        self._end_children()

    def _end_remains(self) -> None:
        """End what was begun after somebody else has taken the lab down; a new one of that name is not ours."""
        if not self.plan.state.exists():
            remove(self.name)
        self._end_children()

    def _end_children(self) -> None:
        """Collect the exit statuses of our children, and end what is in a namespace without a name by now."""
        for host in self.hosts:
            host.collect_agent()
        self.underlay.end()
        if self._etcd is not None:
            self._etcd.stop()

    def host(self, name: str) -> Host:
        """Return the host of that name: ``h1``."""
        for host in self.hosts:
            if host.name == name:
                return host
        known = self.plan.host_names
        hint = did_you_mean(name, known)
        raise FlannelError(f"the lab {self.name} has no host {name}: it has {', '.join(known)}{hint}")

    def pods(self) -> list[Pod]:
        """Return all pods, host by host."""
        return [pod for host in self.hosts for pod in host.pods]

    def node(self, path: str) -> Node:
        """Return the node ``h1``, ``h1/p1``, ``r1`` or ``net`` (where the underlay's bridge is)."""
        for node in (self.net, *self.routers):
            if node.path == path:
                return node
        host, _, pod = path.partition("/")
        return self.host(host).pod(pod) if pod else self.host(host)

    def status(self) -> dict[str, Any]:
        """Return what `lab status --json` prints; backend, subnet and ip are null while they are not known.

        What is of IPv6 has names that end in ``_v6``, and is there if the lab has IPv6.
        """

        def by_family(name: str, value_of: Callable[[int], object]) -> dict[str, str | None]:
            """Return the value of each family that the lab can show; that of IPv4 is always there."""
            found = {4: value_of(4) if 4 in self.plan.versions else None}
            found |= {6: value_of(6)} if 6 in self.plan.versions else {}
            names = {4: name, 6: f"{name}_v6"}
            return {names[version]: None if value is None else str(value) for version, value in found.items()}

        return {
            "name": self.name,
            "routers": [
                {
                    "name": name,
                    "behind": self.plan.behind.get(name),
                    "link": self._link(name),
                    **by_family("uplink", partial(self.plan.underlay_of, name)),
                    **by_family("network", partial(network_behind, name)),
                    "nat": self.plan.routers[name].nat,
                    "forward": self.plan.routers[name].forward,
                }
                for name in self.plan.router_names
            ],
            "hosts": [
                {
                    "name": host.name,
                    "behind": self.plan.behind.get(host.name),
                    "link": self._link(host.name),
                    **by_family("underlay", host.underlay_of),
                    "backend": host.backend,
                    **by_family("subnet", host.subnet_of),
                    "pods": [{"name": pod.name, **by_family("ip", pod.known_address)} for pod in host.pods],
                }
                for host in self.hosts
            ],
        }

    def _link(self, node: str) -> dict[str, Any]:
        """Return what the link of a host or a router's uplink was built like."""
        return {**asdict(self.plan.cable(node)), "mtu": self.plan.mtu_of(node)}

    def start_agents(self, timeout_s: float, hosts: Sequence[Host]) -> None:
        """Start the planned agents of these hosts; wait until each is ready, has its pods, and knows the others."""
        hosts = [host for host in hosts if host.runs_agent]
        if not hosts:
            return
        logger.info("starting %d agents", len(hosts))
        for host in hosts:
            host.start_agent()
        deadline = time.monotonic() + timeout_s
        for host in hosts:
            host.wait_ready(max(deadline - time.monotonic(), 0.0))
            wanted = self.plan.subnets.get(host.name)
            if wanted is not None and wanted != tuple(map(str, host.prefixes)):
                got = " and ".join(map(str, host.prefixes))
                raise FlannelError(f"{host.name} was to have {' and '.join(wanted)} and has {got}")
            host.attach_pods()
            logger.info("%s is ready: its pods are in %s", host.name, " and ".join(map(str, host.prefixes)))
        subnets = {subnet for host in hosts for subnet in host.prefixes} | self._subnets_of_others()
        for host in hosts:
            # A host that lacks a family has no peers of it.
            own = {subnet.version for subnet in host.prefixes}
            others = {subnet for subnet in subnets if subnet.version in own} - set(host.prefixes)
            host.wait_peers(others, max(deadline - time.monotonic(), 0.0))

    def _subnets_of_others(self) -> set[Prefix]:
        """Return the subnets that are reserved for the hosts without our agent."""
        others = {str(host.underlay_of(v)) for host in self.hosts if not host.runs_agent for v in self.plan.versions}
        return {
            ip_network(subnet)
            for subnets, addresses in self.plan.reservations.items()
            for subnet, address in zip(subnets.split("&"), addresses.split("&"), strict=True)
            if address in others
        }

    @contextmanager
    def _claim(self) -> Iterator[Callable[[], bool]]:
        """Take the name: making the folder is what two processes cannot both succeed in.

        Yields what tells whether the lab still is ours, and nobody is taking it down.
        """
        try:
            _make_folder(self.plan.state)
        except FileExistsError:
            taken = True
        else:
            taken = self.name in {lab_of_namespace(name) for name in netns.names()}
            if taken:
                self.plan.state.rmdir()
        if taken:
            raise FlannelError(
                f"a lab named {self.name} is up, or a killed one left its remains: "
                f"remove it with `flannel-udp lab down --name {self.name}`"
            )
        _going(self.name).unlink(missing_ok=True)
        with standing(self.name) as stands:
            yield stands

    def _build(self) -> None:
        """Make the namespaces, the underlay, and the hosts on it."""
        logger.info("building hosts: %d, pods on each: %d", self.plan.hosts, self.plan.pods)
        self._make_namespaces([self.net, *self.routers])
        self.underlay.build()
        self.build_hosts(self.hosts)

    def build_hosts(self, hosts: Sequence[Host]) -> None:
        """Make hosts and their pods, and join the hosts to the underlay. Raises `FlannelError`."""
        self._make_namespaces([*hosts, *(pod for host in hosts for pod in host.pods)])
        for host in hosts:
            self.underlay.join(host)

    def _make_namespaces(self, nodes: Sequence[Node]) -> None:
        netns.ip_batch(f"netns add {node.namespace}" for node in nodes)
        if 6 in self.plan.versions:
            for node in nodes:
                _prepare_ipv6(node)

    def ask_for_subnets(self, hosts: Sequence[Host]) -> None:
        """Let the agents of these hosts, which are not yet started, ask for the subnets that the plan gives them."""
        networks = [ip_network(overlay) for overlay in self.plan.overlays]
        for host in hosts:
            if (parts := self.plan.subnets.get(host.name)) is not None:
                host.ask_for(Subnet.made_of(map(ip_network, parts)), networks)


@contextmanager
def standing(name: str) -> Iterator[Callable[[], bool]]:
    """Yield what tells whether the lab of that name still is the one it is now, and nobody is taking it down.

    Raises `FlannelError` if there is none.
    """
    state = STATE_DIR / name
    try:
        # While it is open no other folder has its inode's number.
        folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise no_lab(name) from None
    try:
        own = os.fstat(folder)
        # In this order: the note goes after the folder.
        yield lambda: not _going(name).exists() and netns.identity(state) == (own.st_dev, own.st_ino)
    finally:
        os.close(folder)


def _prepare_ipv6(node: Node) -> None:
    """Switch IPv6 on, and duplicate address detection off (RFC 4862 5.4): an address could not be used for a second.

    What a new namespace begins with is the machine's: a container's may have IPv6 off.
    """
    settings = {"disable_ipv6": 0, "accept_dad": 0}
    netns.write_sysctls(
        node.namespace,
        {f"ipv6/conf/{which}/{name}": value for which in ("all", "default") for name, value in settings.items()},
    )


def _make_folder(path: Path) -> None:
    """Make a lab's folder and the one of all labs, which whoever removes the last lab may take away just then.

    Raises `FileExistsError` for a lab's folder that is there.
    """
    while True:
        with suppress(FileExistsError):  # another lab's, which went before it was looked at
            path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.mkdir()
            return


def lab_names() -> list[str]:
    """Return the names of all labs, also of half-made and killed ones: by their folder or by their namespaces."""
    folders: set[str] = set()
    with suppress(FileNotFoundError):  # it goes with the last lab
        folders = {path.name for path in STATE_DIR.iterdir() if not path.name.startswith(".")}
    return sorted(folders | {name for ns in netns.names() if (name := lab_of_namespace(ns))})


def no_lab(name: str) -> FlannelError:
    """Return what is to be said of a name that no lab has."""
    names = lab_names()
    if name in names:
        return FlannelError(
            f"the lab {name} is half-made: wait for who builds it, or `flannel-udp lab down --name {name}`"
        )
    hint = did_you_mean(name, names)
    there = f"there are {', '.join(names)}{hint}" if names else "there is none: flannel-udp lab up makes one"
    return FlannelError(f"no lab named {name} is up: {there}")


def remove(name: str) -> bool:
    """Remove whatever is there of the lab: processes, namespaces (and with them all links and routes), files.

    Needs no plan, so that it also works on half-made labs. Ctrl-C and the like wait until it is done. Returns False
    if there was nothing.
    """
    check_name(name)
    netns.require()
    with uninterrupted():
        return _remove(name)


def _remove(name: str) -> bool:
    state, found = STATE_DIR / name, False
    for _ in range(_ROUNDS):
        namespaces = [ns for ns in netns.names() if lab_of_namespace(ns) == name]
        if not namespaces and not state.exists():
            break
        if not found:
            logger.info("removing %s", name)
            with suppress(FileNotFoundError):  # there are namespaces only
                _going(name).touch()
        else:  # somebody is building it at the same time, and has not yet noticed
            time.sleep(_ROUND_S)
        found = True
        netns.stop_processes(namespaces)
        netns.ip_batch((f"netns del {ns}" for ns in namespaces), keep_going=True)
        shutil.rmtree(state, ignore_errors=True)
    else:
        left = [ns for ns in netns.names() if lab_of_namespace(ns) == name]
        what = f"the network namespaces {', '.join(left)}" if left else f"the folder {state}"
        raise FlannelError(f"{what} cannot be removed: see `{f'ip netns del {left[0]}' if left else f'rm -r {state}'}`")
    _going(name).unlink(missing_ok=True)
    with suppress(OSError):  # other labs still have their folders there
        STATE_DIR.rmdir()
    return found


def _going(name: str) -> Path:
    """Return the file that tells whoever builds the lab that somebody is taking it down."""
    return STATE_DIR / f".{name}.going"
