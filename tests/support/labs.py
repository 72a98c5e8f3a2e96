"""Labs for tests: names that no other run uses, and what the machine must offer."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import names
from flannel_udp.lab.node import Node
from flannel_udp.lab.plan import STATE_DIR, lab_of_namespace
from flannel_udp.lab.probe import tcp_rate

NEEDS_NETNS = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the command ip (package iproute2)"),
]
"""The `pytestmark` of a module that uses labs."""

ETH_P_ALL = 0x0003  # <linux/if_ether.h>

_counter = itertools.count()

FRESH_NAMES = f"test{os.getpid()}-*"
"""What matches all names of `fresh_name` in this process."""


def fresh_name() -> str:
    """Return a name for a lab that no other test, and no other run on this machine, uses."""
    return f"test{os.getpid()}-{next(_counter)}"


def endless_start(directory: Path, program: str = "etcd") -> dict[str, str]:
    """Return an environment where labs wait for a program that never does its work: no start is over before its test.

    For etcd that is before there are agents, for iptables-restore amid theirs.
    """
    endless = directory / program
    endless.write_text("#!/bin/sh\nexec sleep 60\n")
    endless.chmod(0o755)
    return os.environ | {"PATH": f"{directory}:{os.environ['PATH']}"}


def namespaces_of(name: str) -> list[str]:
    """Return the lab's namespaces that exist."""
    return [namespace for namespace in names() if lab_of_namespace(namespace) == name]


def state_of(name: str) -> Path:
    """Return the folder where the lab keeps its files."""
    return STATE_DIR / name


@contextmanager
def empty_namespace(*commands: str) -> Iterator[str]:
    """Make a network namespace without any lab for the block, and run these commands in it; yields its name."""
    name = f"fu-{fresh_name()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for command in commands:
            subprocess.run(["ip", "netns", "exec", name, *command.split()], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@contextmanager
def cleaned_up(lab: Lab) -> Iterator[Lab]:
    """Take the lab down at the end of the block, for tests in which something else brings it up or down."""
    try:
        yield lab
    finally:
        lab.down()


def longest_packet(lab: Lab, node: Node, interface: str) -> int:
    """Return the longest packet, in bytes, that enters by the interface while h1 sends TCP to h2 over the underlay."""
    h1, h2 = lab.hosts
    with node.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as tap:  # of no protocol until it is bound
        tap.bind((interface, ETH_P_ALL))
        tcp_rate(h1, h2, h2.underlay, duration_s=0.2)
        tap.setblocking(False)
        lengths = []
        with suppress(BlockingIOError):
            while True:
                data, address = tap.recvfrom(65_535)
                if address[2] != socket.PACKET_OUTGOING:
                    lengths.append(len(data))
    return max(lengths)
