"""Three etcd members, and what a fault test does to them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flannel_udp.lab.etcd_server import EtcdServer, start_cluster
from flannel_udp.lab.netns import wait_until
from tests.support.patience import PATIENCE_S
from tests.support.standstill import freeze

NAMES = ("one", "two", "three")


class EtcdCluster:
    """Members on loopback, or with `addresses` and `commands` wherever these are (``ip netns exec NAME etcd``).

    A context manager: all members run inside the block and none afterwards; their 120 MB each are removed.
    """

    def __init__(
        self,
        directory: Path,
        *,
        addresses: Sequence[str] = ("127.0.0.1",) * 3,
        commands: Sequence[Sequence[str]] = (("etcd",),) * 3,
        ports: tuple[int, int] = (0, 0),
        arguments: Sequence[str] = (),
    ) -> None:
        self._directory = directory
        self.members = [
            EtcdServer(
                directory,
                name=name,
                address=address,
                client_port=ports[0],
                peer_port=ports[1],
                command=command,
                arguments=arguments,
            )
            for name, address, command in zip(NAMES, addresses, commands, strict=True)
        ]

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(member.endpoint for member in self.members)

    def __enter__(self) -> Self:
        start_cluster(self.members)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for member in self.members:
            member.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def leader(self) -> EtcdServer:
        """Return the member that leads now, once all agree: who stood still has yet to hear of another leader."""
        found: list[dict[str, Any]] = []

        def agreed() -> bool:
            found[:] = json.loads(self.ctl("endpoint", "status", "--write-out=json"))
            leaders = {item["Status"].get("leader", 0) for item in found}
            return len(leaders) == 1 and 0 not in leaders

        assert wait_until(agreed, PATIENCE_S), found
        leader = found[0]["Status"]["leader"]
        endpoint = next(item["Endpoint"] for item in found if item["Status"]["header"]["member_id"] == leader)
        return next(member for member in self.members if member.endpoint == endpoint)

    def follower(self) -> EtcdServer:
        """Return a member that does not lead now."""
        leader = self.leader()
        return next(member for member in self.members if member is not leader)

    def ctl(self, *arguments: str, through: EtcdServer | None = None) -> str:
        """Run etcd's own client and return what it prints. By itself it waits 2 and 5 s only."""
        endpoints = self.endpoints if through is None else (through.endpoint,)
        done = subprocess.run(
            [
                *("etcdctl", f"--endpoints={','.join(endpoints)}", "--dial-timeout=60s", "--command-timeout=60s"),
                *arguments,
            ],
            env=os.environ | {"ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def revision(self, through: EtcdServer) -> int:
        """Return the store's revision."""
        answer: dict[str, Any] = json.loads(self.ctl("get", "no such key", "--write-out=json", through=through))
        revision: int = answer["header"]["revision"]
        return revision

    def compact(self, through: EtcdServer) -> None:
        """Drop the history up to now."""
        self.ctl("compaction", str(self.revision(through)), through=through)

    def restart(self, member: EtcdServer) -> None:
        """Start a member again that was killed."""
        member.spawn(self.members)
        member.wait_ready()

    def wipe(self, member: EtcdServer) -> None:
        """Remove the data of a member that was killed."""
        shutil.rmtree(self._directory / member.name)


def stop(member: EtcdServer) -> None:
    """Let a member neither answer nor hang up."""
    freeze(member.pid)


def go_on(member: EtcdServer) -> None:
    """Let it answer again."""
    os.kill(member.pid, signal.SIGCONT)
