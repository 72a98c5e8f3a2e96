"""What the network configuration's Backend says of the tunnel: its MTU and the outer headers' DSCP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import up_with_peers
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.taps import Tap

pytestmark = NEEDS_NETNS

DSCP_EF, DSCP_AF11, ECT_0 = 46, 10, 2
INNER_TOS = DSCP_AF11 << 2 | ECT_0


@contextmanager
def lab_with(backend: dict[str, Any]) -> Iterator[Lab]:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "udp", **backend}}
    with Lab(Plan(fresh_name(), hosts=2, config=config)) as lab:
        yield up_with_peers(lab)


def outer_tos(lab: Lab) -> set[int]:
    """Ping from pod to pod with `INNER_TOS`; return the TOS bytes of the datagrams that carried the requests."""
    h1, h2 = lab.hosts
    pod = h1.pods[0]
    with Tap(h1, "eth0") as tap:
        for _ in range(3):  # each once the last one was answered: what waits together leaves together
            pod.run(["ping", "-c1", "-W20", "-Q", str(INNER_TOS), str(h2.pods[0].ip)])
        sent = [packet for packet in tap.packets() if packet[12:16] == h1.underlay.packed and packet[9] == 17]
    outgoing = [packet for packet in sent if packet[28 + 12 : 28 + 16] == pod.ip.packed]  # agents ask each other, too
    assert len(outgoing) == 3
    assert {packet[28 + 1] for packet in outgoing} == {INNER_TOS}  # the inner header is left alone
    return {packet[1] for packet in outgoing}


@pytest.fixture(scope="module")
def with_options() -> Iterator[Lab]:
    with lab_with({"DSCP": DSCP_EF, "MTU": 1300}) as lab:
        yield lab


def test_a_dscp_of_the_configuration_is_on_every_outer_header(with_options: Lab) -> None:
    assert outer_tos(with_options) == {DSCP_EF << 2 | ECT_0}


def test_an_mtu_of_the_configuration_is_the_tunnels_and_the_pods(with_options: Lab) -> None:
    h1, h2 = with_options.hosts
    (link,) = json.loads(h1.run(["ip", "-json", "link", "show", "dev", "flannel0"]).stdout)
    assert link["mtu"] == 1300
    assert "FLANNEL_MTU=1300\n" in h1.subnet_file.read_text()
    assert h1.control("/v1/status")["tunnel"]["mtu"] == 1300
    whole, too_large = (["ping", "-c1", "-W20", "-Mdo", f"-s{n - 28}", str(h2.pods[0].ip)] for n in (1300, 1301))
    h1.run(whole)
    assert h1.run(too_large, check=False).returncode != 0


@pytest.mark.parametrize(
    ("backend", "outer"), [({}, ECT_0), ({"DSCP": "inherit"}, INNER_TOS)], ids=["default", "inherit"]
)
def test_the_outer_dscp_is_the_inner_packets_only_where_that_is_asked_for(backend: dict[str, Any], outer: int) -> None:
    with lab_with(backend) as lab:
        assert outer_tos(lab) == {outer}


def test_an_mtu_that_just_fits_the_interface_is_taken() -> None:
    config = {"Network": str(OVERLAY), "Backend": {"MTU": 1472}}
    with Lab(Plan(fresh_name(), hosts=1, config=config)) as lab:
        assert lab.hosts[0].control("/v1/status")["tunnel"]["mtu"] == 1472
