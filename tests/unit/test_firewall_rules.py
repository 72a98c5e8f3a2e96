"""Which rules there are, and how both dialects write them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.host.firewall import iptables, nftables
from flannel_udp.host.firewall.rules import Rule, Rules, Side, Verdict, rules_for
from flannel_udp.model import Prefix

NETWORK, SUBNET = IPv4Network("10.1.0.0/16"), IPv4Network("10.1.15.0/24")
NETWORK6, SUBNET6 = IPv6Network("fd00:1::/48"), IPv6Network("fd00:1:0:15::/64")
EVERYTHING = rules_for(NETWORK, SUBNET, masquerade=True, forward=True, random_fully=True)
EVERYTHING6 = rules_for(NETWORK6, SUBNET6, masquerade=True, forward=True, random_fully=False)

NFT = """\
table ip flannel-ipv4 {
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr 10.1.0.0/16 accept comment "flanneld forward"
		ip daddr 10.1.0.0/16 accept comment "flanneld forward"
	}

	chain postrtg {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return comment "flanneld masq"
		ip saddr 10.1.15.0/24 ip daddr 10.1.0.0/16 return comment "flanneld masq"
		ip saddr 10.1.0.0/16 ip daddr 10.1.15.0/24 return comment "flanneld masq"
		ip saddr != 10.1.0.0/16 ip daddr 10.1.15.0/24 return comment "flanneld masq"
		ip saddr 10.1.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random comment "flanneld masq"
		ip saddr != 10.1.0.0/16 ip daddr 10.1.0.0/16 masquerade fully-random comment "flanneld masq"
	}
}
"""
IPTABLES = """\
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.1.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.1.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.1.15.0/24 -d 10.1.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.1.0.0/16 -d 10.1.15.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.1.0.0/16 -d 10.1.15.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.1.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.1.0.0/16 -d 10.1.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
"""


def test_the_nftables_text() -> None:
    assert nftables.format_table(EVERYTHING) == NFT


def test_the_iptables_text() -> None:
    assert iptables.format_script(EVERYTHING) == IPTABLES


def test_one_transaction_replaces_the_table_whole_whether_it_exists_or_not() -> None:
    script = nftables.format_script(EVERYTHING)
    assert script == f"add table ip flannel-ipv4\ndelete table ip flannel-ipv4\n{NFT}"


def test_without_the_flag_the_source_ports_are_not_random() -> None:
    plain = rules_for(NETWORK, SUBNET, masquerade=True, forward=True, random_fully=False)
    assert nftables.format_table(plain) == NFT.replace(" fully-random", "")
    assert iptables.format_script(plain) == IPTABLES.replace(" --random-fully", "")


def test_a_chain_that_is_not_wanted_is_left_out() -> None:
    only_forward = rules_for(NETWORK, SUBNET, masquerade=False, forward=True, random_fully=True)
    assert iptables.format_script(only_forward) == IPTABLES.partition("*nat")[0]
    assert nftables.format_table(only_forward) == NFT.partition("\n\tchain postrtg")[0] + "}\n"
    only_masquerade = rules_for(NETWORK, SUBNET, masquerade=True, forward=False, random_fully=True)
    assert iptables.format_script(only_masquerade) == "*nat" + IPTABLES.partition("*nat")[2]


def test_nothing_wanted_is_no_text_and_a_transaction_that_removes() -> None:
    nothing = rules_for(NETWORK, SUBNET, masquerade=False, forward=False, random_fully=True)
    assert not nothing
    assert (nftables.format_table(nothing), iptables.format_script(nothing)) == ("", "")
    assert nftables.format_script(nothing) == "add table ip flannel-ipv4\ndelete table ip flannel-ipv4\n"


def test_ipv6_differs_in_its_values_only() -> None:
    def as_ipv6(text: str, family: str) -> str:
        for old, new in (
            ("10.1.15.0/24", str(SUBNET6)),
            ("10.1.0.0/16", str(NETWORK6)),
            ("224.0.0.0/4", "ff00::/8"),
            ("flannel-ipv4", "flannel-ipv6"),
            ("ip ", family),
            (" fully-random", ""),
            (" --random-fully", ""),
        ):
            text = text.replace(old, new)
        return text

    assert nftables.format_table(EVERYTHING6) == as_ipv6(NFT, "ip6 ")
    assert iptables.format_script(EVERYTHING6) == as_ipv6(IPTABLES, "ip ")


def verdict(rules: tuple[Rule, ...], source: IPv4Address, destination: IPv4Address, mark: int) -> Verdict | None:
    """Return what a chain does with a packet: the first rule that matches, as both dialects have it."""

    def matches(side: Side | None, address: IPv4Address) -> bool:
        return side is None or (address in side.network) != side.outside

    for rule in rules:
        if matches(rule.source, source) and matches(rule.destination, destination) and mark & rule.mark == rule.mark:
            return rule.verdict
    return None


@st.composite
def overlays(draw: st.DrawFn) -> tuple[IPv4Network, IPv4Network]:
    network_len = draw(st.integers(8, 28))
    network = IPv4Network((draw(st.integers(0, 223 << 24)) >> (32 - network_len) << (32 - network_len), network_len))
    subnet_len = draw(st.integers(network_len + 2, 30))
    number = draw(st.integers(0, 2 ** (subnet_len - network_len) - 1))
    return network, IPv4Network((int(network.network_address) + number * 2 ** (32 - subnet_len), subnet_len))


@given(overlays(), st.data())
def test_who_is_masqueraded(overlay: tuple[IPv4Network, IPv4Network], data: st.DataObject) -> None:
    network, subnet = overlay
    rules = rules_for(network, subnet, masquerade=True, forward=True, random_fully=True)

    def inside(of: Prefix) -> IPv4Address:
        return IPv4Address(int(of.network_address) + data.draw(st.integers(0, of.num_addresses - 1)))

    anywhere = st.builds(IPv4Address, st.integers(1, 2**32 - 1))
    outside = data.draw(anywhere.filter(lambda address: address not in network and not address.is_multicast))
    pod, overlay_address = inside(subnet), inside(network)
    elsewhere = data.draw(st.just(inside(network)).filter(lambda address: address not in subnet))
    multicast = inside(IPv4Network("224.0.0.0/4"))
    chain = rules.masquerade
    assert verdict(chain, pod, overlay_address, 0) is Verdict.RETURN
    assert verdict(chain, overlay_address, pod, 0) is Verdict.RETURN
    assert verdict(chain, outside, pod, 0) is Verdict.RETURN
    assert verdict(chain, pod, outside, 0) is Verdict.MASQUERADE
    assert verdict(chain, outside, elsewhere, 0) is Verdict.MASQUERADE
    assert verdict(chain, pod, multicast, 0) is None
    assert verdict(chain, outside, outside, 0) is None
    assert verdict(chain, pod, outside, 0x4000 | data.draw(st.integers(0, 0x3FFF))) is Verdict.RETURN
    assert verdict(chain, pod, outside, 0x8000) is Verdict.MASQUERADE
    assert verdict(rules.forward, pod, outside, 0) is verdict(rules.forward, outside, pod, 0) is Verdict.ACCEPT
    assert verdict(rules.forward, outside, outside, 0) is None


@pytest.mark.parametrize("rules", [Rules(4), Rules(6)])
def test_rules_without_a_rule_are_false(rules: Rules) -> None:
    assert not rules
