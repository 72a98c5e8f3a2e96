"""Under systemd: what its descriptor store keeps of udp is closed and forgotten where the next run is host-gw's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, links_of, subnet_of, wait_for
from tests.support.by_hand import by_hand
from tests.support.kernel_state import kernel_state, lease_end_of
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.systemd import Systemd

pytestmark = NEEDS_NETNS


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        yield lab.hosts[0]


TUN = os.makedev(10, 200)  # Documentation/admin-guide/devices.txt; its path is another one where tests run in a chroot


def has_tun_open(agent: Agent) -> bool:
    for link in Path(f"/proc/{agent.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if link.stat().st_rdev == TUN:
                return True
    return False


def test_udps_descriptors_are_closed_and_forgotten_and_flannel0_is_gone(host: Host, tmp_path: Path) -> None:
    with Systemd(tmp_path) as systemd:
        with systemd.run(host) as agent:
            wait_for("ready", systemd.is_ready)
            subnet = subnet_of(host)
            systemd.wait_stored(["icmp", "tun-0", "udp-0"])
            assert has_tun_open(agent)
            assert agent.stop() == 0
        assert links_of(host) == ["flannel0"]
        by_hand(Lab.attach(host.plan.name)).choose_backend("host-gw")
        with systemd.run(host) as agent:
            wait_for("ready", systemd.is_ready)
            systemd.wait_stored([])
            assert not has_tun_open(agent)
            wait_for("flannel0 is gone", lambda: not any("flannel0" in line for line in kernel_state(host)))
            assert subnet_of(host) == subnet
            assert lease_end_of(host) is not None
            no_use = "what systemd kept from the last run is of no use, opening afresh: "
            assert [line for line in agent.said() if "systemd" in line] == [
                f"{no_use}the backend host-gw has no packet path of its own"
            ]
            assert agent.stop() == 0


def test_host_gw_has_systemd_keep_nothing_and_udp_begins_afresh_after_it(host: Host, tmp_path: Path) -> None:
    by_hand(Lab.attach(host.plan.name)).choose_backend("host-gw")
    with Systemd(tmp_path) as systemd:
        with systemd.run(host) as agent:
            wait_for("ready", systemd.is_ready)
            assert agent.stop() == 0
        systemd.wait_stored([])
        by_hand(Lab.attach(host.plan.name)).choose_backend("udp")
        with systemd.run(host) as agent:
            wait_for("ready", systemd.is_ready)
            systemd.wait_stored(["icmp", "tun-0", "udp-0"])
            wait_for("the address of host-gw's routes is gone", lambda: lease_end_of(host) is None)
            assert agent.stop() == 0
