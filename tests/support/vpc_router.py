"""A VPC around a lab: EC2's API and a router in its middle, and a metadata service on each host at its real address.

The router is the lab's own namespace, which has the underlay's bridge. It does what a VPC does: a packet takes the main
route table's route to a network interface, if the source/destination check of that one is off.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import call_inside
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import UNDERLAY_GATEWAY
from tests.support import ec2_server, metadata_server
from tests.support.behind_router import make_router
from tests.support.vpc import Vpc, interface_of, served

METADATA = "169.254.169.254"
_ROLE = {
    "Code": "Success",
    "AccessKeyId": "ASIAROLE",
    "SecretAccessKey": "of-the-role",
    "Token": "token",
    "Expiration": "2099-01-01T00:00:00Z",
}
_OURS = "proto 99"
_TURN_S = 0.5


class VpcRouter:
    """Follows the main route table, in a thread, until it is stopped."""

    def __init__(self, lab: Lab, vpc: Vpc, addresses: dict[str, str]) -> None:
        self._lab, self._vpc, self._addresses = lab, vpc, addresses
        self._there: dict[str, str] = {}
        self._stopped = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="VPC router")
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopped.wait(_TURN_S):
                self._follow()
        except Exception as failure:
            self._failure = failure

    def _follow(self) -> None:
        passing = {interface for interface in self._addresses if self._vpc.may_forward(interface)}
        wanted = {
            destination: self._addresses[interface]
            for destination, interface in self._vpc.routes().items()
            if interface in passing
        }
        lines = [f"route del {at} {_OURS}" for at in self._there if at not in wanted]
        lines += [f"route replace {at} via {to} {_OURS}" for at, to in wanted.items() if self._there.get(at) != to]
        if lines:
            self._lab.net.configure(*lines)
        self._there = wanted

    def stop(self) -> None:
        """End the thread, and raise what ended it before."""
        self._stopped.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure


@contextmanager
def vpc_around(lab: Lab) -> Iterator[tuple[Vpc, dict[Host, dict[str, Any]]]]:
    """Have all that for the block; yields the VPC, and what each host's metadata service says."""
    make_router(lab)
    gateway, inside = str(UNDERLAY_GATEWAY), ("ip", "netns", "exec", lab.net.namespace)
    with ExitStack() as stack:
        port = stack.enter_context(served(ec2_server, gateway, before=inside))
        vpc = stack.enter_context(closing(Vpc(gateway, port, partial(call_inside, lab.net.namespace))))
        hosts = {host: {**vpc.add_host(str(host.underlay)), "credentials": _ROLE} for host in lab.hosts}
        for host, said in hosts.items():
            host.configure(f"address add {METADATA}/32 dev lo")
            where = ("ip", "netns", "exec", host.namespace)
            stack.enter_context(served(metadata_server, METADATA, "80", json.dumps(said), before=where))
        addresses = {interface_of(said): str(host.underlay) for host, said in hosts.items()}
        stack.callback(VpcRouter(lab, vpc, addresses).stop)
        yield vpc, hosts
