"""docs/install.md, taking the agent off a host: started once more, with two flags, it leaves the kernel clean."""

from __future__ import annotations

from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import WITH_TIME_TO_CLEAN_UP, Agent, up_with_peers
from tests.support.by_hand import by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

FLAGS = ("--ip-masq", "--ip-blackhole-route")
LISTINGS = (
    *("ip -4 route show table all", "ip -6 route show table all", "ip -oneline address", "ip -oneline link"),
    *("ip neighbour show nud all", "bridge fdb", "ip rule", "ip -6 rule"),
    *("iptables-save", "ip6tables-save", "nft list ruleset"),
)


def remains_in_the_kernel(host: Host) -> list[str]:
    lines = [line for listing in LISTINGS for line in host.run(listing.split()).stdout.splitlines()]
    return [line for line in lines if any(word in line for word in ("10.244.", "fd00:10:244", "lannel", "LANNEL"))]


@pytest.mark.parametrize(
    ("backend", "families", "nftables"),
    [
        ({"Type": "udp"}, "46", False),
        ({"Type": "vxlan", "DirectRouting": True}, "46", True),
        ({"Type": "vxlan"}, "46", False),
        ({"Type": "ipip"}, "4", False),
        ({"Type": "host-gw"}, "46", False),
    ],
    ids=str,
)
def test_started_once_more_with_both_flags_nothing_of_it_stays(
    backend: dict[str, Any], families: str, nftables: bool
) -> None:
    config = {"Network": str(OVERLAY), "Backend": backend, "EnableNFTables": nftables}
    with Lab(Plan(fresh_name(), hosts=2, families=families, config=config, agent_args=FLAGS)) as lab:
        host = up_with_peers(lab).hosts[0]
        host.stop_agent()
        host.configure("link del cni0", *(f"link del {pod.name}" for pod in host.pods))
        assert remains_in_the_kernel(host) != []
        assert len(by_hand(lab).subnets()) == 2
        with Agent(host, *FLAGS, "--clean-on-exit", "--release-on-exit", program=WITH_TIME_TO_CLEAN_UP) as agent:
            agent.wait_ready()
            assert agent.stop() == 0
        assert remains_in_the_kernel(host) == []
        assert len(by_hand(lab).subnets()) == 1
        assert {path.name for path in host.state.iterdir()} == {"agent.log", "pods.json", "subnet.env"}
