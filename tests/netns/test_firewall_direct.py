"""DirectRouting: rules that drop what comes and goes past the tunnel are named, and mended by the command."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping_matrix
from tests.netns.test_doctor import faults
from tests.support.agents import unanswered, up_with_peers, wait_for
from tests.support.firewall import look_s
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS


@pytest.fixture(scope="module", params=["vxlan", "udp"])
def duo(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two hosts on one link; tests leave them as they were."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": request.param, "DirectRouting": True}}
    with Lab(Plan(fresh_name(), hosts=2, config=config)) as lab:
        up_with_peers(lab)
        asked = lab.hosts[0]
        wait_for("it is direct", lambda: [p["datapath"] for p in asked.control("/v1/peers")] == ["direct"])
        yield lab


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (
            "FORWARD -i eth0 -o cni0 -j DROP",
            "what other hosts on the link send to our pods: iptables-nft: -A FORWARD -i eth0 -o cni0 -j DROP",
        ),
        (
            "FORWARD -i cni0 -o eth0 -j DROP",
            "what our pods send to other hosts on the link: iptables-nft: -A FORWARD -i cni0 -o eth0 -j DROP",
        ),
        (
            "PREROUTING -t raw -i eth0 -s 10.0.0.0/8 -j DROP",
            "what other hosts on the link send to our pods: iptables-nft -t raw: -A PREROUTING -s 10.0.0.0/8 -i eth0",
        ),
    ],
)
def test_a_rule_for_what_goes_past_the_tunnel_is_named_and_mended_by_its_command(
    duo: Lab, rule: str, text: str
) -> None:
    host = duo.hosts[0]

    def found() -> list[str]:
        return [problem for problem in host.control("/v1/status")["problems"] if text in problem]

    host.run(["iptables", "-w", "-I", *rule.split()])
    try:
        wait_for("it is named", lambda: len(found()) == 1, look_s())
        assert host.is_ready()
        assert None in ping_matrix([each.pods[0] for each in duo.hosts], 1.0).values()
        assert text in faults(host)["firewall for pods"][0]
        host.run(["sh", "-c", found()[0].rpartition(": ")[2]])
        assert unanswered([each.pods[0] for each in duo.hosts]) == []
        wait_for("it is well", lambda: host.control("/v1/status")["problems"] == [], look_s())
        assert "firewall for pods" not in faults(host)
    finally:
        chain, *rest = rule.split()
        table = rest[rest.index("-t") + 1] if "-t" in rest else "filter"
        host.run(["iptables", "-w", "-t", table, "-D", *rule.split()])
        for side in ("-s", "-d"):
            host.run(["iptables", "-w", "-t", table, "-D", chain, side, str(OVERLAY), "-j", "ACCEPT"])
