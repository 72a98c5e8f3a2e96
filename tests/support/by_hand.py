"""A lab's registry, changed by hand as an operator or a foreign flanneld would: no code of our registries runs here."""

from __future__ import annotations

import fcntl
import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Node
from tests.support.patience import PATIENCE_S

PREFIX = "/coreos.com/network"
ETCDCTL_S = 60
"""How long etcdctl waits; by itself it waits 2 and 5 s only, too little on a busy machine."""


class ByHand(ABC):
    """Keys are the last part of the path: ``10.244.1.0-24``; values are JSON text."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    @abstractmethod
    def subnets(self) -> dict[str, str]:
        """Return all entries."""

    @abstractmethod
    def put(self, key: str, value: str) -> None:
        """Write an entry, without a lease: a reservation."""

    @abstractmethod
    def put_leased(self, key: str, value: str) -> None:
        """Write an entry under a lease of an hour, as another host would."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete an entry."""

    @abstractmethod
    def configure(self, config: Mapping[str, Any]) -> None:
        """Write the network configuration."""

    @abstractmethod
    def unconfigure(self) -> None:
        """Remove the network configuration."""

    def choose_backend(self, kind: str) -> None:
        """Write the lab's network configuration with a backend of this type, and none of its options."""
        self.configure({**self._lab.plan.config, "Backend": {"Type": kind}})


class FileByHand(ByHand):
    """The registry file, edited under its lock and replaced by a rename; another one than the lab's where given."""

    def __init__(self, lab: Lab, path: Path | None = None) -> None:
        super().__init__(lab)
        self.path = path or lab.plan.registry_file

    def subnets(self) -> dict[str, str]:
        entries: dict[str, Any] = json.loads(self.path.read_text())["subnets"]
        return {key: json.dumps(value) for key, value in entries.items()}

    def put(self, key: str, value: str) -> None:
        with self.document() as document:
            document["subnets"][key] = json.loads(value)

    def put_leased(self, key: str, value: str) -> None:
        expires = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.put(key, json.dumps(json.loads(value) | {"Expires": expires, "Owner": "0badcafe-00000001"}))

    def delete(self, key: str) -> None:
        with self.document() as document:
            del document["subnets"][key]

    def configure(self, config: Mapping[str, Any]) -> None:
        with self.document() as document:
            document["config"] = config

    def unconfigure(self) -> None:
        with self.document() as document:
            del document["config"]

    @contextmanager
    def document(self) -> Iterator[dict[str, Any]]:
        """Yield what the file says, and write what the block makes of it; agents wait meanwhile."""
        with self.path.with_name(f"{self.path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            document = json.loads(self.path.read_text())
            yield document
            self.replace(json.dumps(document))

    def replace(self, text: str) -> None:
        """Replace the whole file."""
        edited = self.path.with_suffix(".edited")
        edited.write_text(text)
        edited.replace(self.path)


def etcdctl_command(endpoint: str, *arguments: str, timeout_s: int = ETCDCTL_S) -> list[str]:
    """Return how to run etcdctl."""
    flags = [f"--endpoints={endpoint}", f"--dial-timeout={timeout_s}s", f"--command-timeout={timeout_s}s"]
    return ["env", "ETCDCTL_API=3", "etcdctl", *flags, *arguments]


@contextmanager
def kept_alive(node: Node, keep_alive: Sequence[str]) -> Iterator[None]:
    """Have a lease kept alive by this command of etcdctl's: a short one, until whoever is to keep it has started."""
    with node.popen(keep_alive, stdout=subprocess.DEVNULL) as keeper:
        try:
            yield
        finally:
            keeper.terminate()


class EtcdByHand(ByHand):
    """etcd through its own client, etcdctl, in the namespace of the underlay's bridge."""

    def etcdctl(self, *arguments: str, stdin: str = "") -> str:
        """Run etcdctl and return what it prints."""
        return self._lab.net.run(self._command(*arguments), stdin=stdin, timeout_s=PATIENCE_S).stdout

    def _command(self, *arguments: str) -> list[str]:
        return etcdctl_command(self._lab.plan.etcd_endpoint, *arguments)

    def subnets(self) -> dict[str, str]:
        lines = self.etcdctl("get", "--prefix", f"{PREFIX}/subnets/").splitlines()
        keys = [key.removeprefix(f"{PREFIX}/subnets/") for key in lines[::2]]
        return dict(zip(keys, lines[1::2], strict=True))

    def put(self, key: str, value: str) -> None:
        self.etcdctl("put", f"{PREFIX}/subnets/{key}", value)

    def put_leased(self, key: str, value: str) -> None:
        lease = self.etcdctl("lease", "grant", "3600").split()[1]
        self.etcdctl("put", f"--lease={lease}", f"{PREFIX}/subnets/{key}", value)

    @contextmanager
    def short_leases(self, entries: Mapping[str, str], life_s: int) -> Iterator[None]:
        """Write entries, each under a lease of so many seconds, which runs out in the block only if etcd does.

        Whoever has taken them by its end keeps them alive: on a busy machine agents take long to start.
        """
        with ExitStack() as keeping:
            for key, value in entries.items():
                lease = self.etcdctl("lease", "grant", str(life_s)).split()[1]
                self.etcdctl("put", f"--lease={lease}", f"{PREFIX}/subnets/{key}", value)
                keeping.enter_context(kept_alive(self._lab.net, self._command("lease", "keep-alive", lease)))
            yield

    def delete(self, key: str) -> None:
        assert self.etcdctl("del", f"{PREFIX}/subnets/{key}").strip() == "1"

    def configure(self, config: Mapping[str, Any]) -> None:
        self.etcdctl("put", f"{PREFIX}/config", json.dumps(config))

    def unconfigure(self) -> None:
        self.etcdctl("del", f"{PREFIX}/config")


def by_hand(lab: Lab) -> ByHand:
    """Return the lab's registry."""
    return EtcdByHand(lab) if lab.plan.registry == "etcd" else FileByHand(lab)
