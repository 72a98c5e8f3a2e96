"""Unix sockets that others of this host come in by: mode 0600, one agent at a time, no file left behind."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flannel_udp.errors import FlannelError, UsageError

BACKLOG = 16
_CONNECT_TIMEOUT_S = 1.0
_UCRED = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid


class UnixListener:
    """A unix socket that listens at `path`, mode 0600; the file goes with it unless it was `left` to another process.

    `adopted` is a descriptor that another process has listened on there. Otherwise what a killed run left is taken
    over. Raises `FlannelError` when another agent answers there or the socket cannot be made, `UsageError` for a path
    that no unix socket can have.
    """

    def __init__(self, path: Path, kind: int = socket.SOCK_STREAM, adopted: int | None = None) -> None:
        self._path = path
        self.left = False
        if adopted is None:
            self.socket, self._made = _listen(path, kind)
        else:
            self.socket, self._made = socket.socket(fileno=adopted), path.lstat()
            self.socket.listen(BACKLOG)  # once more, so that SO_PEERCRED tells our pid

    def close(self) -> None:
        """Listen no more."""
        self.socket.close()
        if not self.left:
            _remove(self._path, self._made)


def peer_credentials(sock: socket.socket) -> tuple[int, int]:
    """Return pid and uid of the other end of a unix socket; of a listener, those of whoever called listen() last.

    The pid is 0 if the process lives in a pid namespace that we do not see.
    """
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def _listen(path: Path, kind: int) -> tuple[socket.socket, os.stat_result]:
    """Return a socket that listens on `path`, mode 0600 from its first moment, and which file that is."""
    try:
        _make_directory(path.parent)
        with _locked(path.parent):
            _remove_stale(path, kind)
            listener = socket.socket(socket.AF_UNIX, kind)
            try:
                # Linux gives the file the mode of the socket it is bound from: no window as with a chmod afterwards.
                os.fchmod(listener.fileno(), 0o600)
                listener.bind(str(path))
                # Still under the lock: a socket that is bound and does not listen yet looks like a dead one.
                listener.listen(BACKLOG)
                return listener, path.lstat()
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
def _locked(directory: Path) -> Iterator[None]:
    """Let one agent at a time look at, remove and make sockets here; the lock is the directory, so no file is left."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
            raise FlannelError(f"another flannel-udp is running (on {path}) and does not answer") from None
        pid, _ = peer_credentials(probe)
    raise FlannelError(f"another flannel-udp is running (pid {pid}, on {path}): stop it first")


def _remove(path: Path, made: os.stat_result) -> None:
    """Remove our socket file, unless somebody put another in its place meanwhile."""
    with suppress(FileNotFoundError), _locked(path.parent):
        now = path.lstat()
        if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
            path.unlink()
