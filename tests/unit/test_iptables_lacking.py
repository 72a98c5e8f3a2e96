"""What iptables-legacy says on a kernel that lacks a table, all of them, or the IP version: in its words of 1.8.9."""

from __future__ import annotations

from ipaddress import IPv6Network
from pathlib import Path

import pytest

from flannel_udp.errors import FlannelError
from flannel_udp.host.firewall.iptables import Iptables
from flannel_udp.host.firewall.owner import Owner
from flannel_udp.host.firewall.rules import Rules, rules_for

NETWORK, SUBNET = IPv6Network("fd00:1::/48"), IPv6Network("fd00:1:0:1::/64")
NO_TABLE = "Table does not exist (do you need to insmod?)"
NO_TABLES = "iptables who? (do you need to insmod?)"
NO_IPV6 = "Address family not supported by protocol"
NOT_LOADED = (
    "ip6tables: the kernel's module for table filter is not loaded: modprobe -a ip6_tables ip6table_filter now, and "
    "a line for each in /etc/modules-load.d/flannel.conf for every boot, or EnableNFTables"
)
LISTS = """#!/bin/sh
echo "ip6tables v1.8.9 (legacy): can't initialize ip6tables table \\`$4': WHY" >&2
echo "Perhaps ip6tables or your kernel needs to be upgraded." >&2
exit 3
"""
RESTORES = """#!/bin/sh
echo "ip6tables-restore v1.8.9 (legacy): ip6tables-restore: unable to initialize table 'filter'" >&2
echo "Error occurred at line: 1" >&2
exit 2
"""


@pytest.fixture(params=[NO_TABLE, NO_TABLES, NO_IPV6])
def why(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have an ip6tables that refuses all, and why."""
    why = str(request.param)
    for name, text in (("ip6tables", LISTS.replace("WHY", why)), ("ip6tables-restore", RESTORES)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return why


@pytest.mark.usefixtures("why")
async def test_where_no_rules_are_wanted_there_are_none_and_all_is_well() -> None:
    applier = Iptables(Owner(NETWORK, None))
    assert await applier.locate(Rules(6)) == ()
    assert await applier.listing(6) == ""
    await applier.apply(Rules(6))
    await applier.sweep(6)


async def test_where_rules_are_wanted_the_advice_is_about_what_is_lacking(why: str) -> None:
    rules = rules_for(NETWORK, SUBNET, masquerade=False, forward=True, random_fully=False)
    applier = Iptables(Owner(NETWORK, None))
    await applier.locate(rules)
    with pytest.raises(FlannelError) as lacking:
        await applier.put(rules)
    advice = {
        NO_IPV6: "ip6tables: IPv6 is off in this kernel: boot it without ipv6.disable=1, or leave out EnableIPv6",
    }
    assert str(lacking.value) == advice.get(why, NOT_LOADED)
