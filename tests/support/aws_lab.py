"""aws-vpc's part of `cloud_scenario`: a VPC by moto's server around a lab."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import call_inside
from flannel_udp.lab.plan import UNDERLAY_GATEWAY
from tests.support.served import served
from tests.support.vpc import Vpc, interface_of
from tests.support.vpc_router import in_middle, metadata_on, router_in

METADATA = "169.254.169.254"
_ROLE = {
    "Code": "Success",
    "AccessKeyId": "ASIAROLE",
    "SecretAccessKey": "of-the-role",
    "Token": "token",
    "Expiration": "2099-01-01T00:00:00Z",
}


class AwsCloud:
    """See `Cloud`: what routes lead to are network interfaces, with the source/destination check off."""

    type = "aws-vpc"

    def __init__(self, vpc: Vpc, addresses: Mapping[str, str]) -> None:
        """`addresses`: of the lab's hosts, by network interface."""
        self.vpc, self.table, self._addresses = vpc, vpc.main, addresses
        self.targets = tuple(addresses)
        self.environment = {"AWS_ENDPOINT_URL_EC2": vpc.url, "AWS_CONFIG_FILE": "/nonexistent", "HOME": "/nonexistent"}
        self.routes, self.lead, self.unlead = vpc.routes, vpc.lead, vpc.unlead

    def stranger(self, address: str) -> str:
        """See `Cloud`."""
        return interface_of(self.vpc.add_host(address))

    def led(self) -> dict[str, str]:
        """Return which destination is led to which address of a host that lets it pass."""
        passing = {target: address for target, address in self._addresses.items() if self.vpc.may_forward(target)}
        return {at: passing[target] for at, target in self.routes().items() if target in passing}


@contextmanager
def aws_around(lab: Lab) -> Iterator[AwsCloud]:
    """Have all that for the block."""
    gateway = str(UNDERLAY_GATEWAY)
    with ExitStack() as stack:
        port = stack.enter_context(served("ec2_server", gateway, before=in_middle(lab)))
        vpc = stack.enter_context(closing(Vpc(gateway, port, partial(call_inside, lab.net.namespace))))
        addresses = {}
        for host in lab.hosts:
            said = {**vpc.add_host(str(host.underlay)), "credentials": _ROLE}
            stack.enter_context(metadata_on(host, "metadata_server", METADATA, said))
            addresses[interface_of(said)] = str(host.underlay)
        cloud = AwsCloud(vpc, addresses)
        stack.enter_context(router_in(lab, cloud.led))
        yield cloud
