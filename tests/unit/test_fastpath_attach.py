"""An engine that gets other descriptors goes on with its table and its counters."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP

from tests.support.engine_rig import EngineRig, small_table

PACKET = bytes(IP(src="10.1.1.5", dst="10.1.2.7") / UDP() / b"x")


def test_table_and_counters_stay_and_the_new_descriptors_carry() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with EngineRig(small_table()) as rig, near, far, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        rig.from_tun(PACKET)
        rig.poll()
        (first,) = rig.to_peer("127.0.0.2")
        near.setblocking(False)
        udp.setblocking(False)
        udp.bind(("127.0.0.9", 0))
        rig.engine.attach(near.fileno(), udp.fileno())
        far.send(bytes(10) + PACKET)
        rig.from_tun(PACKET)  # nobody reads there any more
        rig.poll()
        datagram, sender = rig.peers["127.0.0.2"].recvfrom(2048)
        assert (datagram, sender) == (first, udp.getsockname())
        assert rig.to_peer("127.0.0.2") == []
        assert rig.counters("out")["packets"] == 2


def test_descriptors_that_cannot_be_watched_are_refused_and_nothing_changes() -> None:
    with EngineRig(small_table()) as rig:
        # epoll takes no regular file.
        with Path(__file__).open() as file, pytest.raises(PermissionError):
            rig.engine.attach(file.fileno(), file.fileno())
        rig.from_tun(PACKET)
        rig.poll()
        assert len(rig.to_peer("127.0.0.2")) == 1


def test_a_tun_without_virtio_net_headers_takes_no_super_packets() -> None:
    with EngineRig(small_table(), vnet_bytes=0) as rig, pytest.raises(ValueError, match="virtio-net"):
        rig.engine.attach(0, 0, join_tcp=True)
