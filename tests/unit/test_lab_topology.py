"""Topology files: what they say becomes a plan; what they cannot say is one line with the file and the key."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from flannel_udp.backend.table import LAB_BACKENDS
from flannel_udp.cli.lab_plan import plan_of, with_another_host
from flannel_udp.cli.main import main
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.saving import write_topology
from flannel_udp.lab.sites import Cable, Router
from flannel_udp.lab.topology import read_topology

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "labs").glob("*.toml"))

EVERY_KEY = """
name = "class"
hosts = 3
pods = 2
registry = "etcd"
families = "46"
underlay_mtu = 1400
offload = "wire"
rate = "1.5gbit"
delay = "2ms"
seed = 9
[network]
Network = "10.1.0.0/16"
IPv6Network = "fd00:1::/48"
SubnetLen = 26
Backend = { Type = "vxlan", VNI = 7 }
[host.h1]
datapath = "kernel"
arguments = ["--workers=2"]
rate = "10mbit"
[host.h2]
agent = false
loss = "100%"
mtu = 1300
[host.h3]
behind = "r2"
delay = "0.5ms"
subnets = ["10.1.7.0/26", "fd00:1:0:7::/64"]
[router.r2]
behind = "r1"
nat = true
forward = "h3"
[router.r1]
mtu = 1280
loss = "0.5%"
"""


def read(tmp_path: Path, text: str) -> Plan:
    path = tmp_path / "x.toml"
    path.write_text(text)
    return read_topology(path, LAB_BACKENDS)


def test_an_empty_file_is_a_lab_of_two_hosts_with_fixed_subnets(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Plan(subnets={"h1": ("10.244.1.0/24",), "h2": ("10.244.2.0/24",)})


def test_every_key_finds_its_place(tmp_path: Path) -> None:
    assert read(tmp_path, EVERY_KEY) == Plan(
        "class",
        hosts=3,
        pods=2,
        registry="etcd",
        families="46",
        underlay_mtu=1400,
        offload="wire",
        config={
            "Network": "10.1.0.0/16",
            "IPv6Network": "fd00:1::/48",
            "SubnetLen": 26,
            "Backend": {"Type": "vxlan", "VNI": 7},
            "EnableIPv6": True,
        },
        agents=("h1", "h3"),
        host_args={"h1": ("--datapath=kernel", "--workers=2")},
        routers={"r1": Router(mtu=1280), "r2": Router(nat=True, forward="h3")},
        behind={"h3": "r2", "r2": "r1"},
        cables={
            "h1": Cable(rate=10_000_000, delay_ms=2),
            "h2": Cable(rate=1_500_000_000, delay_ms=2, loss=1, mtu=1300),
            "h3": Cable(rate=1_500_000_000, delay_ms=0.5),
            "r1": Cable(loss=0.005),
        },
        seed=9,
        subnets={"h1": ("10.1.0.64/26", "fd00:1:0:1::/64"), "h3": ("10.1.7.0/26", "fd00:1:0:7::/64")},
    )


def test_keys_of_the_network_are_read_in_any_case_as_flannel_does(tmp_path: Path) -> None:
    assert read(tmp_path, '[network]\nnetwork = "10.5.0.0/16"').subnets["h2"] == ("10.5.2.0/24",)


def test_subnets_are_left_to_chance_where_the_file_says_so(tmp_path: Path) -> None:
    assert read(tmp_path, "fixed_subnets = false").subnets == {}
    kept = read(tmp_path, 'fixed_subnets = false\n[host.h2]\nsubnets = ["10.244.9.0/24"]')
    assert kept.subnets == {"h2": ("10.244.9.0/24",)}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_lab_and_says_what_it_is_for(path: Path) -> None:
    plan = read_topology(path, LAB_BACKENDS)
    assert plan.hosts >= 2
    assert set(plan.subnets) == set(plan.host_names)
    assert re.match(r"# [A-Z].*[.?:]", path.read_text().splitlines()[0])


def test_the_first_example_has_the_default_of_every_key(tmp_path: Path) -> None:
    (pair,) = (path for path in EXAMPLES if path.stem == "pair")
    plan = read_topology(pair, LAB_BACKENDS)
    assert plan == read(tmp_path, 'pods = 2\n[network]\nBackend = { Type = "udp" }')
    commented = re.sub(r"(?m)^# (?=[a-z]+ = |\[(?:host|router)\.)", "", pair.read_text())
    full = read(tmp_path, commented)
    assert full.host_args == {"h2": ("--datapath=userspace", "--workers=2")}
    assert (full.behind, full.subnets["h2"]) == ({"h2": "r1", "r2": "r1"}, ("10.244.7.0/24",))
    assert full.routers == {"r1": Router(nat=True, forward="h2", mtu=1400), "r2": Router()}
    assert full.cables["h2"] == Cable(rate=10_000_000, delay_ms=2, loss=0.01, mtu=1400)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("host = 3", "x.toml: host: 3 is not a table"),
        ("hots = 3", "x.toml: hots: unknown key, it is none of name, hosts, "),
        ("hots = 3", ": did you mean hosts?"),
        ("hosts = 0", "x.toml: hosts: 0 is not a whole number from 1 to 200"),
        ("hosts = 2.5", "x.toml: hosts: 2.5 is not a whole number from 1 to 200"),
        ("hosts = true", "x.toml: hosts: true is not a whole number from 1 to 200"),
        ('pods = "two"', 'x.toml: pods: "two" is not a whole number from 0 to 250'),
        ("underlay_mtu = 10", "x.toml: underlay_mtu: 10 is not a whole number from 576 to 65535"),
        ('families = "46"\nunderlay_mtu = 1000', "x.toml: IPv6 needs an underlay MTU of 1280 bytes at least"),
        ("families = 46", "x.toml: families: 46 is not a text: put it between quotes"),
        ('registry = "etdc"', 'x.toml: registry: "etdc" is not one of file, etcd: did you mean etcd?'),
        ('offload = "wired"', 'x.toml: offload: "wired" is not one of whole, wire, plain: did you mean wire?'),
        ('rate = "fast"', 'x.toml: rate: "fast" is not a rate from 8kbit to 100gbit, such as 10mbit'),
        ('rate = "1kbit"', 'x.toml: rate: "1kbit" is not a rate from 8kbit'),
        ("rate = 10", "x.toml: rate: 10 is not a text"),
        ('name = "../x"', "x.toml: '../x' is no name for a lab"),
        ('fixed_subnets = "no"', 'x.toml: fixed_subnets: "no" is neither true nor false'),
        ('delay = "40"', 'x.toml: delay: "40" is not a delay from 0.1ms to 2s, such as 40ms'),
        ('delay = "3s"', 'x.toml: delay: "3s" is not a delay'),
        ('loss = "101%"', 'x.toml: loss: "101%" is not a loss from 0.001% to 100%, such as 5%'),
        ("seed = -1", "x.toml: seed: -1 is not a whole number from 0 to 2147483647"),
        ("[host.h1]\nmtu = 10", "x.toml: host.h1.mtu: 10 is not a whole number from 576 to 65535"),
        ("[host.h1]\nbehind = 'r1'", "x.toml: host.h1.behind: there is no router: add a table such as [router.r1]"),
        (
            "[host.h1]\nbehind = 'r11'\n[router.r1]",
            'x.toml: host.h1.behind: "r11" is not one of r1: did you mean r1?',
        ),
        ("[host.h1]\nrouted = true", "x.toml: host.h1.routed: unknown key"),
        ("[router.r1]\nnet = true", "x.toml: router.r1.net: unknown key"),
        ("[router.r1]\nnet = true", ": did you mean nat?"),
        ("[router.paris]", "x.toml: paris is no name for a router: use r1 to r50"),
        ("[router.r1]\nforward = 'h1'", "x.toml: r1 passes nothing on to h1 without NAT"),
        (
            "[router.r1]\nbehind = 'r3'\n[router.r2]\nbehind = 'r1'\n[router.r3]\nbehind = 'r2'",
            "x.toml: the routers go in a circle: r1 behind r3 behind r2 behind r1",
        ),
        ("network = 3", "x.toml: network: 3 is not a table"),
        ('[network]\nNetwork = "10.1.0.0"', "x.toml: network: Network"),
        ('[network]\nNetwrok = "10.1.0.0/16"', "x.toml: network: "),
        ('[network]\nBackend = { Type = "vxlna" }', "x.toml: network: "),
        ('[network]\nBackend = { Type = "aws-vpc" }', "x.toml: network: "),
        ('families = "46"\n[network]\nBackend = { Type = "ipip" }', "x.toml: network: "),
        ('hosts = 9\n[network]\nNetwork = "10.1.0.0/28"', "10.1.0.0/28 has 3 subnets, too few for 9 hosts"),
        ("[host.h3]", "x.toml: host.h3: the lab has hosts h1 to h2"),
        ("[host.h11]", "x.toml: host.h11: the lab has hosts h1 to h2: did you mean h1?"),
        (
            "[host.h1]\nagent = false\nsubnets = []\ndatapath = 'auto'",
            "x.toml: host.h1.datapath: no agent of ours runs there",
        ),
        ("[host]\nh1 = 3", "x.toml: host.h1: 3 is not a table"),
        ("[host.h1]\ndatapth = 'kernel'", "x.toml: host.h1.datapth: unknown key"),
        ("[host.h1]\ndatapth = 'kernel'", ": did you mean datapath?"),
        ("[host.h1]\ndatapath = 'card'", 'x.toml: host.h1.datapath: "card" is not one of auto, kernel, userspace'),
        ("[host.h1]\nrate = '3tbit'", 'x.toml: host.h1.rate: "3tbit" is not a rate'),
        ("[host.h1]\nagent = 'no'", "x.toml: host.h1.agent: "),
        ("[host.h1]\narguments = '--v=1'", 'x.toml: host.h1.arguments: "--v=1" is not a list of texts'),
        ("[host.h1]\nsubnets = ['10.244.1.1/24']", "x.toml: host.h1.subnets: 10.244.1.1/24 has host bits set"),
        (
            "[host.h1]\nsubnets = ['10.9.1.0/24']",
            "does not fit the network: give a /24 from 10.244.1.0/24 to 10.244.255",
        ),
        ("[host.h1]\nsubnets = ['10.244.2.0/24']", "x.toml: host.h2.subnets: 10.244.2.0/24 is h1's already"),
        ("[network]\nNetwork = 2026-01-01", "x.toml: network: dates and times are nothing that a "),
        ("hosts = ", "x.toml is no TOML: Invalid value (at "),
        (f"hosts = {'9' * 5000}", "x.toml is no TOML: "),
        (f"hosts = {'[' * 5000}", "x.toml is no TOML: "),
    ],
)
def test_what_cannot_be_is_one_line_with_file_and_key(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path, why in (("none", "No such file or directory"), (".", "Is a directory"), ("bytes", "is no TOML: ")):
        assert main(["lab", "up", "--topology", str(tmp_path / path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert why in line


def test_beside_a_file_no_other_flag_says_what_the_lab_is(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('name = "own"')
    with pytest.raises(UsageError, match=r"^--hosts and --topology are both given: write it into .*x\.toml$"):
        plan_of({"topology": path, "hosts": 3}, "lab")
    assert plan_of({"topology": path, "json": True}, "lab").name == "own"
    assert plan_of({"topology": path, "name": "mine"}, "lab").name == "mine"
    path.write_text("")
    assert plan_of({"topology": path}, "demo").name == "demo"


def test_subnets_are_fixed_by_a_flag_too() -> None:
    assert plan_of({"hosts": 2}, "lab").subnets == {}
    plan = plan_of({"hosts": 2, "families": "46", "fixed": True}, "lab")
    assert plan.subnets["h2"] == ("10.244.2.0/24", "fd00:10:244:2::/64")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_is_saved_of_an_example_makes_the_same_lab(path: Path, tmp_path: Path) -> None:
    plan = read_topology(path, LAB_BACKENDS)
    assert read(tmp_path, write_topology(plan)) == plan


def test_what_is_saved_has_all_that_a_file_may_say(tmp_path: Path) -> None:
    plan = read(tmp_path, EVERY_KEY)
    assert read(tmp_path, write_topology(plan)) == plan
    by_chance = replace(plan, subnets={}, agent_args=("--v=1",))
    assert read(tmp_path, write_topology(by_chance)).host_args == {
        "h1": ("--v=1", "--datapath=kernel", "--workers=2"),
        "h3": ("--v=1",),
    }


def test_what_a_file_cannot_say_is_not_saved() -> None:
    with pytest.raises(FlannelError, match="a topology file has no reservations, and the lab lab has"):
        write_topology(Plan(reservations={"10.244.9.0/24": "192.0.2.2"}))


def test_a_host_that_joins_has_the_next_number_and_its_subnet_unless_another_one_has_it(tmp_path: Path) -> None:
    plan = read(tmp_path, "[router.r1]\n[host.h2]\nagent = false")
    more = with_another_host(plan, "r1")
    assert (more.hosts, more.agents, more.behind) == (3, ("h1", "h3"), {"h3": "r1"})
    assert more.subnets == {**plan.subnets, "h3": ("10.244.3.0/24",)}
    taken = read(tmp_path, "[host.h2]\nsubnets = ['10.244.3.0/24']")
    assert with_another_host(taken, None).subnets == taken.subnets
    assert with_another_host(Plan(), None) == Plan(hosts=3)
