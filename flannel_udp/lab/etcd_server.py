"""A real etcd for the lab and the tests: one process, or several as the members of one cluster."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flannel_udp.errors import FlannelError

READY_LINE = b"ready to serve client requests"
READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 5.0
_FIRST_PORT, _PORTS = 20_000, 12_000
# Processes that run side by side, a test run's, say, have numbers near each other, and begin far apart: what one has
# chosen, and its server has not bound yet, or has let go for a moment, no other one chooses.
_numbers = itertools.count(os.getpid() * 97)


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """The server's certificate and the authority that clients' certificates must come from."""

    certfile: Path
    keyfile: Path
    client_cafile: Path


class EtcdServer:
    """One etcd process. Everything it writes, its log too, is below `directory`; nothing of it is removed here.

    Clients are served at the `further` addresses as well. `command` starts etcd, so that it may be run inside a network
    namespace (``ip netns exec …``); ports are chosen among the free ones of the caller's namespace unless given.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "etcd",
        address: str = "127.0.0.1",
        further: Sequence[str] = (),
        client_port: int = 0,
        peer_port: int = 0,
        tls: EtcdTls | None = None,
        command: Sequence[str] = ("etcd",),
        arguments: Sequence[str] = (),
    ) -> None:
        if shutil.which(command[0]) is None:
            raise FlannelError(f"{command[0]} is not installed; on Debian and Ubuntu: apt-get install etcd-server")
        self.name = name
        scheme, port = "http" if tls is None else "https", client_port or free_port(address)
        self.endpoint, *self._further = (f"{scheme}://{host}:{port}" for host in (address, *further))
        self.peer_url = f"http://{address}:{peer_port or free_port(address)}"
        self._directory = directory
        self._tls = tls
        self._command = tuple(command)
        self._arguments = tuple(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def log_file(self) -> Path:
        """What etcd says."""
        return self._directory / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """The process id of the running etcd. Raises `FlannelError` if it does not run."""
        if self._process is None or self._process.poll() is not None:
            raise FlannelError(f"etcd {self.name} is not running; its log is {self.log_file}")
        return self._process.pid

    def start(self) -> None:
        """Start a cluster of one, or a stopped member again, and wait until it serves. Raises `FlannelError`."""
        self.spawn([self])
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def spawn(self, members: Sequence[EtcdServer]) -> None:
        """Start the process as one of `members`; it serves when most of them have started."""
        self._directory.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [*self._command, *self._flags(members), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )

    def _flags(self, members: Sequence[EtcdServer]) -> list[str]:
        flags = [
            f"--name={self.name}",
            f"--data-dir={self._directory / self.name}",
            f"--listen-client-urls={','.join([self.endpoint, *self._further])}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={','.join(f'{member.name}={member.peer_url}' for member in members)}",
        ]
        if self._tls is not None:
            flags += [
                f"--cert-file={self._tls.certfile}",
                f"--key-file={self._tls.keyfile}",
                f"--trusted-ca-file={self._tls.client_cafile}",
                "--client-cert-auth",
            ]
        return flags

    def wait_ready(self) -> None:
        """Wait until clients are served, as the log says: that works in another namespace and with TLS as well."""
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline_s:
            _ = self.pid  # raises if etcd has given up
            if READY_LINE in self.log_file.read_bytes()[self._log_start :]:
                return
            time.sleep(0.02)
        self.kill()
        raise FlannelError(f"etcd {self.name} was not ready within {READY_TIMEOUT_S:g} s; its log is {self.log_file}")

    def stop(self) -> None:
        """Stop it in good order; does nothing if it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.send_signal(signal.SIGCONT)  # a stopped process gets its SIGTERM only when it goes on
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """Stop it as a power cut would; does nothing if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def start_cluster(members: Sequence[EtcdServer]) -> None:
    """Start all members of one cluster and wait until all serve. Raises `FlannelError`, with none left running."""
    try:
        for member in members:
            member.spawn(members)
        for member in members:
            member.wait_ready()
    except BaseException:
        for member in members:
            member.kill()
        raise


def free_port(address: str) -> int:
    """Return a port that was free a moment ago, and that the kernel gives to nobody. Raises OSError if there is none.

    It is below those that connections get (net.ipv4.ip_local_port_range, 32768 on): else one of them, even one that
    waits for this very server, could take the port while the server is down. No two calls return the same.
    """
    for number in itertools.islice(_numbers, _PORTS):
        port = _FIRST_PORT + number % _PORTS
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
