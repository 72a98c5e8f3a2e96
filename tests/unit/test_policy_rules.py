"""The policy rules of a kernel that has no policy routing, or has it for one IP version only."""

from __future__ import annotations

import errno
import socket

import pytest

from flannel_udp.host.lookup.rules import read_rules
from flannel_udp.host.rtnetlink import Rtnetlink
from tests.support.no_policy_rules import without_rules


def rules_where(code: int, version: int, *, at_the_end: bool) -> list[str]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        return [str(rule) for rule in read_rules(without_rules(netlink, code, at_the_end=at_the_end), version)]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("code", "at_the_end"), [(errno.EOPNOTSUPP, False), (errno.EAFNOSUPPORT, True)])
def test_a_kernel_without_policy_routing_asks_the_tables_local_and_main(
    code: int, at_the_end: bool, version: int
) -> None:
    assert rules_where(code, version, at_the_end=at_the_end) == [
        "0: from all lookup local",
        "32766: from all lookup main",
    ]


def test_any_other_refusal_is_an_error() -> None:
    with pytest.raises(OSError, match="Cannot allocate memory"):
        rules_where(errno.ENOMEM, 4, at_the_end=True)


def test_this_kernel_s_own_rules_are_read() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        assert {rule.table for rule in read_rules(Rtnetlink(netlink))} >= {255, 254}
