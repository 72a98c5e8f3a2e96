"""What an agent hands over beside descriptors, as JSON; and the terms on which it does."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Self

from flannel_udp.model import Entry, Peer


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

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    @classmethod
    def parse(cls, document: Any) -> Self:
        """Return the terms of a document; what is missing or of another kind becomes a text that equals nothing."""
        given = document if isinstance(document, Mapping) else {}
        return cls(**{field.name: given.get(field.name, "(nothing)") for field in fields(cls)})

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
    """The state that comes with the descriptors, so that nothing has to wait for the registry."""

    version: str
    config: str
    """The network configuration, JSON."""
    network: Mapping[str, Any]
    """What the backend's `Transferable.state` says."""
    entry: Entry
    """The lease's key as it was last written."""
    expires_s: float | None
    """When the lease ends, by CLOCK_BOOTTIME; ``None`` for a reservation."""
    peers: Sequence[Peer]
    """The routes in force."""

    def format(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(
            {
                "version": self.version,
                "config": self.config,
                "network": self.network,
                "entry": {**asdict(self.entry), "value": base64.b64encode(self.entry.value).decode()},
                "expires_s": self.expires_s,
                "peers": [(str(peer.subnet), str(peer.public_ip)) for peer in self.peers],
            }
        ).encode()

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Return the state of such a document. Raises `ValueError`, `TypeError` or `KeyError`."""
        document = json.loads(raw)
        entry = document["entry"]
        expires_s = document["expires_s"]
        return cls(
            version=str(document["version"]),
            config=str(document["config"]),
            network=dict(document["network"]),
            entry=Entry(
                key=str(entry["key"]),
                value=base64.b64decode(entry["value"], validate=True),
                revision=int(entry["revision"]),
                lease_id=int(entry["lease_id"]),
            ),
            expires_s=None if expires_s is None else float(expires_s),
            peers=[Peer(IPv4Network(subnet), IPv4Address(address)) for subnet, address in document["peers"]],
        )
