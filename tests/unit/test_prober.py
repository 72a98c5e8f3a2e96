"""Whether a peer that answers is reached with pods' addresses, too, as far as echoes tell."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from types import SimpleNamespace
from typing import cast

import pytest

from flannel_udp.agent.prober import Prober
from flannel_udp.backend.protocol import EchoRoute, Network
from flannel_udp.host.echo import EchoAnswer, Echoes
from flannel_udp.model import Address, Peer

PEER = Peer(IPv4Network("10.1.2.0/24"), IPv4Address("192.0.2.2"))
OURS = IPv4Address("10.1.1.1")
ROUTE = EchoRoute((PEER.public_ip,), pods=EchoRoute((PEER.subnet[0], PEER.subnet[1]), OURS))


class PodsRefused:
    """Stands for `Echoes`: the public IP answers, and what goes to pods our kernel refuses, by the source."""

    def __init__(self, by_source: dict[Address | None, int]) -> None:
        self._by_source = by_source

    async def ask(
        self,
        target: Address,
        source: Address | None,
        _n_bytes: int,
        _timeout_s: float,
        _sent: Callable[[], object],
        **_: object,
    ) -> EchoAnswer:
        if target == PEER.public_ip:
            return EchoAnswer(round_trip_s=0.001)
        return EchoAnswer(refused=f"our kernel: {os.strerror(self._by_source[source]).lower()}")


@pytest.mark.parametrize(
    ("ours", "any_of_ours", "lost"),
    [
        (errno.ENOKEY, errno.ENOKEY, True),
        (errno.EINVAL, errno.ENOKEY, True),  # no pods yet, so that our address of theirs is not there
        (errno.EINVAL, errno.EINVAL, False),
        (errno.ENETUNREACH, errno.ENETUNREACH, False),  # no route now: that is told elsewhere
        (errno.EPERM, errno.EPERM, False),  # our own firewall's OUTPUT, which pods do not pass
    ],
)
async def test_a_link_that_has_no_key_for_pods_addresses_carries_none_of_theirs(
    ours: int, any_of_ours: int, lost: bool
) -> None:
    echoes = PodsRefused({OURS: ours, None: any_of_ours})
    network = SimpleNamespace(echo_route=lambda _peer: ROUTE)
    prober = Prober(cast("Network", network), cast("Echoes", echoes), lambda _public_ip: None)
    answer = (await prober.ask(PEER)).answer
    assert (answer.answered, answer.link_only) == (True, lost)
