"""The doctor's judgements: what was asked in, one line out."""

from __future__ import annotations

import json
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.doctor.agent import judge_agent, judge_registry, judge_subnet_file
from flannel_udp.doctor.clock import Ahead, judge_clock
from flannel_udp.doctor.finding import Finding, Verdict, fault, fault_of, note, ok, skipped
from flannel_udp.doctor.firewall import judge_firewall
from flannel_udp.doctor.kernel import judge_bridge_netfilter, judge_datapaths, judge_source_checks
from flannel_udp.doctor.known import Known
from flannel_udp.doctor.machine import ask_port, judge_buffers
from flannel_udp.doctor.managers import judge_connman, judge_network_manager, judge_networkd
from flannel_udp.doctor.show import show
from flannel_udp.files.subnet_env import SubnetEnv
from flannel_udp.host.firewall.passages import IPIP, Opening, RuleSets, outer_passages, pods_passages, udp_opening
from flannel_udp.host.links import Device
from flannel_udp.host.lookup.forwarding import ALL_DEVICES, Settings
from flannel_udp.host.lookup.question import Entry, Way
from flannel_udp.model import Subnet
from flannel_udp.options import Options

OWN, OTHER = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
NETWORK = IPv4Network("10.1.0.0/16")
UDP_8285 = udp_opening(8285)


def judge_port(listings: dict[str, str], document: dict[str, Any], opening: Opening = UDP_8285) -> Finding:
    """Judge outer packets by what `iptables -S` lists, by variant, and by nft's document."""
    rules = RuleSets({(tool, "filter"): listing for tool, listing in listings.items()}, document)
    return judge_firewall("firewall", rules, outer_passages(opening, "eth0", OWN, OTHER, version=4), "well")


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
    ufw = "-P INPUT DROP\n-N ufw-user-input\n-A INPUT -j ufw-user-input"
    assert judge_port({"iptables-nft": ufw}, {}).mend == "ufw allow 8285/udp"


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
    [("-A FORWARD -j FLANNEL-FWD\n-N FLANNEL-FWD\n-A FLANNEL-FWD -s 10.1.0.0/16 -j ACCEPT", False), ("", True)],
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


@pytest.mark.parametrize(
    ("device", "verdict"), [("eth0", Verdict.FAULT), (["eth0"], Verdict.FAULT), ("eth1", Verdict.OK)]
)
def test_a_drop_before_everything_else_concerns_its_own_device(device: Any, verdict: Verdict) -> None:
    document = nft("accept", [match(DPORT, 8285), {"drop": None}], hook="ingress")
    document["nftables"][1]["chain"] |= {"family": "netdev", "dev": device}
    document["nftables"][2]["rule"]["family"] = "netdev"
    assert judge_port({}, document).verdict is verdict


def test_managers_that_are_told_to_leave_our_device_alone() -> None:
    assert judge_network_manager(["[keyfile]\nunmanaged-devices=interface-name:flannel*;mac:0"], "flannel0") is None
    assert judge_network_manager(["[keyfile]\n#unmanaged-devices=interface-name:flannel*"], "flannel0") is not None
    assert judge_connman("[General]\nNetworkInterfaceBlacklist=vmnet,flannel\n", "flannel0") is None
    assert judge_connman("", "flannel0") is not None
    assert judge_networkd("ADMIN_STATE=unmanaged\n", "flannel0") is None
    assert judge_networkd("", "flannel0") is None
    assert judge_networkd("ADMIN_STATE=configured\n", "flannel0") is not None


@pytest.mark.parametrize(
    ("own", "everybodys", "device", "verdict"),
    [
        (1, 0, 7, Verdict.FAULT),
        (0, 1, 7, Verdict.FAULT),
        (2, 1, 7, Verdict.OK),
        (0, 0, 7, Verdict.OK),
        (1, 1, 2, Verdict.OK),
    ],
)
def test_strict_source_checks_matter_where_hosts_are_reached_elsewhere(
    own: int, everybodys: int, device: int, verdict: Verdict
) -> None:
    settings = {ALL_DEVICES: Settings(True, everybodys), 2: Settings(True, own)}
    way = Entry(IPv4Network("192.0.2.0/24"), 254, 1, 2, 0, 0, (Way(device),))
    assert judge_source_checks(settings, "eth0", 2, {IPv4Address("192.0.2.2"): way}).verdict is verdict


@pytest.mark.parametrize(
    ("settings", "used", "told"),
    [
        (
            {7: 1},
            {"direct", "tunnel"},
            ["strict on flannel0: a host whose datapath here is direct and that sends through"],
        ),
        (
            {2: 1},
            {"direct", "tunnel"},
            ["strict on eth0: a host whose datapath here is tunnel and that sends directly"],
        ),
        ({2: 1, 7: 1}, {"direct"}, ["strict on flannel0: a host whose datapath"]),
        ({ALL_DEVICES: 1}, {"direct", "tunnel"}, ["strict on flannel0", "strict on eth0"]),
        ({ALL_DEVICES: 1, 2: 2, 7: 2}, {"direct", "tunnel"}, []),
        ({2: 1, 7: 1}, {""}, []),
    ],
)
def test_strict_source_checks_are_noted_where_a_host_may_send_the_other_way(
    settings: dict[int, int], used: set[str], told: list[str]
) -> None:
    known = {index: Settings(True, settings.get(index, 0)) for index in (ALL_DEVICES, 2, 7)}
    found = list(judge_datapaths(known, device(7, "flannel0"), device(2, "eth0"), used))
    assert len(found) == len(told)
    for item, text in zip(found, told, strict=True):
        assert item.verdict is Verdict.NOTE
        assert item.what.startswith(text)
        assert item.mend == f"sysctl -w net.ipv4.conf.{text.split()[2].rstrip(':')}.rp_filter=2"


def device(index: int, name: str) -> Device:
    return Device(index, name, 1500, True, True, False, True, 0, "", False, 0, "", {})


def test_bridge_netfilter_is_a_fault_only_where_services_need_it() -> None:
    verdicts = [
        judge_bridge_netfilter(text, kubernetes=kube).verdict for text in ("", "0", "1") for kube in (False, True)
    ]
    assert verdicts == [Verdict.OK, Verdict.FAULT, Verdict.OK, Verdict.FAULT, Verdict.OK, Verdict.OK]


def test_a_clock_is_wrong_if_the_registry_has_another_and_only_noted_if_nobody_keeps_it() -> None:
    assert judge_clock(synchronised=True, ahead=Ahead(0.3, "etcd", "lost")).verdict is Verdict.OK
    assert judge_clock(synchronised=False, ahead=None).verdict is Verdict.NOTE
    wrong = judge_clock(synchronised=True, ahead=Ahead(-2 * 86_400.0, "etcd", "lost"))
    assert wrong.verdict is Verdict.FAULT
    assert wrong.what == "the clock of this host is +2.0 days from that of etcd: lost"


def test_small_buffers_are_noted() -> None:
    assert judge_buffers(212_992, "the agent's socket has").verdict is Verdict.NOTE
    assert judge_buffers(4 << 20, "the agent's socket has").verdict is Verdict.OK


def test_an_agents_sentence_is_taken_apart_at_its_advice() -> None:
    found = fault_of("forwarding", "flannel0 does not forward: dropped is all: sysctl -w a=1")
    assert (found.what, found.mend) == ("flannel0 does not forward: dropped is all", "sysctl -w a=1")
    assert fault_of("agent", "waiting for a lease")[2:] == ("waiting for a lease", "")


def status(**given: Any) -> Any:
    base = {"version": "1", "pid": 7, "state": "running", "ready": True, "problems": [], "degraded": []}
    ipv6 = dict.fromkeys(("ipv6_network", "ipv6_subnet", "ipv6_tunnel"))
    return {**base, **ipv6, "network": "10.1.0.0/16", "subnet": "10.1.1.0/24", "tunnel": None, "backend": None, **given}


def test_the_agents_own_words_come_first() -> None:
    assert [item.verdict for item in judge_agent(Known(status=status()))] == [Verdict.OK]
    ill = Known(status=status(problems=["a: b"], degraded=["host"]))
    assert [item.verdict for item in judge_agent(ill)] == [Verdict.OK, Verdict.FAULT]
    assert [item.verdict for item in judge_agent(Known(status=status(ready=False)))] == [Verdict.FAULT]
    (silent,) = judge_agent(Known(silence="flannel-udp is not running: nothing answers"))
    assert silent.mend == "systemctl start flannel-udp"
    denied = Known(silence="permission denied on /run/flannel/flannel-udp.sock: ask as root")
    assert [item.mend for item in judge_agent(denied)] == [""]
    assert ask_port(denied).verdict is Verdict.SKIPPED


def test_a_registry_that_is_away_is_said_once_by_its_own_question() -> None:
    away = Known(status=status(registry="etcd", problems=["the registry is away since 10:00:00: no answer: stay"]))
    assert [item.verdict for item in judge_agent(away)] == [Verdict.OK]
    found = judge_registry(away, Options())
    assert (found.verdict, found.what) == (
        Verdict.FAULT,
        "etcd: the registry is away since 10:00:00: no answer: stay",
    )


def test_a_subnet_file_is_compared_with_the_agent() -> None:
    subnet = Subnet(IPv4Network("10.1.1.0/24"))
    env = SubnetEnv(IPv4Network("10.1.0.0/16"), subnet, 1472, False)
    path = Path("/run/flannel/subnet.env")

    def verdict(**given: Any) -> Verdict:
        return judge_subnet_file(Known(**given), path).verdict

    assert verdict(status=status(), env=env) is Verdict.OK
    assert verdict(env=env) is Verdict.OK
    assert verdict(status=status(subnet="10.1.2.0/24"), env=env) is Verdict.FAULT
    assert verdict(status=status(tunnel={"name": "flannel0", "address": "", "mtu": 1400}), env=env) is Verdict.FAULT
    assert verdict(status=status()) is Verdict.FAULT
    assert verdict(status=status(subnet=None)) is Verdict.SKIPPED
    assert verdict(env_fault="subnet.env lacks FLANNEL_MTU") is Verdict.FAULT


def test_lines_and_rows(capsys: pytest.CaptureFixture[str]) -> None:
    found = [ok("a", "well [sic]"), note("b", "may be"), skipped("c", "unknown"), fault("d", "ill", "mend it")]
    show(found, sys.stdout)
    assert capsys.readouterr().out.splitlines() == [
        "ok    a: well [sic]",
        "note  b: may be",
        "skip  c: not asked: unknown",
        "FAULT d: ill: mend: mend it",
        "1 is wrong",
    ]
    rows = json.loads(json.dumps([item.row() for item in found]))
    assert [row["ok"] for row in rows] == [True, True, True, False]
    assert rows[3] == {"question": "d", "ok": False, "what": "ill", "mend": "mend it"}
    assert isinstance(found[0], Finding)
