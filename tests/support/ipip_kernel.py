"""A kernel with IPIP, for machines whose kernel has none: what is asked of devices of that kind, another kind does.

`python -P tests/support/ipip_kernel.py ARGUMENTS` is the agent, run with this. Between its rtnetlink sockets and the
kernel messages are translated: a device of kind ipip is one of kind ifb, which has a name, MTU, addresses and routes
like any other, and needs no ARP. What the kernel would keep of an IPIP device (IFLA_INFO_DATA) is kept in the file that
`STATE` names, completed and told as linux/net/ipv4/ipip.c does. Everything else is the real kernel's. No packet passes.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flannel_udp.files.atomic import replace_file

STATE = "IPIP_KERNEL_STATE"
"""Environment variable: the file with what is known of each device, by name, and every request for one."""

# linux/rtnetlink.h, linux/if_link.h, linux/if_tunnel.h: written down anew, apart from the package's own
RTM_NEWLINK = 16
NLM_F_EXCL, NLM_F_CREATE = 0x200, 0x400
IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_KIND, IFLA_INFO_DATA = 3, 18, 1, 2
LINK, LOCAL, REMOTE, TTL, TOS, PROTO, PMTUDISC = 1, 2, 3, 4, 5, 9, 10
ENCAP_TYPE, ENCAP_FLAGS, ENCAP_SPORT, ENCAP_DPORT, COLLECT_METADATA, FWMARK = 15, 16, 17, 18, 19, 20
_SIZES = {
    **dict.fromkeys((LINK, LOCAL, REMOTE, FWMARK), 4),
    **dict.fromkeys((TTL, TOS, PROTO, PMTUDISC), 1),
    **dict.fromkeys((ENCAP_TYPE, ENCAP_FLAGS, ENCAP_SPORT, ENCAP_DPORT), 2),
    COLLECT_METADATA: 0,
}
"""Bytes of each attribute that the kernel knows (ipip_policy)."""
_TOLD = (LINK, LOCAL, REMOTE, TTL, TOS, PROTO, PMTUDISC, FWMARK, ENCAP_TYPE, ENCAP_SPORT, ENCAP_DPORT, ENCAP_FLAGS)
_STAND_IN = b"ifb"
_HEADER, _IFINFOMSG, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BxHiII"), struct.Struct("=HH")


def attributes(data: bytes) -> dict[int, bytes]:
    """Return a sequence of struct rtattr as a mapping."""
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        found[kind & 0x3FFF] = data[_ATTRIBUTE.size : length]  # without NLA_F_NESTED
        data = data[(length + 3) & ~3 :]
    return found


def packed(found: dict[int, bytes]) -> bytes:
    """Return a mapping as a sequence of struct rtattr."""
    parts = []
    for kind, value in found.items():
        parts.append(_ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4))
    return b"".join(parts)


def as_kept(data: dict[int, bytes]) -> dict[int, bytes]:
    """Return what the kernel keeps of a request's data (ipip_netlink_parms), in the order in which it tells it."""
    for kind, value in data.items():
        assert len(value) == _SIZES[kind], f"attribute {kind} has {len(value)} bytes"
    kept = {kind: data.get(kind, bytes(_SIZES[kind])) for kind in _TOLD}
    kept[PROTO] = data.get(PROTO, b"\4")
    fragments = data.get(PMTUDISC, b"\1") == b"\0" and kept[TTL] == b"\0"
    return {**kept, PMTUDISC: b"\0" if fragments else b"\1"}


class State:
    """The devices that there are, and what was asked for, in a file: it outlives an agent, as the kernel does."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Any]:
        """Return "devices", by name (data in hex, and the index once it is known), and "requests", messages in hex."""
        empty: dict[str, Any] = {"devices": {}, "requests": []}
        return json.loads(self._path.read_text()) if self._path.exists() else empty

    @contextmanager
    def changed(self) -> Iterator[dict[str, Any]]:
        """Yield what it says, and write what the block makes of it; agents and tests do so one at a time."""
        with self._path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self.read()
            yield state
            replace_file(self._path, json.dumps(state).encode())

    def add(self, name: str, data: dict[int, bytes]) -> None:
        """Have a device of kind ifb for one of kind ipip from now on."""
        with self.changed() as state:
            state["devices"][name] = {"data": packed(as_kept(data)).hex(), "index": 0}

    def data_of(self, name: str) -> dict[int, bytes]:
        """Return what is kept of a device."""
        return attributes(bytes.fromhex(self.read()["devices"][name]["data"]))

    def requests(self) -> list[bytes]:
        """Return every request for a device of kind ipip, as it was sent."""
        return [bytes.fromhex(message) for message in self.read()["requests"]]

    # What the translation asks

    def request(self, message: bytes) -> bytes:
        """Take note of a request for a device of kind ipip, and return the one for its stand-in."""
        with self.changed() as state:
            return self._request(state, message)

    def _request(self, state: dict[str, Any], message: bytes) -> bytes:
        state["requests"].append(message.hex())
        _, kind, flags, sequence, port = _HEADER.unpack_from(message)
        head, found = _split(message)
        data = as_kept(attributes(attributes(found[IFLA_LINKINFO]).get(IFLA_INFO_DATA, b"")))
        index = _IFINFOMSG.unpack(head)[2]
        name = _name(found) or self._name_of(state, index)
        key = {what: data[what] for what in (LINK, LOCAL, REMOTE)}
        others = [each for at, each in state["devices"].items() if at != name and _is_there(at)]
        if any(key.items() <= attributes(bytes.fromhex(each["data"])).items() for each in others):
            found[IFLA_IFNAME] = b"lo\0"  # ip_tunnel_find has found one: what the kernel says then is EEXIST
            head, flags = _IFINFOMSG.pack(0, 0, 0, 0, 0), flags | NLM_F_CREATE | NLM_F_EXCL
        elif not (flags & NLM_F_EXCL and _is_there(name)):
            state["devices"][name] = {"data": packed(data).hex(), "index": index}
        found[IFLA_LINKINFO] = packed({IFLA_INFO_KIND: _STAND_IN})
        body = head + packed(found)
        return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, port) + body

    def answer(self, message: bytes) -> bytes:
        """Return what the kernel says of a link, of one of kind ipip where it is the stand-in for one."""
        _, kind, flags, sequence, port = _HEADER.unpack_from(message)
        head, found = _split(message)
        index, name = _IFINFOMSG.unpack(head)[2], _name(found)
        if _kind(found) != _STAND_IN:
            return message
        with self.changed() as state:
            at = name if state["devices"].get(name, {}).get("index") == 0 else self._name_of(state, index)
            if at not in state["devices"]:
                return message
            state["devices"][at]["index"] = index
        data = bytes.fromhex(state["devices"][at]["data"])
        found[IFLA_LINKINFO] = packed({IFLA_INFO_KIND: b"ipip\0", IFLA_INFO_DATA: data})
        body = head + packed(found)
        return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, port) + body

    def _name_of(self, state: dict[str, Any], index: int) -> str:
        """Return the name under which a device was made, which it may not have any more."""
        return next((name for name, each in state["devices"].items() if each["index"] == index), "")


def messages(datagram: bytes) -> Iterator[bytes]:
    """Yield each netlink message of a datagram."""
    while datagram:
        length = struct.unpack_from("=I", datagram)[0]
        yield datagram[:length]
        datagram = datagram[(length + 3) & ~3 :]


def is_ipip(message: bytes) -> bool:
    """Tell whether this makes or changes a device of kind ipip."""
    if _HEADER.unpack_from(message)[1] != RTM_NEWLINK:
        return False
    _, found = _split(message)
    return _kind(found) == b"ipip"


def _split(message: bytes) -> tuple[bytes, dict[int, bytes]]:
    start = _HEADER.size + _IFINFOMSG.size
    return message[_HEADER.size : start], attributes(message[start:])


def _kind(found: dict[int, bytes]) -> bytes:
    return attributes(found.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_KIND, b"").rstrip(b"\0")


def _name(found: dict[int, bytes]) -> str:
    return found.get(IFLA_IFNAME, b"").rstrip(b"\0").decode()


def _is_there(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


class Translated(socket.socket):
    """A netlink socket whose requests and answers go through `State`."""

    def send(self, data: Any, *arguments: Any) -> int:
        state = State(Path(os.environ[STATE]))
        sent = [state.request(each) if is_ipip(each) else each for each in messages(bytes(data))]
        super().send(b"".join(sent), *arguments)
        return len(data)

    def recv_into(self, buffer: Any, *_: Any) -> int:
        received = self.recv(65_536)
        state = State(Path(os.environ[STATE]))
        told = b"".join(
            answer + bytes(-len(answer) % 4)
            for each in messages(received)
            for answer in [state.answer(each) if _HEADER.unpack_from(each)[1] == RTM_NEWLINK else each]
        )
        buffer[: len(told)] = told
        return len(told)


def main() -> None:
    """Run the agent's command line on such a kernel."""
    from flannel_udp.cli.main import main as run
    from flannel_udp.host import rtnetlink

    names = {name: getattr(socket, name) for name in dir(socket)}
    vars(rtnetlink)["socket"] = SimpleNamespace(**{**names, "socket": Translated})
    sys.exit(run())


if __name__ == "__main__":
    main()
