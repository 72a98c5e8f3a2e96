"""tencent-vpc's part of `cloud_scenario`: a VPC of Tencent Cloud by a server of our own around a lab."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import call_inside
from flannel_udp.lab.plan import UNDERLAY_GATEWAY
from tests.support.served import served
from tests.support.tencent_vpc import ROLE, TencentVpc
from tests.support.vpc_router import in_middle, metadata_on, router_in

METADATA = "169.254.0.23"


class TencentCloud:
    """See `Cloud`: what routes lead to are the hosts' addresses."""

    type = "tencent-vpc"

    def __init__(self, vpc: TencentVpc, targets: tuple[str, ...]) -> None:
        self.vpc, self.table, self.targets = vpc, vpc.main, targets
        self.environment = {"FLANNEL_UDP_TENCENT_ENDPOINT": vpc.url}
        self.routes, self.lead, self.unlead = vpc.routes, vpc.lead, vpc.unlead

    def stranger(self, address: str) -> str:
        """See `Cloud`."""
        self.vpc.add_host(address)
        return address

    def led(self) -> dict[str, str]:
        """Return which destination is led to which host's address."""
        return {at: target for at, target in self.routes().items() if target in self.targets}


@contextmanager
def tencent_around(lab: Lab) -> Iterator[TencentCloud]:
    """Have all that for the block; the hosts have a CAM role."""
    gateway = str(UNDERLAY_GATEWAY)
    with ExitStack() as stack:
        port = stack.enter_context(served("tencent_server", gateway, before=in_middle(lab)))
        vpc = TencentVpc(gateway, port, partial(call_inside, lab.net.namespace))
        for host in lab.hosts:
            said = {**vpc.add_host(str(host.underlay)), "role": ROLE}
            stack.enter_context(metadata_on(host, "tencent_metadata_server", METADATA, said))
        cloud = TencentCloud(vpc, tuple(str(host.underlay) for host in lab.hosts))
        stack.enter_context(router_in(lab, cloud.led))
        yield cloud
