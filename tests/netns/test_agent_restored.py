"""The registry is restored from a backup that is older than what agents wrote last. Real agents, etcd and file."""

from __future__ import annotations

import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import ETCD_PORT, UNDERLAY_GATEWAY, Plan
from flannel_udp.lab.registry import Etcd
from tests.support.agents import Log, start_agents, subnet_of, wait_for
from tests.support.by_hand import EtcdByHand, by_hand
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

TAKEN_AGAIN = "is older than what we wrote: restored from a backup? (taking it again)"


@pytest.fixture(params=["file", "etcd"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two hosts on which nothing runs yet."""
    with Lab(Plan(fresh_name(), hosts=2, pods=1, registry=request.param, agents=())) as made:
        yield made


class Backup(ABC):
    """What a lab's registry holds now, to be restored later."""

    @abstractmethod
    def restore(self) -> None:
        """Let the registry be as it was."""


class FileBackup(Backup):
    """A copy of the file."""

    def __init__(self, lab: Lab) -> None:
        self._file = lab.plan.registry_file
        self._text = self._file.read_text()

    def restore(self) -> None:
        self._file.write_text(self._text)


class EtcdBackup(Backup):
    """A snapshot as etcdctl makes it; the etcd that has it then is the same member of the same cluster."""

    def __init__(self, lab: Lab) -> None:
        self._etcd = Etcd(lab.plan)
        self._hand = EtcdByHand(lab)
        self._data = lab.plan.state / "etcd" / "etcd"
        self._file = lab.plan.state / "snapshot"
        self._hand.etcdctl("snapshot", "save", str(self._file))

    def restore(self) -> None:
        self._etcd.stop()
        shutil.rmtree(self._data)
        peer_url = f"http://{UNDERLAY_GATEWAY}:{ETCD_PORT + 1}"
        member = (
            "--name=etcd",
            f"--initial-cluster=etcd={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
        )
        self._hand.etcdctl("snapshot", "restore", str(self._file), f"--data-dir={self._data}", *member)
        self._etcd.start()


def back_up(lab: Lab) -> Backup:
    return EtcdBackup(lab) if lab.plan.registry == "etcd" else FileBackup(lab)


def restart(host: Host) -> None:
    host.stop_agent()
    host.start_agent()
    host.wait_ready()


def test_a_host_that_was_restarted_since_the_backup_goes_on_without_a_break(lab: Lab) -> None:
    h1, h2 = lab.hosts
    start_agents([h1, h2])
    subnet = subnet_of(h1)
    backup = back_up(lab)
    time.sleep(1.1)  # in a file leases end at a full second, by which the older one is known
    restart(h1)
    log = Log(h1)
    with Flow(h1.pods[0], h2.pods[0]) as flow:
        backup.restore()
        wait_for("h1 says so", lambda: bool(log.lines(TAKEN_AGAIN)))
        wait_for("it works", lambda: bool(log.lines("renewing the subnet: works now")))
        flow.wait_for_one_sent_from_now()
    assert flow.missing == []
    assert h1.is_ready()
    assert (log.lines("lost our subnet"), len(log.lines(TAKEN_AGAIN))) == ([], 1)
    assert subnet_of(h1) == subnet
    assert str(subnet).replace("/", "-") in by_hand(lab).subnets()
    # Nothing is left of it for the next start.
    restart(h1)


def test_a_subnet_that_the_backup_gives_to_another_host_is_left_to_it(lab: Lab) -> None:
    h1, h2 = lab.hosts
    start_agents([h1, h2])
    key = str(subnet_of(h1)).replace("/", "-")
    hand = by_hand(lab)
    h1.stop_agent()
    hand.delete(key)
    hand.put_leased(key, json.dumps({"PublicIP": "192.0.2.99"}))
    backup = back_up(lab)
    hand.delete(key)
    h1.start_agent()
    h1.wait_ready()
    assert str(subnet_of(h1)).replace("/", "-") == key
    log = Log(h1)
    backup.restore()
    wait_for("h1 gives way", lambda: bool(log.lines(f"{key} was taken by 192.0.2.99; forwarding stopped")))
    wait_for("h1 has another one", h1.is_ready)
    assert str(subnet_of(h1)).replace("/", "-") != key
    assert "192.0.2.99" in hand.subnets()[key]
