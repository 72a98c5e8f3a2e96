"""What is told of other people's rules: each fault once, and none is hidden by another."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network

import pytest

from flannel_udp.host.firewall import keeper
from flannel_udp.host.firewall.keeper import Firewall
from flannel_udp.host.firewall.mixture import Mixture
from flannel_udp.host.firewall.owner import Owner
from flannel_udp.host.firewall.passages import Passage
from flannel_udp.model import Degradation

LOST = "this host's own firewall drops what other hosts send to our pods"
LEFT_OVER = Degradation("firewall", "iptables-legacy has rules of flannel's, too (FLANNEL-POSTRTG)")
POLICY = Degradation("firewall", "the policy of FORWARD in iptables-legacy is to drop")


async def beside(mixture: Mixture, closed: Degradation, monkeypatch: pytest.MonkeyPatch) -> list[Degradation]:
    """Return what is told where the mixture is that, and a passage is closed."""

    async def no_passages() -> list[Sequence[Passage]]:
        return []

    async def find_mixture(_network: IPv4Network, *, nftables: bool) -> Mixture:
        assert not nftables
        return mixture

    async def find_closed(_questions: Sequence[Sequence[Passage]]) -> list[Degradation]:
        return [closed]

    monkeypatch.setattr(keeper, "find_mixture", find_mixture)
    monkeypatch.setattr(keeper, "find_closed", find_closed)
    owner = Owner(IPv4Network("10.1.0.0/16"))
    firewall = Firewall(owner, lambda *_, **__: None, no_passages, nftables=False, resync_s=600)
    return await firewall.find_beside()


@pytest.mark.parametrize(
    "closed",
    [
        "iptables-nft: the policy of FORWARD",
        "iptables-legacy -t mangle: the policy of FORWARD",
        "nftables: table own: the policy of FORWARD",
        "iptables-legacy: -A FORWARD -i eth0 -j DROP",
    ],
)
async def test_what_closes_is_told_beside_all_that_the_mixture_has(
    closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Degradation("firewall", f"{LOST}: {closed}: a command")
    assert await beside(Mixture([LEFT_OVER]), one, monkeypatch) == [LEFT_OVER, one]
    assert await beside(Mixture([POLICY], ["iptables-legacy"]), one, monkeypatch) == [POLICY, one]


async def test_a_policy_that_the_mixture_names_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Degradation("firewall", f"{LOST}: iptables-legacy: the policy of FORWARD: a command")
    assert await beside(Mixture([POLICY, LEFT_OVER], ["iptables-legacy"]), one, monkeypatch) == [POLICY, LEFT_OVER]
    assert await beside(Mixture([LEFT_OVER]), one, monkeypatch) == [LEFT_OVER, one]
