"""`flannel-udp firewall show`: what would be applied, from flags or from the subnet file, without root."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flannel_udp.cli.main import main
from tests.unit.test_firewall_rules import EVERYTHING, IPTABLES, NFT

GIVEN = ["--network=10.1.0.0/16", "--subnet=10.1.15.0/24", "--ip-masq"]


@pytest.fixture
def subnet_file(tmp_path: Path) -> Path:
    path = tmp_path / "subnet.env"
    path.write_text("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.15.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n")
    return path


def show(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["firewall", "show", *words]) == 0
    return capsys.readouterr().out


def test_both_dialects_each_under_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(capsys, *GIVEN) == f"# nftables\n{NFT}\n# iptables\n{IPTABLES}"


@pytest.mark.parametrize(("dialect", "text"), [("nftables", NFT), ("iptables", IPTABLES)])
def test_one_dialect_alone_is_what_its_tool_takes(dialect: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(capsys, *GIVEN, f"--dialect={dialect}") == text


def test_the_subnet_file_says_what_is_not_given(subnet_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(capsys, f"--subnet-file={subnet_file}", "--dialect=nftables") == NFT
    forward_only = show(capsys, f"--subnet-file={subnet_file}", "--dialect=iptables", "--ip-masq=false")
    assert forward_only == IPTABLES.partition("*nat")[0]


def test_of_ipv6_alone_the_subnet_file_says_it_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "subnet.env"
    path.write_text(
        "FLANNEL_IPV6_NETWORK=fd00:1::/48\nFLANNEL_IPV6_SUBNET=fd00:1:0:2::1/64\nFLANNEL_MTU=1452\nFLANNEL_IPMASQ=true\n"
    )
    given = show(capsys, "--network=fd00:1::/48", "--subnet=fd00:1:0:2::/64", "--ip-masq")
    assert show(capsys, f"--subnet-file={path}") == given
    assert "table ip6 flannel-ipv6" in given


def test_json_has_the_rules_and_the_texts(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(show(capsys, *GIVEN, "--json"))
    assert document["text"] == {"nftables": NFT, "iptables": IPTABLES}
    assert document["random_fully"] is True
    assert len(document["masquerade"]) == len(EVERYTHING.masquerade)
    assert document["masquerade"][4] == {
        "mark": None,
        "source": "10.1.0.0/16",
        "destination": "!224.0.0.0/4",
        "verdict": "masquerade",
    }


def test_nothing_to_apply_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    text = show(capsys, *GIVEN[:2], "--iptables-forward-rules=false")
    assert text == "# nftables\n# no rules\n\n# iptables\n# no rules\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--network=10.1.0.0/16"], "--network and --subnet come together, or neither: then the subnet file says both"),
        (["--subnet-file=/nonexistent"], "there is no /nonexistent: name another --subnet-file, or --network and"),
        ([GIVEN[0], "--subnet=10.2.0.0/24"], "the subnet 10.2.0.0/24 is not inside the network 10.1.0.0/16"),
        ([GIVEN[0], "--subnet=10.0.0.0/8"], "the subnet 10.0.0.0/8 is not inside the network 10.1.0.0/16"),
        ([GIVEN[0], "--subnet=fd00::/64"], "the subnet fd00::/64 is not inside the network 10.1.0.0/16"),
        (["--network=10.1.0.1/16"], "--network: '10.1.0.1/16' is not a network such as 10.1.0.0/16"),
        (["--dialect=pf"], "--dialect: 'pf' is not one of nftables, iptables"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["firewall", "show", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"flannel-udp: {line}")
    assert err.count("\n") == 1
