"""What is read of all rules that a host has, with its tools and without them."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.host.firewall import passages
from flannel_udp.host.firewall.nft_chains import list_chains
from flannel_udp.host.firewall.passages import RuleSets, read_rules
from tests.support.labs import NEEDS_NETNS
from tests.support.one_host import OneHost, one_host
from tests.support.patience import PATIENCE_S

NFT = shutil.which("nft") or ""
pytestmark = [*NEEDS_NETNS, pytest.mark.skipif(not NFT, reason="needs nft")]

OWN = """\
table inet own {
	chain through {
		type filter hook forward priority -5; policy accept;
		ip saddr 198.51.100.0/24 drop
	}
	chain more { }
}
"""


LOCKED = "another program holds the xtables lock for more than 5 s"
INGRESS = """\
table netdev own {
	chain one {
		type filter hook ingress device "eth0" priority -500; policy drop;
	}
}
table inet own {
	chain two {
		type filter hook ingress devices = { eth0, eth1 } priority -500; policy drop;
	}
}
"""


@pytest.fixture
def host() -> Iterator[OneHost]:
    with one_host() as made:
        yield made


def run(host: OneHost, *command: str, stdin: str = "") -> str:
    def go() -> str:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, input=stdin, timeout=PATIENCE_S
        ).stdout

    return host.call(go)


def read(host: OneHost) -> RuleSets:
    return host.call(lambda: asyncio.run(read_rules()))


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of all programs that there are: iptables-nft alone, so far."""
    (tmp_path / "iptables-nft").symlink_to(shutil.which("iptables-nft") or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_the_kernels_chains_are_those_that_nft_lists(host: OneHost) -> None:
    assert host.call(list_chains) == []
    run(host, NFT, "-f", "-", stdin=OWN)
    run(host, "iptables-nft", "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "-j", "DROP")
    listed = [item["chain"] for item in json.loads(run(host, NFT, "-j", "list", "chains"))["nftables"][1:]]
    told = sorted((chain["family"], chain["table"], chain["name"], chain.get("prio")) for chain in listed)
    assert len(told) == 3
    assert sorted((each.family, each.table, each.name, each.priority) for each in host.call(list_chains)) == told


def test_without_nft_tables_that_it_alone_can_list_are_named_and_iptables_lists_its_own(
    host: OneHost, tools: Path
) -> None:
    assert read(host) == RuleSets({}, {"nftables": []}, [])
    run(host, str(tools / "iptables-nft"), "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "-j", "DROP")
    assert [*read(host).listings] == [("iptables-nft", "raw")]
    assert read(host).unread == []
    run(host, NFT, "-f", "-", stdin=OWN)
    assert read(host).unread == ["nftables: table own: nft is missing: install nftables"]


def test_an_nft_that_fails_is_no_missing_one(host: OneHost, tools: Path) -> None:
    run(host, NFT, "-f", "-", stdin=OWN)
    (tools / "nft").write_text("#!/bin/sh\nexit 1\n")
    (tools / "nft").chmod(0o755)
    assert read(host).unread == ["nftables: table own: nft cannot list it"]


def test_an_iptables_that_is_missing_is_named(host: OneHost, tools: Path) -> None:
    run(host, str(tools / "iptables-nft"), "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "-j", "DROP")
    (tools / "iptables-nft").unlink()
    assert read(host).unread == ["iptables-nft: table raw: iptables-nft is missing: install iptables"]


def test_a_lock_that_another_program_holds_is_waited_for_and_named(
    host: OneHost, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    legacy, lock = shutil.which("iptables-legacy", path="/usr/sbin:/sbin:/usr/bin"), tools / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    if legacy is None:
        pytest.skip("needs iptables-legacy")
    (tools / "iptables-legacy").symlink_to(legacy)
    run(host, legacy, "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "-j", "DROP")
    monkeypatch.setattr(passages, "LOCK_WAIT_S", 1)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert read(host) == RuleSets({}, {"nftables": []}, [], f"iptables-legacy: {LOCKED}")
        fcntl.flock(held, fcntl.LOCK_UN)
    assert [*read(host).listings] == [("iptables-legacy", "raw")]


def test_the_kernel_says_which_devices_a_chain_is_for(host: OneHost) -> None:
    host.add_links(42)
    run(host, NFT, "-f", "-", stdin=INGRESS)
    chains = [item["chain"] for item in read(host).document["nftables"] if "chain" in item]
    assert {chain["name"]: sorted(chain["dev"]) for chain in chains} == {"one": ["eth0"], "two": ["eth0", "eth1"]}
