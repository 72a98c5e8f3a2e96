"""Keys of the lab's registry that make no sense: put there as if by somebody's mistake, found again, taken away.

Written with neither the registry's nor the agent's code, past every check of theirs; to a file under its lock all the
same, as the agents write it at the same time.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any, Protocol

from flannel_udp.errors import FlannelError, did_you_mean
from flannel_udp.files.atomic import replace_file
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.registry import Etcd, reservation

CONFIG = "config"
"""The key of the network configuration."""
NONSENSE = "poisoned"
"""What no address and no network is; by it `heal` knows what is ours."""
_FIELD = {True: "Network", False: "PublicIP"}
"""What is made nonsense of: in the network configuration, or in a lease."""


class Store(Protocol):
    """The keys below flannel's prefix: ``config``, and ``subnets/10.244.7.0-24`` without its first part."""

    def read(self) -> dict[str, dict[str, Any]]:
        """Return all that holds an object, by key."""
        ...

    def write(self, key: str, value: Mapping[str, Any] | None) -> None:
        """Write a value; it expires as the one before did. ``None``: remove the key."""
        ...


class EtcdStore:
    """Those in the lab's etcd."""

    def __init__(self, plan: Plan) -> None:
        self._etcd = Etcd(plan)

    def read(self) -> dict[str, dict[str, Any]]:
        """See `Store.read`."""
        found = {}
        for key, raw in self._etcd.read().items():
            try:
                value = json.loads(raw)
            except ValueError:
                continue
            if isinstance(value, dict):
                found[key.removeprefix("subnets/")] = value
        return found

    def write(self, key: str, value: Mapping[str, Any] | None) -> None:
        """See `Store.write`."""
        path = key if key == CONFIG else f"subnets/{key}"
        self._etcd.write(path, None if value is None else json.dumps(value, separators=(",", ":")))


class FileStore:
    """Those in the lab's file."""

    def __init__(self, plan: Plan) -> None:
        self._path = plan.registry_file

    def read(self) -> dict[str, dict[str, Any]]:
        """See `Store.read`."""
        document = json.loads(self._path.read_text(encoding="utf-8"))
        keys = {**(document.get("subnets") or {}), CONFIG: document.get("config")}
        return {key: value for key, value in keys.items() if isinstance(value, dict)}

    def write(self, key: str, value: Mapping[str, Any] | None) -> None:
        """See `Store.write`."""
        with self._locked():
            document = json.loads(self._path.read_text(encoding="utf-8"))
            holder = document if key == CONFIG else document.setdefault("subnets", {})
            if value is None:
                holder.pop(key, None)
            else:
                holder[key] = value
            replace_file(self._path, (json.dumps(document, indent=2) + "\n").encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._path.with_name(f"{self._path.name}.lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # who may open it may hold up everybody
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def store_of(plan: Plan) -> Store:
    """Return where the lab's registry is."""
    return EtcdStore(plan) if plan.registry == "etcd" else FileStore(plan)


def poison(lab: Lab, name: str) -> str:
    """Make nonsense of a key: ``config``, a host's lease, or a subnet; return what was done. Raises `FlannelError`."""
    store = store_of(lab.plan)
    held = store.read()
    key = _key_of(lab, name, held)
    field = _FIELD[key == CONFIG]
    store.write(key, {**held.get(key, {}), field: NONSENSE})
    return f"{key}: its {field} is {NONSENSE!r} now" if key in held else f"{key}: is there now, with nonsense in it"


def heal_poison(lab: Lab) -> list[str]:
    """Put the plan's values in the place of what `poison` wrote, or nothing; return what was wrong, in words.

    A lease is removed: its host has taken another one meanwhile, or takes the free subnet again.
    """
    store = store_of(lab.plan)
    planned: dict[str, Mapping[str, Any]] = {CONFIG: dict(lab.plan.config)}
    planned |= {subnet.replace("/", "-"): reservation(of) for subnet, of in lab.plan.reservations.items()}
    healed = []
    for key, value in store.read().items():
        if value.get(_FIELD[key == CONFIG]) == NONSENSE:
            store.write(key, planned.get(key))
            healed.append(f"{key}: {'is as it was' if key in planned else 'the nonsense is gone'}")
    return healed


def lease_key(host: Host, held: Iterable[str]) -> str:
    """Return the key of a host's lease, of those that the registry holds. Raises `FlannelError` where it has none."""
    own = {f"{prefix.network_address}-{prefix.prefixlen}" for prefix in host.prefixes}
    for key in held:
        if own & set(key.split("&")):
            return key
    raise FlannelError(f"{host.name} has no lease in the registry")


def _key_of(lab: Lab, name: str, held: Mapping[str, object]) -> str:
    """Return the key that somebody means. Raises `FlannelError`."""
    if name in held:
        return name
    if name in lab.plan.host_names:
        return lease_key(lab.host(name), held)
    try:
        subnet = ip_network(name.removeprefix("subnets/").replace("-", "/"))
    except ValueError:
        known = [*held, *lab.plan.host_names]
        raise FlannelError(
            f"{name} is no key of the registry, no host and no subnet: there are {', '.join(known)}"
            f"{did_you_mean(name, known)}"
        ) from None
    return f"{subnet.network_address}-{subnet.prefixlen}"
