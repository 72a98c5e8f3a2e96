"""What the doctor says of rules of a firewall: those that drop, those that do not, and those that nobody can judge."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from flannel_udp.doctor.finding import Finding, Verdict
from flannel_udp.doctor.firewall import judge_firewall
from flannel_udp.host.firewall.passages import (
    IPIP,
    Opening,
    RuleSets,
    bridge_passages,
    outer_passages,
    pods_passages,
    udp_opening,
)

OWN, OTHER = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
NETWORK = IPv4Network("10.1.0.0/16")
UDP_8285 = udp_opening(8285)


def judge_port(listings: dict[str, str], document: dict[str, Any], opening: Opening = UDP_8285) -> Finding:
    """Judge outer packets by what `iptables -S` lists, by variant, and by nft's document."""
    rules = RuleSets({(tool, "filter"): listing for tool, listing in listings.items()}, document)
    return judge_firewall(
        "firewall", rules, outer_passages(opening, "eth0", OWN, OTHER, version=4, overlay=NETWORK), "well"
    )


def judge_forward(listings: dict[tuple[str, str], str], document: dict[str, Any]) -> Finding:
    passages = pods_passages("flannel0", NETWORK, IPv4Address("10.1.2.2"), [IPv4Address("10.1.1.2")])
    return judge_firewall("firewall for pods", RuleSets(listings, document), passages, "well")


def drops_port(rules: str, policy: str = "DROP") -> bool:
    listing = "\n".join([f"-P INPUT {policy}", *(line.strip() for line in rules.strip().splitlines())])
    return judge_port({"iptables-nft": listing}, {}).verdict is Verdict.FAULT


@pytest.mark.parametrize(
    "rules",
    [
        "",
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -p udp -m udp --dport 8284 -j ACCEPT",
        "-A INPUT -p tcp -m tcp --dport 8285 -j ACCEPT",
        "-A INPUT -p udp -m multiport --dports 53,80:90 -j ACCEPT",
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A INPUT -s 198.51.100.0/24 -j ACCEPT",
        "-A INPUT ! -i eth0 -j ACCEPT",
        "-N own\n-A INPUT -j own\n-A own -p icmp -j ACCEPT\n-A own -j RETURN\n-A own -j ACCEPT",
        '-A INPUT -j LOG --log-prefix "x -j ACCEPT"',
        "-A INPUT -p udp -m udp --dport 8285 -j DROP\n-A INPUT -j ACCEPT",
        "-N own\n-A INPUT -g own\n-A INPUT -j ACCEPT",
        "-N own\n-A INPUT -j own\n-A own -j INPUT\n-A own -m mark --mark 0x1 -j DROP",
    ],
)
def test_rules_that_close_the_port(rules: str) -> None:
    assert drops_port(rules)


@pytest.mark.parametrize(
    "rules",
    [
        "-A INPUT -j ACCEPT",
        "-A INPUT -p udp -m udp --dport 8000:9000 -j ACCEPT",
        "-A INPUT -p udp -m multiport --dports 53,8285 -j ACCEPT",
        "-A INPUT -p 17 -j ACCEPT",
        '-A INPUT -s 192.0.2.0/24 -i eth+ -m comment --comment "the others" -j ACCEPT',
        "-A INPUT -m set --match-set friends src -j ACCEPT",
        "-N own\n-A INPUT -j own\n-A own ! -s 198.51.100.0/24 -j ACCEPT",
        "-A INPUT -m conntrack --ctstate NEW -j ACCEPT",
        "-N own\n-A INPUT -j own\n-A own -m addrtype --dst-type LOCAL -j RETURN\n-A own -j DROP\n-A INPUT -j ACCEPT",
    ],
)
def test_rules_that_let_the_port_in_or_may(rules: str) -> None:
    assert not drops_port(rules)


def test_a_rejection_under_an_accepting_policy_is_named_with_what_mends_it() -> None:
    found = judge_port({"iptables-legacy": "-P INPUT ACCEPT\n-A INPUT -i eth0 -j REJECT"}, {})
    assert found.what.endswith(": iptables-legacy: -A INPUT -i eth0 -j REJECT")
    assert found.mend == "iptables-legacy -I INPUT -p udp --dport 8285 -j ACCEPT"


def nft(policy: str, *expressions: list[dict[str, Any]], hook: str = "input", table: str = "own") -> dict[str, Any]:
    chain: dict[str, Any] = {"family": "inet", "table": table, "name": "base", "type": "filter", "hook": hook}
    chain |= {"prio": 0, "policy": policy}
    rules = [
        {"rule": {"family": "inet", "table": table, "chain": "base", "handle": handle, "expr": expression}}
        for handle, expression in enumerate(expressions, start=2)
    ]
    return {"nftables": [{"metainfo": {}}, {"chain": chain}, *rules]}


def match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


DPORT = {"payload": {"protocol": "udp", "field": "dport"}}
ACCEPT: dict[str, Any] = {"accept": None}
FIREWALLD = nft("drop", table="firewalld")
BY_IPTABLES = "\n".join(
    f"-P {chain} ACCEPT\n-N {chain}_ZONES\n-A {chain} -j {chain}_ZONES\n-A {chain} -j REJECT"
    for chain in ("INPUT", "FORWARD")
)
"""firewalld's rules with FirewallBackend=iptables."""


@pytest.mark.parametrize(
    ("document", "closed"),
    [
        (nft("drop"), True),
        (nft("accept"), False),
        (nft("drop", [match(DPORT, 8285), ACCEPT]), False),
        (nft("drop", [match(DPORT, {"set": [53, {"range": [8000, 9000]}]}), ACCEPT]), False),
        (nft("drop", [match(DPORT, {"set": [53, {"range": [9000, 9001]}]}), ACCEPT]), True),
        (nft("drop", [match({"ct": {"key": "state"}}, ["established", "related"], "in"), ACCEPT]), True),
        (nft("drop", [match({"meta": {"key": "iifname"}}, "lo"), ACCEPT]), True),
        (nft("drop", [match({"meta": {"key": "iifname"}}, "lo", "!="), {"counter": {}}, ACCEPT]), False),
        (nft("drop", [match({"payload": {"protocol": "ip", "field": "saddr"}}, "@friends"), ACCEPT]), False),
        (nft("accept", [match(DPORT, 8285), {"reject": None}]), True),
        (nft("drop", [{"vmap": {"key": DPORT, "data": "@ports"}}]), False),
        (nft("drop", [{"vmap": {"key": DPORT, "data": {"set": []}}}]), True),
        (nft("drop", [{"vmap": {"key": DPORT, "data": {"set": [[53, ACCEPT], [8285, ACCEPT]]}}}]), False),
        (nft("drop", [{"vmap": {"key": DPORT, "data": {"set": [[53, ACCEPT]]}}}]), True),
        (nft("accept", [{"vmap": {"key": DPORT, "data": {"set": [[8285, {"drop": None}]]}}}]), True),
        (nft("accept", [match(DPORT, 8285), {"drop": None}], hook="prerouting"), True),
        (nft("accept", [match(DPORT, 8285), {"drop": None}], hook="output"), True),
        (nft("drop", [match({"payload": {"protocol": "tcp", "field": "dport"}}, 22, "!="), ACCEPT]), True),
        (nft("drop", [match({"payload": {"protocol": "ip6", "field": "saddr"}}, "fe80::1", "!="), ACCEPT]), True),
        (nft("drop", [match({"&": [{"meta": {"key": "mark"}}, 255]}, 7), ACCEPT]), False),
        (nft("drop", hook="output"), True),
        (nft("drop", hook="forward"), False),
    ],
)
def test_what_nft_lists(document: dict[str, Any], closed: bool) -> None:
    assert (judge_port({}, document).verdict is Verdict.FAULT) is closed


def test_firewalld_and_ufw_are_mended_by_their_own_commands() -> None:
    assert judge_port({}, FIREWALLD).mend.startswith("firewall-cmd --permanent --add-port=8285/udp")
    assert judge_port({"iptables-nft": BY_IPTABLES}, {}).mend == judge_port({}, FIREWALLD).mend
    ufw = "-P INPUT DROP\n-N ufw-user-input\n-A INPUT -j ufw-user-input"
    assert judge_port({"iptables-nft": ufw}, {}).mend == "ufw allow 8285/udp"


def test_firewalld_which_takes_no_rule_of_others_trusts_the_pods_network() -> None:
    trust = "firewall-cmd --permanent --zone=trusted --add-source=10.1.0.0/16 && firewall-cmd --reload"
    assert judge_forward({}, nft("drop", hook="forward", table="firewalld")).mend == trust
    assert judge_forward({("iptables-nft", "filter"): BY_IPTABLES}, {}).mend == trust


def test_firewalld_lets_out_by_the_policy_that_drops() -> None:
    add = "firewall-cmd --permanent --policy=NAME --add-port=8285/udp && firewall-cmd --reload"
    assert judge_port({}, nft("drop", hook="output", table="firewalld")).mend == add


@pytest.mark.parametrize(
    ("source", "verdict"),
    [("10.1.0.0/16", Verdict.FAULT), ("10.1.7.0/24", Verdict.FAULT), ("10.0.0.0/8", Verdict.NOTE)],
)
def test_who_trusts_the_pods_network_has_not_let_in_the_hosts(source: str, verdict: Verdict) -> None:
    passages = outer_passages(UDP_8285, "eth0", OWN, None, version=4, overlay=NETWORK)
    listing = f"-P INPUT DROP\n-A INPUT -s {source} -j ACCEPT"
    found = judge_firewall("firewall", RuleSets({("iptables-nft", "filter"): listing}), passages, "well")
    assert found.verdict is verdict


# IP in IP has no port


@pytest.mark.parametrize(
    ("rules", "closed"),
    [
        ("", True),
        ("-A INPUT -p udp -m udp --dport 8285 -j ACCEPT", True),
        ("-A INPUT -p tcp -j ACCEPT", True),
        ("-A INPUT -p ipencap -j ACCEPT", False),
        ("-A INPUT -p 4 -j ACCEPT", False),
        ("-A INPUT -i eth0 -j ACCEPT", False),
    ],
)
def test_whether_ipip_comes_in(rules: str, closed: bool) -> None:
    found = judge_port({"iptables-nft": f"-P INPUT DROP\n{rules}"}, {}, IPIP)
    assert (found.verdict is Verdict.FAULT) is closed
    if closed:
        assert found.what.startswith("this host's own firewall drops IP protocol 4 (IPIP)")
        assert found.mend == "iptables-nft -I INPUT -p 4 -j ACCEPT"


@pytest.mark.parametrize("name", ["ipencap", "ipv4", 4])
def test_nft_may_call_ipip_by_any_of_its_names(name: Any) -> None:
    rule = [match({"meta": {"key": "l4proto"}}, name), ACCEPT]
    assert judge_port({}, nft("drop", rule), IPIP).verdict is not Verdict.FAULT
    assert judge_port({}, nft("drop", rule)).verdict is Verdict.FAULT


def test_every_firewall_lets_ipip_in_by_its_own_command() -> None:
    assert judge_port({}, FIREWALLD, IPIP).mend.startswith("firewall-cmd --permanent --add-protocol=4 ")
    assert judge_port({}, nft("drop"), IPIP).mend == "nft insert rule inet own base meta l4proto 4 accept"
    ufw = "-P INPUT DROP\n-N ufw-user-input\n-A INPUT -j ufw-user-input"
    assert "/etc/ufw/before.rules" in judge_port({"iptables-nft": ufw}, {}, IPIP).mend


@pytest.mark.parametrize(
    ("rules", "closed"),
    [("-N FLANNEL-FWD\n-A FORWARD -j FLANNEL-FWD\n-A FLANNEL-FWD -s 10.1.0.0/16 -j ACCEPT", False), ("", True)],
)
def test_a_dropping_forward_policy_with_and_without_our_rules(rules: str, closed: bool) -> None:
    found = judge_forward({("iptables-nft", "filter"): f"-P FORWARD DROP\n{rules}"}, {})
    assert (found.verdict is Verdict.FAULT) is closed


@pytest.mark.parametrize(
    ("rules", "policy", "doubt"),
    [
        ("-A FORWARD -m mark --mark 0x1 -j DROP", "ACCEPT", "-A FORWARD -m mark --mark 0x1 -j DROP"),
        ("-A FORWARD -p udp -m udp --sport 53 -j REJECT", "ACCEPT", "-A FORWARD -p udp -m udp --sport 53 -j REJECT"),
        ("-A FORWARD -m set --match-set friends src -j ACCEPT", "DROP", "the policy of FORWARD"),
    ],
)
def test_what_cannot_be_judged_is_named_and_no_fault(rules: str, policy: str, doubt: str) -> None:
    found = judge_forward({("iptables-nft", "filter"): f"-P FORWARD {policy}\n{rules}"}, {})
    assert found.verdict is Verdict.NOTE
    assert found.what == f"well for sure, but what these do cannot be told from here: iptables-nft: {doubt}"


@pytest.mark.parametrize("policy", ["ACCEPT", "DROP"])
@pytest.mark.parametrize(
    "target",
    [
        "NFQUEUE --queue-num 0 --queue-bypass",
        "QUEUE",
        "SYNPROXY --sack-perm",
        "TPROXY --on-port 1 --on-ip 0.0.0.0 --tproxy-mark 0x1/0x1",
        "TARPIT",  # which nobody here knows
    ],
)
def test_a_target_that_lets_pass_or_drops_as_it_likes_is_a_doubt(target: str, policy: str) -> None:
    rule = f"-A INPUT -i eth0 -j {target}"
    found = judge_port({"iptables-nft": f"-P INPUT {policy}\n{rule}"}, {})
    assert found.verdict is Verdict.NOTE
    assert f"iptables-nft: {rule}" in found.what
    elsewhere = judge_port({"iptables-nft": f"-P INPUT {policy}\n-A INPUT -i eth1 -j {target}"}, {})
    assert elsewhere.verdict is (Verdict.OK if policy == "ACCEPT" else Verdict.FAULT)


@pytest.mark.parametrize(
    "target", ["CHECKSUM --checksum-fill", "TEE --gateway 192.0.2.9", "CT --notrack", "TRACE", "HL"]
)
def test_a_target_that_only_does_something_on_the_way_is_no_word(target: str) -> None:
    listing = "-P INPUT {}\n-A INPUT -j " + target
    assert judge_port({"iptables-nft": listing.format("ACCEPT")}, {}).verdict is Verdict.OK
    assert judge_port({"iptables-nft": listing.format("DROP")}, {}).verdict is Verdict.FAULT


@pytest.mark.parametrize("match", ["socket", "rpfilter", "eui64"])
def test_a_match_that_needs_no_option_is_a_condition(match: str) -> None:
    listing = f"-P INPUT ACCEPT\n-A INPUT -m {match} -j DROP"
    assert judge_port({"iptables-nft": listing}, {}).verdict is Verdict.NOTE


LIMIT = {"limit": {"rate": 5, "burst": 5, "per": "second", "inv": True}}
ELEMENT = {"op": "update", "elem": {"payload": {"protocol": "ip", "field": "saddr"}}, "set": "@met"}


@pytest.mark.parametrize(
    ("expression", "verdict"),
    [
        ([{"queue": {"num": 0, "flags": "bypass"}}], Verdict.NOTE),
        ([{"fwd": {"dev": "eth1"}}], Verdict.NOTE),
        ([{"synproxy": {"mss": 1460}}], Verdict.NOTE),
        ([{"ct count": {"val": 20, "inv": True}}, {"drop": None}], Verdict.NOTE),
        ([{"quota": {"val": 20, "val_unit": "mbytes", "inv": True}}, {"drop": None}], Verdict.NOTE),
        ([{"set": {**ELEMENT, "stmt": [LIMIT]}}, {"drop": None}], Verdict.NOTE),
        ([{"tproxy": {"port": 5000}}, {"drop": None}], Verdict.NOTE),
        ([{"of a later nft": {}}, {"drop": None}], Verdict.NOTE),
        ([{"set": ELEMENT}, {"drop": None}], Verdict.FAULT),
        ([{"log": {"prefix": "a"}}, {"counter": {}}, {"drop": None}], Verdict.FAULT),
        ([{"mangle": {"key": {"meta": {"key": "mark"}}, "value": 3}}, {"notrack": None}], Verdict.OK),
    ],
)
def test_statements_of_nft_that_are_conditions_or_ends(expression: list[dict[str, Any]], verdict: Verdict) -> None:
    assert judge_port({}, nft("accept", expression)).verdict is verdict


def test_many_rules_that_cannot_be_judged_are_some_and_a_count() -> None:
    rules = "\n".join(f"-A FORWARD -m mark --mark {n} -j DROP" for n in range(9))
    assert judge_forward({("iptables-nft", "filter"): f"-P FORWARD ACCEPT\n{rules}"}, {}).what.endswith("; and 6 more")


def test_a_drop_in_another_table_than_filter_is_named_with_what_mends_it() -> None:
    found = judge_forward({("iptables-legacy", "mangle"): "-P FORWARD ACCEPT\n-A FORWARD -o cni0 -j DROP"}, {})
    assert found.what.endswith("send to our pods: iptables-legacy -t mangle: -A FORWARD -o cni0 -j DROP")
    assert found.mend == (
        "iptables-legacy -t mangle -I FORWARD -s 10.1.0.0/16 -j ACCEPT && "
        "iptables-legacy -t mangle -I FORWARD -d 10.1.0.0/16 -j ACCEPT"
    )


@pytest.mark.parametrize(
    ("hook", "rule", "lost"),
    [
        ("forward", [match({"meta": {"key": "iifname"}}, "cni0"), {"drop": None}], "what our pods send to other hosts"),
        ("forward", [match({"meta": {"key": "oifname"}}, "cni0"), {"drop": None}], "what other hosts send to our pods"),
        ("prerouting", [match({"meta": {"key": "iifname"}}, "flannel*"), {"drop": None}], "what other hosts send"),
        ("postrouting", [match({"meta": {"key": "oifname"}}, "flannel0"), {"drop": None}], "what our pods send"),
    ],
)
def test_a_drop_of_either_direction_at_any_hook_is_named(hook: str, rule: list[dict[str, Any]], lost: str) -> None:
    found = judge_forward({}, nft("accept", rule, hook=hook))
    assert found.verdict is Verdict.FAULT
    assert found.what.startswith(f"this host's own firewall drops {lost}")


def test_a_chain_named_as_iptables_chains_in_a_table_of_somebodys_own_is_judged() -> None:
    document = nft("drop", hook="forward")
    document["nftables"][1]["chain"] |= {"name": "FORWARD", "table": "mine"}
    assert judge_forward({}, document).verdict is Verdict.FAULT
    document["nftables"][1]["chain"] |= {"family": "ip", "table": "filter"}  # that one iptables-nft lists
    assert judge_forward({}, document).verdict is Verdict.OK
    document["nftables"][1]["chain"] |= {"prio": -10}  # and that it does not
    assert judge_forward({}, document).verdict is Verdict.FAULT


def judge_bridge(policy: str, *expressions: list[dict[str, Any]], hook: str) -> Finding:
    document = nft(policy, *expressions, hook=hook)
    for item in document["nftables"][1:]:
        next(iter(item.values()))["family"] = "bridge"
    passages = bridge_passages("cni0", NETWORK, IPv4Address("10.1.2.2"), IPv4Address("10.1.1.2"))
    assert judge_forward({}, document).verdict is Verdict.OK
    return judge_firewall("firewall for pods", RuleSets({}, document), passages, "well")


ARP, IP = (match({"payload": {"protocol": "ether", "field": "type"}}, name) for name in ("arp", "ip"))
OPERATION, MAC = (
    {"payload": {"protocol": name, "field": field}} for name, field in (("arp", "operation"), ("ether", "saddr"))
)
DROP: dict[str, Any] = {"drop": None}


@pytest.mark.parametrize(
    ("hook", "lost"),
    [
        ("prerouting", "what our pods send to other hosts"),
        ("input", "what our pods send to other hosts"),
        ("output", "what other hosts send to our pods"),
        ("postrouting", "what other hosts send to our pods"),
    ],
)
def test_a_drop_on_the_pods_bridge_is_named_with_what_mends_it(hook: str, lost: str) -> None:
    found = judge_bridge("drop", [ARP, ACCEPT], hook=hook)
    assert found.what == f"this host's own firewall drops {lost}: nftables: table own: the policy of base"
    insert = "nft insert rule bridge own base"
    rules = "ether type arp", "ip saddr 10.1.0.0/16", "ip daddr 10.1.0.0/16"
    assert found.mend == " && ".join(f"{insert} {rule} accept" for rule in rules)


@pytest.mark.parametrize(
    ("expressions", "policy", "hook", "verdict"),
    [
        ([[IP, ACCEPT]], "drop", "input", Verdict.OK),
        ([], "drop", "forward", Verdict.OK),  # from pod to pod
        ([[match({"meta": {"key": "ibrname"}}, "docker0"), DROP]], "accept", "input", Verdict.OK),
        ([[match({"meta": {"key": "ibrname"}}, "cni0"), DROP]], "accept", "input", Verdict.FAULT),
        ([[match({"meta": {"key": "obrname"}}, "cni0"), DROP]], "accept", "output", Verdict.FAULT),
        (
            [[match({"payload": {"protocol": "arp", "field": "operation"}}, "request"), DROP]],
            "accept",
            "input",
            Verdict.OK,
        ),
        ([[match({"meta": {"key": "iifname"}}, "veth0"), DROP]], "accept", "input", Verdict.NOTE),
        (
            [[match({"payload": {"protocol": "ether", "field": "saddr"}}, "0a:00:00:00:00:09"), DROP]],
            "accept",
            "input",
            Verdict.NOTE,
        ),
    ],
)
def test_what_is_told_of_the_rules_of_a_bridge(
    expressions: list[list[dict[str, Any]]], policy: str, hook: str, verdict: Verdict
) -> None:
    assert judge_bridge(policy, *expressions, hook=hook).verdict is verdict


@pytest.mark.parametrize("family", ["netdev", "inet"])
@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        ({"dev": "eth0"}, Verdict.FAULT),
        ({"dev": ["eth1", "eth0"]}, Verdict.FAULT),
        ({"dev": ["eth*"]}, Verdict.FAULT),
        ({"dev": "eth1"}, Verdict.OK),
        ({"dev": []}, Verdict.OK),
        ({}, Verdict.NOTE),  # as nft 1.0.6 has it
    ],
)
@pytest.mark.parametrize("hook", ["ingress", "egress"])
def test_a_drop_before_or_after_everything_else_concerns_its_own_device(
    told: dict[str, Any], verdict: Verdict, family: str, hook: str
) -> None:
    document = nft("accept", [match(DPORT, 8285), {"drop": None}], hook=hook)
    document["nftables"][1]["chain"] |= {"family": family, **told}
    document["nftables"][2]["rule"]["family"] = family
    found = judge_port({}, document)
    assert found.verdict is verdict
    if verdict is Verdict.NOTE:
        assert found.what.endswith("from here: nftables: table own: a rule of chain base (handle 2)")


def test_rules_behind_a_lock_that_another_program_holds_are_a_note_that_says_so() -> None:
    held = "iptables-legacy: another program holds the xtables lock for more than 5 s"
    passages = outer_passages(UDP_8285, "eth0", OWN, OTHER, version=4, overlay=NETWORK)
    found = judge_firewall("firewall", RuleSets(locked=held), passages, "well")
    assert (found.verdict, found.what.endswith(f"cannot be told from here: {held}")) == (Verdict.NOTE, True)
