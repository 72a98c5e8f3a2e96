"""Connections from one address of ours are shut down, and no others."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flannel_udp.host.connections import abandon_connections
from tests.support.patience import PATIENCE_S


@contextmanager
def connected(source: str, family: socket.AddressFamily = socket.AF_INET) -> Iterator[socket.socket]:
    """Yield a connection from `source` to a listener on 127.0.0.1."""
    prefix = "" if family == socket.AF_INET else "::ffff:"
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
        client.settimeout(PATIENCE_S)
        client.bind((prefix + source, 0))
        client.connect((f"{prefix}127.0.0.1", listener.getsockname()[1]))
        opened.enter_context(listener.accept()[0])
        yield client


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_owner_reads_the_end_of_the_stream(family: socket.AddressFamily) -> None:
    with connected("127.0.0.77", family) as lost, connected("127.0.0.78", family) as kept:
        assert abandon_connections(IPv4Address("127.0.0.77")) == 1
        assert lost.recv(1) == b""
        kept.send(b"x")


def test_listeners_and_datagram_sockets_stay() -> None:
    address = "127.0.0.79"
    with socket.create_server((address, 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind((address, 0))
        udp.connect(udp.getsockname())
        assert abandon_connections(IPv4Address(address)) == 0
        udp.send(b"x")
        with socket.create_connection(listener.getsockname(), timeout=5.0), listener.accept()[0]:
            pass


def test_no_descriptor_is_kept() -> None:
    # Whatever a process may have open, not only sockets: a copy of the tunnel device's would keep that alive for ever.
    with Path("/dev/null").open(), select.epoll(), connected("127.0.0.80"):
        before = descriptors()
        assert abandon_connections(IPv4Address("127.0.0.80")) == 1
        assert descriptors() == before


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}
