"""What the tests of the firewall rules share: whose packet it seems to be, and what the kernel lists."""

from __future__ import annotations

import socket
import subprocess
import sys
from ipaddress import IPv4Address

from flannel_udp.lab.node import Host, Node
from tests.support.patience import PATIENCE_S, promised

PORT = 4242
SO_MARK = 36  # asm-generic/socket.h
TABLE = "flannel-ipv4"
CHAINS = {"filter": ("FORWARD", "FLANNEL-FWD"), "nat": ("POSTROUTING", "FLANNEL-POSTRTG")}


def look_s() -> float:
    """Return for how long to wait for what the agent says of other people's rules, or says no more.

    After a look it rests twenty times as long as that took, which is half a minute on a machine that is very busy.
    """
    return promised(PATIENCE_S)


def source_seen(
    sender: Node,
    receiver: Node,
    address: IPv4Address,
    *,
    bind: tuple[str, int] = ("0.0.0.0", 0),
    mark: int = 0,
    timeout_s: float = PATIENCE_S,
) -> tuple[str, int] | None:
    """Send a datagram to an address and return from which address and port it seems to come, ``None`` if it is lost."""
    with (
        receiver.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        sender.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("", PORT))
        server.settimeout(timeout_s)
        client.bind(bind)
        client.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        client.sendto(b"whose?", (str(address), PORT))
        try:
            host, port = server.recvfrom(100)[1]
        except TimeoutError:
            return None
        return host, port


def kernel_listing(host: Host, dialect: str) -> str:
    """Return our rules as the tool of a dialect lists them; what is not ours is left out."""
    if dialect == "nftables":
        return host.run(["nft", "list", "table", "ip", TABLE], check=False).stdout
    lines = []
    for table in CHAINS:
        saved = host.run(["iptables-save", "-t", table]).stdout.splitlines()
        ours = [line for line in saved if "FLANNEL" in line]
        if ours:
            lines += [f"*{table}", *ours, "COMMIT"]
    return "".join(f"{line}\n" for line in lines)


def shown(host: Host, dialect: str, *flags: str) -> str:
    """Return what `flannel-udp firewall show` prints for a host."""
    command = [sys.executable, "-m", "flannel_udp", "firewall", "show", "--dialect", dialect]
    options = ["--subnet-file", str(host.subnet_file), *flags]
    return subprocess.run([*command, *options], check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout
