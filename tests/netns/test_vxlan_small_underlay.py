"""An underlay that is too small for IPv6 by VXLAN: one line says so and what it needs, and it is waited for."""

from __future__ import annotations

import json

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import Agent, wait_for
from tests.support.by_hand import by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

NEEDED = "raise it to 1350"
TOO_SMALL = f"the MTU of eth0, 1300, leaves 1230 in a tunnel, and IPv6 needs 1280 (RFC 8200 section 5): {NEEDED}"


@pytest.mark.parametrize("datapath", ["kernel", "userspace"])
@pytest.mark.parametrize("families", ["46", "6"], ids=["both", "IPv6 alone"])
def test_an_mtu_that_is_too_small_for_ipv6_is_one_line_before_anything_is_written(datapath: str, families: str) -> None:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    plan = Plan(fresh_name(), hosts=1, pods=0, families=families, config=config, agents=(), underlay_mtu=1300)
    with Lab(plan) as lab:
        (host,) = lab.hosts
        with Agent(host, f"--datapath={datapath}") as agent:
            line = agent.wait_for_line(NEEDED)
            assert TOO_SMALL in line
            assert (host.is_ready(), by_hand(lab).subnets()) == (False, {})
            host.configure("link set eth0 mtu 1350")
            agent.wait_ready()
            assert agent.said().count(line) == 1
            assert "FLANNEL_MTU=1280\n" in host.subnet_file.read_text()

            host.configure("link set eth0 mtu 1300")  # smaller while it runs
            wait_for("it says so", lambda: any(NEEDED in text for text in host.control("/v1/status")["problems"]))
            (problem,) = (text for text in host.control("/v1/status")["problems"] if NEEDED in text)
            assert TOO_SMALL in problem
            host.configure("link set eth0 mtu 1400")
            wait_for("all is well", lambda: host.control("/v1/status")["problems"] == [])
            wait_for("pods are told", lambda: "FLANNEL_MTU=1330\n" in host.subnet_file.read_text())
            devices = json.loads(host.run(["ip", "-json", "link"]).stdout)
            assert {link["mtu"] for link in devices if link["ifname"].startswith("flannel")} == {1330}
