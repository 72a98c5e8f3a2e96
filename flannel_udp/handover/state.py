"""What an agent hands over beside descriptors, as lines of JSON; and the terms on which it does."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, astuple, dataclass, fields, is_dataclass, replace
from ipaddress import ip_address, ip_network
from itertools import islice
from typing import Any, BinaryIO, Self

from flannel_udp.admin.listener import FileId
from flannel_udp.model import Entry, Peer

PEERS_A_LINE = 100
_PAUSE_S = 0.0002


@dataclass(frozen=True, slots=True)
class Terms:
    """What must be equal in both agents, or the descriptors of the one are of no use to the other."""

    registry: str
    """``etcd PREFIX`` or ``file:PATH``."""
    interface_address: str
    public_ip: str
    workers: int
    offload: str
    """The flag's text."""
    datapath: str = "auto"
    """Likewise; an agent of an earlier version had none."""

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    @classmethod
    def parse(cls, document: Any) -> Self:
        """Return the terms of a document; what is missing or of another kind becomes a text that equals nothing."""
        given = document if isinstance(document, Mapping) else {}
        missing = {field.name: "(nothing)" if field.default is MISSING else field.default for field in fields(cls)}
        return cls(**{name: given.get(name, nothing) for name, nothing in missing.items()})

    def differences(self, other: Terms) -> list[str]:
        """Return one phrase for each term that the other agent wants otherwise."""
        words = {"interface_address": "address of the interface", "public_ip": "public IP"}
        return [
            f"its {words.get(name, name)} is {theirs}, ours {ours}"
            for name, ours in asdict(self).items()
            if (theirs := getattr(other, name)) != ours
        ]


@dataclass(frozen=True, slots=True)
class HandoverState:
    """The state that comes with the descriptors and the peers, so that nothing has to wait for the registry."""

    version: str
    config: str
    """The network configuration, JSON."""
    network: Mapping[str, Any]
    """What the backend's `Transferable.state` says."""
    registry: str
    """Where the registry is, for people: more than `Terms.registry`, since a cluster has many addresses."""
    entry: Entry
    """The lease's key as it was last written."""
    expires_s: float | None
    """When the lease ends, by CLOCK_BOOTTIME; ``None`` for a reservation."""
    files: Mapping[str, FileId]
    """Which files the unix sockets have made, by the descriptors' names."""

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "version": self.version,
            "config": self.config,
            "network": self.network,
            "registry": self.registry,
            "entry": {**asdict(self.entry), "value": base64.b64encode(self.entry.value).decode()},
            "expires_s": self.expires_s,
            "files": self.files,
        }

    @classmethod
    def parse(cls, document: Any) -> Self:
        """Return the state of a document; what it has beside is ignored.

        Raises `ValueError`, `TypeError`, `KeyError` or `AttributeError`.
        """
        entry, expires_s = document["entry"], document["expires_s"]
        host = entry.get("host")
        return cls(
            version=str(document["version"]),
            config=str(document["config"]),
            network=dict(document["network"]),
            registry=str(document["registry"]),
            entry=Entry(
                key=str(entry["key"]),
                value=base64.b64decode(entry["value"], validate=True),
                revision=int(entry["revision"]),
                lease_id=int(entry["lease_id"]),
                host=None if host is None else str(host),
            ),
            expires_s=None if expires_s is None else float(expires_s),
            files={str(name): FileId(*map(int, file)) for name, file in document["files"].items()},
        )


def write_state(file: BinaryIO, state: HandoverState, peers: Iterable[Peer]) -> None:
    """Write the state and the peers, in a thread: after every line, about a millisecond of work, all others may run."""
    file.write(_line(state.document()))
    rows = map(_row, peers)
    while part := list(islice(rows, PEERS_A_LINE)):
        file.write(_line(part))
        time.sleep(_PAUSE_S)  # merely to give up the GIL is to have it back before the event loop has woken


def read_state(file: BinaryIO) -> tuple[HandoverState, list[Peer]]:
    """Return what `write_state` wrote, each peer's hop as JSON has it.

    Raises as `HandoverState.parse`, or `RecursionError`.
    """
    state = HandoverState.parse(json.loads(file.readline()))
    rows = (row for line in file for row in json.loads(line))
    return state, [Peer(ip_network(subnet), ip_address(address), *hop) for subnet, address, *hop in rows]


def read_hops(peers: Iterable[Peer], hop_type: type | None) -> list[Peer]:
    """Return the peers of `read_state` with the hops that the backend made: see `Backend.hop_type`.

    Raises `TypeError` or `ValueError` for what is none.
    """
    if hop_type is None:
        return [replace(peer, hop=None) if peer.hop is not None else peer for peer in peers]
    if is_dataclass(hop_type):
        return [replace(peer, hop=hop_type(*peer.hop)) for peer in peers]
    return [replace(peer, hop=hop_type(peer.hop)) for peer in peers]


def _row(peer: Peer) -> tuple[Any, ...]:
    hop = peer.hop
    if hop is None:
        return str(peer.subnet), str(peer.public_ip)
    if is_dataclass(hop) and not isinstance(hop, type):
        hop = astuple(hop)
    return str(peer.subnet), str(peer.public_ip), hop


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"
