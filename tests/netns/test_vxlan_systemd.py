"""Under systemd: flannel.1 and its sockets live through a restart of VXLAN in user space, and go with the backend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import links_of, subnet_of, wait_for
from tests.support.by_hand import by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.systemd import Systemd

pytestmark = NEEDS_NETNS

BY_US = "--datapath=userspace"


@pytest.fixture
def host() -> Iterator[Host]:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    with Lab(Plan(fresh_name(), hosts=1, agents=(), config=config)) as lab:
        yield lab.hosts[0]


def index_of(host: Host) -> int:
    return int(json.loads(host.run(["ip", "-json", "link", "show", "flannel.1"]).stdout)[0]["ifindex"])


def mac_of(host: Host) -> str:
    (value,) = by_hand(Lab.attach(host.plan.name)).subnets().values()
    return str(json.loads(value)["BackendData"]["VtepMAC"])


def test_a_restart_goes_on_with_device_and_mac(host: Host, tmp_path: Path) -> None:
    with Systemd(tmp_path) as systemd:
        with systemd.run(host, BY_US) as agent:
            wait_for("ready", systemd.is_ready)
            systemd.wait_stored(["icmp", "tun-0", "vxlan-0"])
            subnet, mac, index = subnet_of(host), mac_of(host), index_of(host)
            assert agent.stop() == 0
        with systemd.run(host, BY_US) as agent:
            wait_for("ready", systemd.is_ready)
            agent.wait_for_line("going on with flannel.1 as the last run left it")
            assert (subnet_of(host), mac_of(host), index_of(host)) == (subnet, mac, index)
            assert host.control("/v1/status")["backend"]["datapath"] == "userspace"
            assert agent.stop() == 0


@pytest.mark.parametrize("flag", ["--datapath=auto", "--datapath=kernel"])
def test_the_kernel_takes_the_place_of_what_was_kept_where_it_may_and_can(
    host: Host, tmp_path: Path, flag: str
) -> None:
    with Systemd(tmp_path) as systemd:
        with systemd.run(host, BY_US) as agent:
            wait_for("ready", systemd.is_ready)
            subnet, mac = subnet_of(host), mac_of(host)
            assert agent.stop() == 0
        with systemd.run(host, flag) as agent:
            wait_for("ready", systemd.is_ready)
            agent.wait_for_line("what systemd kept from the last run is of no use, opening afresh: ")
            assert (subnet_of(host), mac_of(host)) == (subnet, mac)
            assert host.control("/v1/status")["backend"]["datapath"] == "kernel"
            systemd.wait_stored([])
            assert agent.stop() == 0


def test_another_vni_begins_afresh(host: Host, tmp_path: Path) -> None:
    with Systemd(tmp_path) as systemd:
        with systemd.run(host, BY_US) as agent:
            wait_for("ready", systemd.is_ready)
            assert agent.stop() == 0
        by_hand(Lab.attach(host.plan.name)).configure({"Network": str(OVERLAY), "Backend": {"Type": "vxlan", "VNI": 7}})
        with systemd.run(host, BY_US) as agent:
            wait_for("ready", systemd.is_ready)
            agent.wait_for_line("of no use, opening afresh: the tunnel device that was handed over is not flannel.7")
            wait_for("flannel.1 is gone", lambda: links_of(host) == ["flannel.7"])
            assert agent.stop() == 0


def test_another_backend_closes_and_forgets_what_was_kept(host: Host, tmp_path: Path) -> None:
    with Systemd(tmp_path) as systemd:
        with systemd.run(host, BY_US) as agent:
            wait_for("ready", systemd.is_ready)
            subnet = subnet_of(host)
            assert agent.stop() == 0
        by_hand(Lab.attach(host.plan.name)).choose_backend("udp")
        with systemd.run(host) as agent:
            wait_for("ready", systemd.is_ready)
            agent.wait_for_line("of no use, opening afresh: its descriptors are not those of udp")
            systemd.wait_stored(["icmp", "tun-0", "udp-0"])
            wait_for("flannel.1 is gone", lambda: links_of(host) == ["flannel0"])
            assert subnet_of(host) == subnet
            assert agent.stop() == 0
