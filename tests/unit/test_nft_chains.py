"""Which chains of nftables the kernel tells: none where it has no nftables."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from flannel_udp.errors import FlannelError
from flannel_udp.host.firewall.nft_chains import list_chains
from flannel_udp.host.rtnetlink import Rtnetlink


def refuse(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def dump(_self: Rtnetlink, _request: int, _head: bytes, _wanted: int) -> Iterator[bytes]:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Rtnetlink, "dump", dump)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EPROTONOSUPPORT])
def test_a_kernel_without_nftables_has_no_chains(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(code, monkeypatch)
    assert list_chains() == []


def test_any_other_refusal_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(errno.EPERM, monkeypatch)
    with pytest.raises(FlannelError, match="asking for nftables' chains: Operation not permitted"):
        list_chains()
