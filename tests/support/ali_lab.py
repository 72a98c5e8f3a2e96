"""ali-vpc's part of `cloud_scenario`: a VPC by a server of our own around a lab."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import call_inside
from flannel_udp.lab.plan import UNDERLAY_GATEWAY
from tests.support.ali_vpc import MAIN, ROLE, AliVpc
from tests.support.served import served
from tests.support.vpc_router import in_middle, metadata_on, router_in

METADATA = "100.100.100.200"


class AliCloud:
    """See `Cloud`: what routes lead to are instances."""

    type = "ali-vpc"
    table = MAIN

    def __init__(self, vpc: AliVpc, hosts: Sequence[dict[str, Any]]) -> None:
        """`hosts`: what the metadata services of the lab's say."""
        self.vpc = vpc
        self._addresses = {host["instance"]: host["interfaces"][0]["addresses"][0] for host in hosts}
        self.targets = tuple(self._addresses)
        self.environment = {"FLANNEL_UDP_ALI_ENDPOINT": vpc.url, "HOME": "/nonexistent"}

    def stranger(self, address: str) -> str:
        """See `Cloud`."""
        return str(self.vpc.add_host(address)["instance"])

    def routes(self) -> dict[str, str]:
        """See `Cloud`."""
        return self.vpc.routes()

    def lead(self, destination: str, target: str) -> None:
        """See `Cloud`."""
        self.vpc.lead(destination, target)

    def unlead(self, destination: str) -> None:
        """See `Cloud`."""
        self.vpc.unlead(destination)

    def led(self) -> dict[str, str]:
        """See `Cloud`."""
        return {at: self._addresses[to] for at, to in self.routes().items() if to in self._addresses}


@contextmanager
def ali_around(lab: Lab) -> Iterator[AliCloud]:
    """Have all that for the block; each change is under way for one read."""
    gateway = str(UNDERLAY_GATEWAY)
    with ExitStack() as stack:
        port = stack.enter_context(served("ali_server", gateway, before=in_middle(lab)))
        vpc = AliVpc(gateway, port, partial(call_inside, lab.net.namespace))
        vpc.settle_after(1)
        said = [{**vpc.add_host(str(host.underlay)), "credentials": ROLE} for host in lab.hosts]
        for host, says in zip(lab.hosts, said, strict=True):
            stack.enter_context(metadata_on(host, "ali_metadata_server", METADATA, says))
        cloud = AliCloud(vpc, said)
        stack.enter_context(router_in(lab, cloud.led))
        yield cloud
