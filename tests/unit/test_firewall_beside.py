"""What is told of other people's rules: each fault once, and none is hidden by another."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network

import pytest

from flannel_udp.host.firewall import keeper, passages
from flannel_udp.host.firewall.keeper import Firewall
from flannel_udp.host.firewall.mixture import Mixture
from flannel_udp.host.firewall.owner import Owner
from flannel_udp.host.firewall.passages import Passage, RuleSets, find_closed, outer_passages, udp_opening
from flannel_udp.host.firewall.tool import LockHeld
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


async def test_rules_behind_a_lock_are_not_taken_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read_rules(_version: int) -> RuleSets:
        return RuleSets(locked="iptables-legacy: another program holds the xtables lock")

    monkeypatch.setattr(passages, "read_rules", read_rules)
    asked = outer_passages(udp_opening(8285), "eth0", None, None, version=4, overlay=None)
    with pytest.raises(LockHeld, match="another program holds the xtables lock"):
        await find_closed([asked])
