"""Another datapath, another VNI, another backend: who we are stays, what the former run left goes, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping_matrix
from tests.support.agents import Log, links_of, subnet_of, wait_for, wait_for_peers
from tests.support.by_hand import by_hand
from tests.support.kernel_state import kernel_state
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

BY_US, BY_KERNEL = "--datapath=userspace", "--datapath=kernel"


@pytest.fixture(scope="module")
def duo() -> Iterator[Lab]:
    """Two hosts, the second one by the kernel throughout; on both runs alloc before, which leaves nothing."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": "alloc"}}
    with Lab(Plan(fresh_name(), hosts=2, config=config)) as lab:
        wait_for_peers(lab.hosts)
        yield lab


@pytest.fixture(scope="module")
def bare(duo: Lab) -> set[str]:
    """What the first host's kernel has while alloc runs."""
    return kernel_state(duo.hosts[0])


def go_over(lab: Lab, backend: dict[str, object], datapath: str, end: Callable[[Host], None] = Host.stop_agent) -> None:
    """Let the first host carry packets so from now on, and the second one by the kernel; pods reach each other."""
    h1, h2 = lab.hosts
    by_hand(lab).configure({"Network": str(OVERLAY), "Backend": backend})
    for host, flag in ((h1, datapath), (h2, BY_KERNEL)):
        if host.agent_pid() is not None:
            end(host)
        host.start_agent(flag)
    for host in lab.hosts:
        host.wait_ready()
    wait_for_peers(lab.hosts)
    wait_for("pods reach each other", lambda: None not in ping_matrix(lab.pods(), timeout_s=0.5).values())


def value_of(lab: Lab, host: Host) -> dict[str, object]:
    value = json.loads(by_hand(lab).subnets()[str(subnet_of(host)).replace("/", "-")])
    return {name: value[name] for name in ("PublicIP", "BackendType", "BackendData") if name in value}


def datapath_of(host: Host) -> str:
    return str(host.control("/v1/status")["backend"]["datapath"])


def kind_of(host: Host, device: str) -> str:
    (link,) = json.loads(host.run(["ip", "-json", "-details", "link", "show", device]).stdout)
    return str(link["linkinfo"]["info_kind"])


def test_the_datapath_may_change_from_run_to_run_and_nobody_notices(duo: Lab, bare: set[str]) -> None:
    h1, h2 = duo.hosts
    subnet = subnet_of(h1)
    go_over(duo, {"Type": "vxlan"}, BY_US)
    value, log = value_of(duo, h1), Log(h2)
    ends: list[Callable[[Host], None]] = [Host.stop_agent, Host.kill_agent]
    for end in ends:
        for flag, kind in (("--datapath=auto", "vxlan"), (BY_US, "tun")):
            end(h1)
            h1.start_agent(flag)
            h1.wait_ready()
            assert (subnet_of(h1), value_of(duo, h1)) == (subnet, value)
            assert (links_of(h1), kind_of(h1, "flannel.1")) == (["flannel.1"], kind)
            assert datapath_of(h1) == ("kernel" if kind == "vxlan" else "userspace")
            wait_for("pods reach each other", lambda: None not in ping_matrix(duo.pods(), timeout_s=0.5).values())
    assert log.lines("peer changed") == log.lines("peer removed") == []
    first = subnet.network_address
    assert kernel_state(h1) == bare | {
        "link flannel.1",
        f"address flannel.1 inet {first}/32",
        f"route local {first} dev flannel.1 table local proto kernel scope host src {first}",
        f"route {OVERLAY} dev flannel.1",
    }


def test_a_device_of_another_vni_leaves_the_port(duo: Lab) -> None:
    h1 = duo.hosts[0]
    go_over(duo, {"Type": "vxlan"}, BY_KERNEL)
    assert (links_of(h1), datapath_of(h1)) == (["flannel.1"], "kernel")
    go_over(duo, {"Type": "vxlan", "VNI": 16_777_215}, BY_US)
    assert links_of(h1) == ["flannel.xffffff"]


def test_udp_has_the_port_of_the_kernels_device_for_the_asking(duo: Lab) -> None:
    go_over(duo, {"Type": "vxlan"}, BY_KERNEL)
    go_over(duo, {"Type": "udp", "Port": 8472}, "--datapath=auto")
    assert links_of(duo.hosts[0]) == ["flannel0"]


def test_nothing_of_it_stays(duo: Lab, bare: set[str]) -> None:
    h1, h2 = duo.hosts
    subnet = subnet_of(h1)
    for backend, datapath in (
        ({"Type": "vxlan"}, BY_US),
        ({"Type": "host-gw"}, BY_US),
        ({"Type": "vxlan"}, BY_KERNEL),
        ({"Type": "udp"}, BY_US),
        ({"Type": "vxlan"}, BY_US),
    ):
        go_over(duo, dict(backend), datapath, Host.kill_agent)
        assert subnet_of(h1) == subnet
    by_hand(duo).choose_backend("alloc")
    for host in (h1, h2):
        host.kill_agent()
        host.start_agent()
        host.wait_ready()
    wait_for("all is as with alloc", lambda: kernel_state(h1) == bare)
