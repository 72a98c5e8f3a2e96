"""What is in the way of the kernel's VXLAN is named, in one line that says what to do, and nothing is written."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import Agent, wait_for
from tests.support.by_hand import by_hand
from tests.support.by_hand_vxlan import vxlan_value
from tests.support.kernel_state import kernel_state
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.vxlan_state import DEVICE, has_device, link_of

pytestmark = NEEDS_NETNS

KERNEL = "--datapath=kernel"


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    with Lab(Plan(fresh_name(), hosts=1, config=config, agents=())) as lab:
        yield lab


@pytest.fixture
def h1(shared: Lab) -> Iterator[Host]:
    """A host without any agent and device."""
    (host,) = shared.hosts
    yield host
    for name in (DEVICE, "vxlan9"):
        host.run(["ip", "link", "del", name], check=False)
    for key in by_hand(shared).subnets():
        by_hand(shared).delete(key)


@pytest.mark.parametrize("datapath", ["kernel", "auto"])
@pytest.mark.parametrize(
    ("device", "said"),
    [
        (
            f"{DEVICE} type bridge",
            (
                f"there is a device {DEVICE} already, and it is no vxlan device: "
                f"remove it with 'ip link del {DEVICE}', if nobody needs it"
            ),
        ),
        (
            f"{DEVICE} type vxlan id 1 local 192.0.2.1 dev eth0 dstport 4789 nolearning",
            (
                f"there is a vxlan device {DEVICE} already, and it is not ours: it has id 1 local 192.0.2.1 dev eth0 "
                "dstport 4789, not id 1 local 192.0.2.1 dev eth0 dstport 8472: "
                f"remove it with 'ip link del {DEVICE}', if nobody needs it"
            ),
        ),
        (
            f"{DEVICE} type vxlan id 1 remote 192.0.2.9 dev eth0 dstport 8472 nolearning",
            (
                f"there is a vxlan device {DEVICE} already, and it is not ours: it has id 1 remote 192.0.2.9 dev eth0 "
                "dstport 8472, not id 1 local 192.0.2.1 dev eth0 dstport 8472: "
                f"remove it with 'ip link del {DEVICE}', if nobody needs it"
            ),
        ),
        (
            "vxlan9 type vxlan id 1 dev eth0 dstport 8472",
            (
                "the VNI 1 on UDP port 8472 is in use by the VXLAN device vxlan9: remove it with "
                "'ip link del vxlan9', or choose another Backend.VNI for the whole network"
            ),
        ),
        (
            "vxlan9 up type vxlan external dstport 8472",
            (
                "UDP port 8472 is in use by the kernel's VXLAN device vxlan9: remove it with 'ip link del vxlan9', or "
                "choose another Backend.Port for the whole network"
            ),
        ),
    ],
    ids=["no vxlan", "another port", "another remote", "our vni", "our port"],
)
def test_a_foreign_device_is_named_and_left(shared: Lab, h1: Host, device: str, said: str, datapath: str) -> None:
    h1.configure(f"link add {device}")
    if " up " in device:
        h1.configure(f"link set {device.split(maxsplit=1)[0]} up")
    before = kernel_state(h1)
    with Agent(h1, f"--datapath={datapath}") as agent:
        assert agent.exit_code() == 1
        assert said in agent.said()[-1]
    assert kernel_state(h1) == before
    assert by_hand(shared).subnets() == {}


def test_a_program_that_has_the_port_is_told_how_to_find(shared: Lab, h1: Host) -> None:
    with h1.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("192.0.2.1", 8472))
        with Agent(h1, KERNEL) as agent:
            assert agent.exit_code() == 1
            assert (
                "UDP port 8472 is in use by another program, `ss -ulpn sport = :8472` shows which" in agent.said()[-1]
            )
    assert not has_device(h1)
    assert by_hand(shared).subnets() == {}


def test_a_foreign_device_of_another_vni_shares_the_port(h1: Host) -> None:
    h1.configure("link add vxlan9 type vxlan id 9 dev eth0 dstport 8472", "link set vxlan9 up")
    with Agent(h1, KERNEL) as agent:
        agent.wait_ready()
        assert agent.stop() == 0
    assert has_device(h1, "vxlan9")


def test_a_device_whose_mac_our_entry_names_is_made_anew(shared: Lab, h1: Host) -> None:
    mac = "0a:00:00:00:00:01"
    by_hand(shared).put_leased("10.244.1.0-24", vxlan_value("192.0.2.1", mac))
    h1.configure(f"link add {DEVICE} address {mac} type vxlan id 1 local 192.0.2.1 dev eth0 dstport 4789")
    with Agent(h1, KERNEL) as agent:
        agent.wait_ready()
        link = link_of(h1)
        assert (link["address"], link["linkinfo"]["info_data"]["port"]) == (mac, 8472)
        assert agent.stop() == 0


def test_an_agent_that_never_got_a_lease_leaves_no_device(shared: Lab, h1: Host) -> None:
    hand, config = by_hand(shared), {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    hand.configure({**config, "SubnetMin": "10.244.1.0", "SubnetMax": "10.244.1.0"})
    hand.put_leased("10.244.1.0-24", vxlan_value("192.0.2.9", "0a:00:00:00:00:09"))
    with Agent(h1, KERNEL) as agent:
        agent.wait_for_line("are taken: ")
        assert has_device(h1)
        assert agent.stop() == 0
    assert not has_device(h1)
    hand.configure(config)


def test_an_interface_whose_mtu_falls_below_backends_takes_the_tunnel_along_and_is_named(shared: Lab, h1: Host) -> None:
    hand, config = by_hand(shared), {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    hand.configure({**config, "Backend": {"Type": "vxlan", "MTU": 1400}})
    said = "Backend.MTU is 1400: larger than the MTU of eth0, 1300: lower the one or raise the other; the tunnel's MTU"
    with Agent(h1, KERNEL) as agent:
        agent.wait_ready()
        assert link_of(h1)["mtu"] == 1350
        h1.configure("link set eth0 mtu 1300")
        wait_for("it follows", lambda: link_of(h1)["mtu"] == 1250)
        wait_for("it is named", lambda: any(said in line for line in h1.control("/v1/status")["problems"]))
        h1.configure("link set eth0 mtu 1500")
        wait_for("it follows back", lambda: link_of(h1)["mtu"] == 1350)
        wait_for("nothing is wrong", lambda: h1.control("/v1/status")["problems"] == [])
        assert agent.stop() == 0
    hand.configure(config)
