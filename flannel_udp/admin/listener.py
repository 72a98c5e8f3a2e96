"""Unix sockets that others of this host come in by: mode 0600, one agent at a time, no file left behind."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from flannel_udp.errors import Claimed, FlannelError, UsageError

BACKLOG = 16
REST_S = 0.1
"""After one who could not be let in: as long as no descriptor is free it would fail at once, again and again."""
LOCK_S = 1.0
"""How long to wait for another agent that is making its socket just now."""
_LOCK_POLL_S = 0.01
_CONNECT_TIMEOUT_S = 0.5
_UCRED = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid


class FileId(NamedTuple):
    """Which file a path leads to."""

    device: int
    inode: int


class UnixListener:
    """A unix socket that listens at `path`, mode 0600; the file goes with it unless it was `left` to another process.

    `adopted` is a descriptor that another process has listened on there, with the file that it made: theirs until
    `become_owner`. Otherwise what a killed run left is taken over.

    May wait for a second and a half, so not for an event loop. Raises `Claimed` when another agent answers
    there, `FlannelError` if the socket cannot be made, `UsageError` for a path that no unix socket can have.
    """

    def __init__(self, path: Path, kind: int = socket.SOCK_STREAM, adopted: tuple[int, FileId] | None = None) -> None:
        self.path = path
        self._kind = kind
        self._replaced = asyncio.Event()
        self.left = adopted is not None
        if adopted is None:
            self.socket, self.made = _listen(path, kind)
        else:
            self.socket, self.made = socket.socket(fileno=adopted[0]), adopted[1]

    def become_owner(self) -> None:
        """Be the one that listens, for who asks by SO_PEERCRED, and whose file it is."""
        self.socket.listen(BACKLOG)
        self.left = False

    @property
    def stands(self) -> bool:
        """Whether its file is still there."""
        try:
            return _file_id(self.path) == self.made
        except OSError:
            return False

    def make_anew(self) -> tuple[socket.socket, FileId]:
        """Return another socket that listens at the path, for `replace`: the file is gone. As the constructor."""
        return _listen(self.path, self._kind)

    def replace(self, made: tuple[socket.socket, FileId]) -> None:
        """Listen on that from now on; the former socket is closed."""
        former = self.socket
        self.socket, self.made = made
        self._replaced.set()
        former.close()

    async def accept(self) -> socket.socket:
        """Return the next one that comes in, also if the socket is replaced meanwhile."""
        loop = asyncio.get_running_loop()
        while True:
            self._replaced.clear()
            self.socket.setblocking(False)
            accepting = asyncio.create_task(loop.sock_accept(self.socket))
            replaced = asyncio.create_task(self._replaced.wait())
            try:
                await asyncio.wait((accepting, replaced), return_when=asyncio.FIRST_COMPLETED)
                if accepting.done():
                    if not accepting.exception():
                        return accepting.result()[0]
                    await asyncio.wait((replaced,), timeout=REST_S)
            finally:
                for task in (accepting, replaced):
                    task.cancel()
                await asyncio.wait((accepting, replaced))

    def close(self) -> None:
        """Listen no more."""
        self.socket.close()
        if not self.left:
            _remove(self.path, self.made)


def peer_credentials(sock: socket.socket) -> tuple[int, int]:
    """Return pid and uid of the other end of a unix socket; of a listener, those of whoever called listen() last.

    The pid is 0 if the process lives in a pid namespace that we do not see.
    """
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def _listen(path: Path, kind: int) -> tuple[socket.socket, FileId]:
    """Return a socket that listens on `path`, mode 0600 from its first moment, and which file that is."""
    try:
        _make_directory(path.parent)
        with _locked(path, LOCK_S):
            _remove_stale(path, kind)
            listener = socket.socket(socket.AF_UNIX, kind)
            try:
                # Linux gives the file the mode of the socket it is bound from: no window as with a chmod afterwards.
                os.fchmod(listener.fileno(), 0o600)
                listener.bind(str(path))
                # Still under the lock: a socket that is bound and does not listen yet looks like a dead one.
                listener.listen(BACKLOG)
                return listener, _file_id(path)
            except BaseException:
                listener.close()
                raise
    except OSError as error:
        # Python itself refuses a path that is too long for sockaddr_un, without a number.
        if error.errno is None:
            raise UsageError(f"--control-socket={path}: {error}: choose a shorter one") from error
        raise FlannelError(f"cannot make the control socket {path}: {error.strerror}") from error


def _make_directory(directory: Path) -> None:
    """Make the directory 0755 whatever the umask: subnet.env, which everybody may read, is its usual neighbour."""
    if not directory.exists():
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)


@contextmanager
def _locked(path: Path, patience_s: float) -> Iterator[None]:
    """Let one agent at a time look at, remove and make this socket.

    The lock is a file of our own, mode 0600: anybody may lock a file or a directory that he may read. It is removed
    under the lock, so who gets one that is at its place no more tries again. Raises `FlannelError` when time is up.
    """
    lock = path.with_name(f".{path.name}.lock")
    until_s = time.monotonic() + patience_s
    while (descriptor := _try_lock(lock)) is None:
        if time.monotonic() >= until_s:
            raise FlannelError(f"another process holds {lock}: see who with 'fuser {lock}', and end it")
        time.sleep(_LOCK_POLL_S)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _try_lock(lock: Path) -> int | None:
    """Return the descriptor of the file, locked, ``None`` if somebody else has it."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), lock.lstat()):
            return descriptor
    os.close(descriptor)
    return None


def _file_id(path: Path) -> FileId:
    found = path.lstat()
    return FileId(found.st_dev, found.st_ino)


def _remove_stale(path: Path, kind: int) -> None:
    """Remove the socket of a killed run. Raises `FlannelError` if somebody listens, or if it is not a socket at all."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FlannelError(f"{path} exists and is not a socket: remove it or choose another --control-socket")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(_CONNECT_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except TimeoutError:
            # It listens and is too busy to accept, which a dead one cannot be.
            raise Claimed(
                f"another flannel-udp is running (on {path}) and does not answer: see which with 'fuser {path}', end it"
            ) from None
        pid, _ = peer_credentials(probe)
    raise Claimed(
        f"another flannel-udp is running (pid {pid}, on {path}): stop it first, or take its place with --takeover; "
        "for another overlay beside it choose another --control-socket and --subnet-file"
    )


def _remove(path: Path, made: FileId) -> None:
    """Remove our socket file, unless somebody put another in its place meanwhile.

    Where that cannot be told in no time it stays: the next run knows a dead one.
    """
    with suppress(OSError, FlannelError), _locked(path, 0.0):
        if _file_id(path) == made:
            path.unlink()
