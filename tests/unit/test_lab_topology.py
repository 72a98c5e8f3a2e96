"""Topology files: what they say becomes a plan; what they cannot say is one line with the file and the key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flannel_udp.backend.table import LAB_BACKENDS
from flannel_udp.cli.lab_plan import plan_of
from flannel_udp.cli.main import main
from flannel_udp.errors import UsageError
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.topology import read_topology

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "labs").glob("*.toml"))


def read(tmp_path: Path, text: str) -> Plan:
    path = tmp_path / "x.toml"
    path.write_text(text)
    return read_topology(path, LAB_BACKENDS)


def test_an_empty_file_is_a_lab_of_two_hosts_with_fixed_subnets(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Plan(subnets={"h1": ("10.244.1.0/24",), "h2": ("10.244.2.0/24",)})


def test_every_key_finds_its_place(tmp_path: Path) -> None:
    text = """
        name = "class"
        hosts = 3
        pods = 2
        registry = "etcd"
        families = "46"
        underlay_mtu = 1400
        offload = "wire"
        rate = "1.5gbit"
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
        [host.h3]
        routed = true
        subnets = ["10.1.7.0/26", "fd00:1:0:7::/64"]
    """
    assert read(tmp_path, text) == Plan(
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
        routed=("h3",),
        subnets={"h1": ("10.1.0.64/26", "fd00:1:0:1::/64"), "h3": ("10.1.7.0/26", "fd00:1:0:7::/64")},
        rates={"h1": 10_000_000, "h2": 1_500_000_000, "h3": 1_500_000_000},
    )


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
    commented = re.sub(r"(?m)^# (?=rate|\[host|subnets|datapath|routed|arguments)", "", pair.read_text())
    full = read(tmp_path, commented)
    assert full.host_args == {"h2": ("--datapath=userspace", "--workers=2")}
    assert (full.routed, full.subnets["h2"]) == (("h2",), ("10.244.7.0/24",))
    assert full.rates == {"h1": 100_000_000, "h2": 10_000_000}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("host = 3", "x.toml: host: 3 is not a table"),
        ("hots = 3", "x.toml: hots: unknown key, it is none of name, hosts, "),
        ("hots = 3", ": did you mean hosts?"),
        ("hosts = 0", "x.toml: hosts: 0 is not a whole number from 1 to 250"),
        ("hosts = 2.5", "x.toml: hosts: 2.5 is not a whole number from 1 to 250"),
        ("hosts = true", "x.toml: hosts: true is not a whole number from 1 to 250"),
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
        ("hosts = ", "x.toml is no TOML: Invalid value (at "),
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
