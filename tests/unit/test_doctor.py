"""The doctor's judgements: what was asked in, one line out."""

from __future__ import annotations

import json
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.doctor import managers
from flannel_udp.doctor.agent import judge_agent, judge_registry, judge_subnet_file
from flannel_udp.doctor.clock import Ahead, judge_clock
from flannel_udp.doctor.container import is_contained
from flannel_udp.doctor.finding import Finding, Verdict, fault, fault_of, note, ok, skipped
from flannel_udp.doctor.kernel import judge_bridge_netfilter, judge_datapaths, judge_source_checks
from flannel_udp.doctor.known import Known
from flannel_udp.doctor.machine import ask_port, judge_buffers
from flannel_udp.doctor.managers import ask_managers, judge_connman, judge_network_manager, judge_networkd
from flannel_udp.doctor.network_manager import configuration_files
from flannel_udp.doctor.show import show
from flannel_udp.files.subnet_env import SubnetEnv
from flannel_udp.host.links import Device
from flannel_udp.host.lookup.forwarding import ALL_DEVICES, Settings
from flannel_udp.host.lookup.question import Entry, Way
from flannel_udp.model import Subnet
from flannel_udp.options import Options


def test_managers_that_are_told_to_leave_our_device_alone() -> None:
    assert judge_connman("[General]\nNetworkInterfaceBlacklist=vmnet,flannel\n", "flannel0") is None
    assert judge_connman("", "flannel0") is not None
    assert judge_connman("[General]\nNetworkInterfaceBlacklist=flannel.1\n", "flannel0") is not None
    assert judge_networkd("ADMIN_STATE=unmanaged\n", "flannel0") is None
    assert judge_networkd("", "flannel0") is None
    assert judge_networkd("ADMIN_STATE=configured\n", "flannel0") is not None


def test_in_a_container_the_hosts_managers_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managers, "_in_first_namespace", lambda: True)
    monkeypatch.setattr(managers, "is_contained", lambda: True)
    (found,) = ask_managers(Known())
    assert found.verdict is Verdict.SKIPPED
    assert "inside this container" in found.what


@pytest.mark.parametrize(
    ("namespace", "first", "contained"),
    [
        ("pid:[4026531836]", "systemd", False),
        ("pid:[4026531836]", "anything", False),  # of a host, whatever its init is
        ("pid:[4026532383]", "flannel-udp", True),
        ("pid:[4026532383]", "pause", True),
        ("pid:[4026532383]", "Ueberwachungs-\udcc3", True),  # a name that is cut in the middle of a letter
        ("pid:[4026532383]", "systemd", False),  # LXC, kind
        (None, "init", False),
    ],
)
def test_a_container_is_known_by_its_processes(
    tmp_path: Path, namespace: str | None, first: str, contained: bool
) -> None:
    for folder in ("self/ns", "1"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "1/comm").write_text(f"{first}\n", errors="surrogateescape")
    if namespace is not None:
        (tmp_path / "self/ns/pid").symlink_to(namespace)
    assert is_contained(tmp_path) is contained


UBUNTU = "[keyfile]\nunmanaged-devices=*,except:type:wifi,except:type:gsm,except:type:cdma\n"
OURS = "[keyfile]\nunmanaged-devices=interface-name:flannel*;interface-name:cni*;interface-name:veth*\n"


@pytest.mark.parametrize(
    ("texts", "verdict"),
    [
        ([], Verdict.FAULT),
        ([OURS], None),
        ([UBUNTU], None),
        ([OURS, "[keyfile]\nunmanaged-devices=interface-name:eth1\n"], Verdict.FAULT),  # the later file counts
        ([OURS, "[keyfile]\nunmanaged-devices+=interface-name:eth1\n"], None),
        ([OURS, "[keyfile]\nunmanaged-devices-=interface-name:flannel*\n"], Verdict.FAULT),
        ([OURS.replace("unmanaged", "#unmanaged")], Verdict.FAULT),
        ([OURS.replace("keyfile", "main")], Verdict.FAULT),
        (["[keyfile]\nunmanaged-devices = type:tun , mac:0\n"], None),
        (["[keyfile]\nunmanaged-devices=type:vxlan;driver:vxlan\n"], Verdict.FAULT),
        (["[keyfile]\nunmanaged-devices=flannel0\n"], None),
        (["[keyfile]\nunmanaged-devices=flannel*\n"], Verdict.FAULT),  # a plain name is no pattern
        (["[keyfile]\nunmanaged-devices=interface-name:=flannel*\n"], Verdict.FAULT),
        (["[keyfile]\nunmanaged-devices=interface-name:~flannel?\n"], None),
        (["[keyfile]\nunmanaged-devices=interface-name:flannel[0]\n"], Verdict.FAULT),
        (["[keyfile]\nunmanaged-devices=interface-name:flannel.1\n"], Verdict.FAULT),
        (["[keyfile]\nunmanaged-devices=except:interface-name:flannel*\n"], Verdict.FAULT),
        (["[keyfile]\nunmanaged-devices=except:interface-name:eth0\n"], None),
        (["[keyfile]\nunmanaged-devices=dhcp-plugin:internal\n"], Verdict.NOTE),
        (["[device-x]\nmatch-device=interface-name:flannel*\nmanaged=0\n"], None),
        (["[device-x]\nmatch-device=interface-name:eth*\nmanaged=0\n"], Verdict.FAULT),
        (["[device]\nmanaged=false\n", "[device-x]\nmatch-device=type:tun\nmanaged=true\n"], Verdict.FAULT),
        (["[device-x]\nmatch-device=type:tun\nmanaged=yes\n", "[device]\nmanaged=no\n"], Verdict.FAULT),
        (["[device]\nmanaged=1\n[device-f]\nmatch-device=interface-name:flannel*\nmanaged=0\n"], None),
        (["[device-f]\nmatch-device=type:tun\nmanaged=0\n", "[device]\nmanaged=1\n"], None),
        (["[device-f]\nmatch-device=type:tun\n", "[device-f]\nmanaged=0\n"], None),  # one of a name is one
        ([OURS, "[device]\nmanaged=1\n"], None),  # what is unmanaged that way stays so
    ],
)
def test_network_managers_files_are_read_as_it_reads_them(texts: list[str], verdict: Verdict | None) -> None:
    found = judge_network_manager(texts, "flannel0", "tun")
    assert (None if found is None else found.verdict) is verdict


def test_what_depends_on_an_unknown_type_is_a_note() -> None:
    found = judge_network_manager(["[keyfile]\nunmanaged-devices=type:tun"], "flannel.1", "")
    assert found is not None
    assert found.verdict is Verdict.NOTE
    assert judge_network_manager([UBUNTU], "flannel.1", "vxlan") is None


def test_a_file_of_network_managers_hides_those_of_its_name_in_folders_before(tmp_path: Path) -> None:
    kept = [
        "usr/lib/NetworkManager/conf.d/50.conf",
        "run/NetworkManager/conf.d/20.conf",
        "etc/NetworkManager/NetworkManager.conf",
        "etc/NetworkManager/conf.d/10.conf",
        "etc/NetworkManager/conf.d/30.conf",
        "var/lib/NetworkManager/NetworkManager-intern.conf",
    ]
    for name in (
        *kept,
        *(f"usr/lib/NetworkManager/conf.d/{n}.conf" for n in (10, 20)),
        "run/NetworkManager/conf.d/10.conf",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert configuration_files(tmp_path) == [tmp_path / name for name in kept]


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


@pytest.mark.parametrize("network", ["10.1.0.0/16", None], ids=["the lease was lost", "at the start"])
def test_a_registry_without_a_configuration_is_a_fault_while_the_agent_waits_for_it(network: str | None) -> None:
    text = "etcd at http://192.0.2.254:2379 holds no network configuration at /coreos.com/network/config"
    for over, verdict in ((False, Verdict.FAULT), (True, Verdict.OK if network else Verdict.FAULT)):
        errors = {"configuration": {"text": text, "ago_s": 1.0, "over": over}}
        found = judge_registry(Known(status=status(registry="etcd", network=network, last_errors=errors)), Options())
        assert found.verdict is verdict
        assert (text in found.what) is not over


@pytest.mark.parametrize(
    ("registry", "text", "mend"),
    [
        ("etcd", "no etcd endpoint answers: http://192.0.2.254:2379 (Connection refused)", "mend the registry"),
        ("etcd", "etcd at http://192.0.2.254:2379 asks for a user: give --etcd-username", "mend the registry"),
        ("etcd", "etcd at http://192.0.2.254:2379 holds no network configuration at /config", "flannel-udp config put"),
        ("etcd", "Network: '10.1.0.0' is no network", "flannel-udp config put"),
        ("file:/r", "registry file /r: line 1 column 2: not JSON", "mend the registry"),
        ("file:/r", "registry file /r does not exist and so holds no network configuration", "flannel-udp config put"),
        ("kubernetes", "--net-config-path /c: there is no such file", "correct the ConfigMap"),
        ("kubernetes", "Network: '10.1.0.0' is no network", "correct the ConfigMap"),
    ],
)
def test_what_keeps_an_agent_from_a_configuration_is_mended_where_it_is(registry: str, text: str, mend: str) -> None:
    errors = {"configuration": {"text": text, "ago_s": 1.0, "over": False}}
    found = judge_registry(Known(status=status(registry=registry, network=None, last_errors=errors)), Options())
    assert (found.verdict, found.mend.startswith(mend)) == (Verdict.FAULT, True), found.mend


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
