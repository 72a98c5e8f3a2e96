"""A TUN driver that lacks what a tunnel device of ours needs: said as such, not as names that are all taken."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import pytun

from flannel_udp.dataplane import tunnel
from flannel_udp.dataplane.tunnel import IFF_MULTI_QUEUE, IFF_VNET_HDR, open_tunnel
from flannel_udp.errors import FlannelError

WHY = "cannot create the tunnel device: the TUN driver of this kernel takes no packets behind virtio-net headers"


def refusing(monkeypatch: pytest.MonkeyPatch, flag: int) -> list[str]:
    """Have a TUN driver that knows no such flag; return the names that it is asked for."""
    asked: list[str] = []

    def refuse(name: str, *, flags: int) -> Any:
        asked.append(name)
        assert flags & flag, "not the flag that it refuses"
        raise pytun.Error(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(pytun, "TunTapDevice", refuse)
    return asked


@pytest.mark.parametrize("only", [None, "flannel-none"])
def test_a_driver_without_virtio_net_headers_is_named_at_the_first_free_name(
    only: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "_index", lambda _name: None)
    asked = refusing(monkeypatch, IFF_VNET_HDR)
    with pytest.raises(FlannelError) as refused:
        open_tunnel(1, only=only)
    assert str(refused.value) == f"{WHY} (IFF_VNET_HDR)"
    assert asked == [only or "flannel0"]


def test_a_driver_without_several_queues_is_named_with_what_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "_index", lambda _name: None)
    refusing(monkeypatch, IFF_MULTI_QUEUE)
    with pytest.raises(FlannelError) as refused:
        open_tunnel(2)
    assert str(refused.value) == f"{WHY} (IFF_VNET_HDR), or no several queues (IFF_MULTI_QUEUE): try --workers=1"


def test_names_of_devices_that_are_no_tunnel_of_ours_are_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "_index", lambda _name: 7)
    asked = refusing(monkeypatch, IFF_VNET_HDR)
    with pytest.raises(FlannelError, match="flannel0 to flannel255 are all taken"):
        open_tunnel(1)
    assert len(asked) == 256
