"""`iface show` beside real interfaces, without any capability."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

HOST = """
link add eth0 type veth peer name far0
link add eth1 mtu 9000 type veth peer name far1
link add eth2 type veth peer name far2
link add eth3 type veth peer name far3
link set eth0 up
link set eth1 up
link set eth3 up
addr add 169.254.7.1/16 dev eth0
addr add 192.0.2.5/26 dev eth0 valid_lft 3000 preferred_lft 0
addr add 192.0.2.2/24 dev eth0 valid_lft 3000 preferred_lft 3000
addr add 192.0.2.4/32 dev eth0
addr add 198.51.100.2/24 dev eth1
addr add 203.0.113.2/24 dev eth2
route add default via 198.51.100.1 dev eth1 metric 200
route add default via 192.0.2.1 dev eth0 metric 100
route add 192.0.2.128/25 via 198.51.100.9 dev eth1
"""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """Four interfaces: two with routes, one down, one bare; eth0's best address is DHCP's, then came a virtual one."""
    name = f"fu-{fresh_name()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "-batch", "-"], input=HOST, text=True, check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def run(host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    command = ["ip", "netns", "exec", host, *bare, sys.executable, "-m", "flannel_udp", "iface", "show", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def document(host: str, *arguments: str) -> Any:
    done = run(host, "--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_the_default_route_and_the_kinds_of_addresses(host: str) -> None:
    shown = document(host)
    assert shown["chosen"] == {
        "interface": "eth0",
        "address": "192.0.2.2",
        "public_ip": "192.0.2.2",
        "mtu": 1500,
        "by": "default route",
    }
    reasons = {each["address"] or each["interface"]: each["reason"] for each in shown["candidates"]}
    assert reasons == {
        "192.0.2.2": "the default route leads over it, with metric 100",
        "192.0.2.4": "192.0.2.2 was there before it",
        "192.0.2.5": "it is deprecated, 192.0.2.2 is not",
        "169.254.7.1": "it is link-local: another host may have the same (RFC 3927)",
        "198.51.100.2": "its default route has metric 200, and that over eth0 goes first",
        "203.0.113.2": "eth2 is down",
        "eth3": "eth3 has no IPv4 address",
        **{name: f"{name} is down" for name in ("lo", "far0", "far1", "far2", "far3")},
    }


@pytest.mark.parametrize(
    ("arguments", "interface", "address"),
    [
        (["--iface=eth1"], "eth1", "198.51.100.2"),
        (["-iface", "169.254.7.1", "--public-ip=203.0.113.77"], "eth0", "169.254.7.1"),
        (["--iface=eth9", "--iface-regex=^198"], "eth1", "198.51.100.2"),
        (["--iface-can-reach=192.0.2.200"], "eth1", "198.51.100.2"),
        # The kernel's own source on that route, of whatever kind it is: what every other program would bind to.
        (["--iface-can-reach=192.0.2.50"], "eth0", "192.0.2.5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_each_kind_of_option(host: str, arguments: list[str], interface: str, address: str) -> None:
    chosen = document(host, *arguments)["chosen"]
    assert (chosen["interface"], chosen["address"]) == (interface, address)


def test_behind_nat_another_address_is_dialled(host: str) -> None:
    done = run(host, "--iface=eth1", "--public-ip=203.0.113.77")
    assert done.stdout.splitlines()[-1] == (
        "the agent binds to 198.51.100.2 of eth1, MTU 9000; other hosts dial 203.0.113.77 (--public-ip)"
    )


def test_a_public_ip_alone_chooses_the_interface_that_has_it(host: str) -> None:
    shown = document(host, "--public-ip=198.51.100.2")
    assert (shown["chosen"]["interface"], shown["chosen"]["by"]) == ("eth1", "--public-ip=198.51.100.2")
    done = run(host, "--public-ip=203.0.113.77")
    assert done.stdout.splitlines()[-2:] == [
        "passed over: --public-ip=203.0.113.77: no interface has this address: a NAT in front of us",
        "the agent binds to 192.0.2.2 of eth0, MTU 1500; other hosts dial 203.0.113.77 (--public-ip)",
    ]


def test_what_leads_nowhere_is_explained_and_fails(host: str) -> None:
    done = run(host, "--iface=eth2", "--iface=eth3")
    assert done.returncode == 1
    assert "eth2  203.0.113.2      not     eth2 is down\n" in done.stdout
    assert done.stderr.startswith(
        "flannel-udp: no interface matches: --iface=eth2: eth2 is down; --iface=eth3: eth3 has no IPv4 address; "
    )


def test_what_lies_in_the_overlay_of_a_subnet_file_is_taken_where_there_is_nothing_else(
    host: str, tmp_path: Path
) -> None:
    file = tmp_path / "subnet.env"
    wanted = "FLANNEL_SUBNET=192.0.2.65/28\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
    file.write_text(f"FLANNEL_NETWORK=192.0.2.0/24\n{wanted}")
    file.chmod(0o644)
    shown = document(host, f"--subnet-file={file}")
    assert (shown["chosen"]["interface"], shown["chosen"]["address"]) == ("eth1", "198.51.100.2")
    assert any("lies in the overlay network 192.0.2.0/24" in each["reason"] for each in shown["candidates"])
    chosen = document(host, f"--subnet-file={file}", "--iface-regex=^192")["chosen"]
    assert (chosen["interface"], chosen["address"]) == ("eth0", "192.0.2.2")
