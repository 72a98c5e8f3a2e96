"""Labs of an ordinary user: each command goes into namespaces of his own, where he is root, and goes on as root's do.

    command ── enter() ──┬── child: inside; does what the command does
                         └── parent: passes signals on, waits, ends the holder if no lab is left, ends as the child

The namespaces live as long as their holder (module `holder`), a process that the first command starts. Where it is says
the user's folder, $XDG_RUNTIME_DIR/flannel-udp or /tmp/flannel-udp-UID, by locks (flock(2)) that end with who has them:

    the folder itself   shared: a command is inside; exclusive: the holder is being started or ended
    holder              exclusive: the holder lives; in it its process id
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from flannel_udp.errors import FlannelError
from flannel_udp.lab import libc
from flannel_udp.lab.holder import NAMESPACES, become_holder
from flannel_udp.lab.lab import lab_names
from flannel_udp.lab.netns import is_readable

_HOLDER = "holder"
_KEPT = stat.S_ISVTX
"""What tells whoever tidies /tmp up that a file is to stay, however old it is (XDG Base Directory Specification)."""
_END_S = 10.0
_LOCK_S = 0.05
"""How often a lock is asked for that somebody has."""
_OLDEST_LINUX = (5, 8)  # setns(2) by a pidfd
_SI_KERNEL = 0x80  # <asm-generic/siginfo.h>: of a signal that a terminal has sent, to all of its foreground
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_WAITED_FOR = (*_PASSED_ON, signal.SIGCHLD)
_LIMITS = (
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give {python} an AppArmor profile with `userns,`",
    ),
)
"""What a distribution or its administrator may have set, below /proc/sys; the value that forbids; what allows again."""


def enter() -> None:
    """Go on inside the user's namespaces, unless we are root: then nothing happens.

    Returns in a child process; the parent ends with what the child ended with. Raises `FlannelError` where the kernel
    has no user namespaces for us, or our folder is somebody else's.
    """
    if os.geteuid() == 0:
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [*_WAITED_FOR, signal.SIGTTOU])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever started us may have ignored it: nobody could be waited for
    try:
        place = _HeldFolder.open()
        in_front = _is_in_front()
        try:
            _join(place.holder)
            interrupted = signal.sigpending() & set(_PASSED_ON)
            child = None if interrupted else os.fork()  # a PID namespace is for children only (setns(2))
        except BaseException:
            place.abandon()
            raise
        if child == 0:
            place.close()
            libc.call("prctl", libc.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # the two are one command
            return
        code = 128 + min(interrupted) if child is None else _wait_for(child)
        if in_front:
            # A shell inside has taken the terminal, and could not give it back to a group that it does not see.
            with suppress(OSError):  # it was closed
                os.tcsetpgrp(0, os.getpgrp())
        place.leave()
        raise SystemExit(code)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_in_front() -> bool:
    """Tell whether we are what a terminal has in the foreground."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # none there
        return False


def _join(holder: int) -> None:
    """Enter the holder's namespaces, and the folder again where we were. Raises `FlannelError`."""
    try:
        folder = Path.cwd()
    except OSError:  # it was removed
        folder = Path("/")
    try:
        libc.call("setns", holder, NAMESPACES)
    except OSError as error:
        raise FlannelError(f"cannot enter the namespaces of this user's labs: {error.strerror}") from None
    with suppress(OSError):  # it was removed, or is in a part of /run that is not shown
        os.chdir(folder)


def _wait_for(child: int) -> int:
    """Pass on the signals that only we get, until the child has ended; return its exit code, as a shell has it."""
    while True:
        got = signal.sigwaitinfo(_WAITED_FOR)
        if got.si_signo != signal.SIGCHLD:
            if got.si_code != _SI_KERNEL:
                os.kill(child, got.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code


class _HeldFolder:
    """The user's folder, locked shared, with a living holder."""

    def __init__(self, path: Path, folder: int, holder: int, *, started: bool) -> None:
        self.holder = holder
        """A pidfd."""
        self._name, self._folder = path.name, folder
        self._started = started
        """Whether we have started the holder."""
        # By descriptors: where we go, /run is another one.
        self._beside = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    @classmethod
    def open(cls) -> _HeldFolder:
        """Open it, and start the holder if there is none. Raises `FlannelError`."""
        path, started = _path(), False
        while True:
            folder = _open_folder(path)
            _lock(folder, fcntl.LOCK_SH)
            holder = _find_holder(folder)
            if holder is not None:
                return cls(path, folder, holder, started=started)
            _lock(folder, fcntl.LOCK_EX)  # which lets the other one go for a moment
            if os.fstat(folder).st_nlink and _find_holder(folder) is None:
                try:
                    _start_holder(folder)
                except BaseException:
                    _remove(folder)
                    path.rmdir()
                    raise
                started = True
            os.close(folder)

    def leave(self) -> None:
        """End the holder, and remove the folder, if no lab is left and nobody else is inside.

        Raises `FlannelError` if the holder has ended before.
        """
        killed = is_readable(self.holder, 0.0)
        if self._are_alone() and (killed or not lab_names()):
            self._end()
        self.close()
        if killed:
            raise FlannelError("the labs of this user are gone: the process that held them was ended")

    def abandon(self) -> None:
        """End the holder, and remove the folder, if we have started it and nobody else is inside: we are not either."""
        if self._started and self._are_alone():
            self._end()
        self.close()

    def _are_alone(self) -> bool:
        """Tell whether nobody else is inside; then nobody comes in either until we `close`."""
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _end(self) -> None:
        """End the holder, if it lives, and remove the folder."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.holder, signal.SIGKILL)
            is_readable(self.holder, _END_S)
        _remove(self._folder)
        with suppress(OSError):  # systemd was faster, with the user's last session, or somebody put something there
            os.rmdir(self._name, dir_fd=self._beside)

    def close(self) -> None:
        """Let go of everything."""
        for fd in (self._folder, self._beside, self.holder):
            os.close(fd)


# The folder


def _path() -> Path:
    """Return where the user's folder is: at his session's place if he has one, else in /tmp."""
    uid = os.geteuid()
    for place in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{uid}"):
        with suppress(OSError):
            if place and (found := Path(place).lstat()).st_uid == uid and stat.S_ISDIR(found.st_mode):
                return Path(place, "flannel-udp")
    return Path(f"/tmp/flannel-udp-{uid}")  # noqa: S108 - used only if it is ours alone


def _open_folder(path: Path) -> int:
    """Make the folder if need be, and open it. Raises `FlannelError` unless it is ours, and nobody else's to write."""
    while True:
        try:
            path.mkdir(0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise FlannelError(
                f"cannot make {path}, which is to say where this user's labs are: {error.strerror}; "
                "set XDG_RUNTIME_DIR to a folder of his that he may write"
            ) from None
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # whoever left last has just removed it
            continue
        except OSError:
            raise _foreign(path) from None
        found = os.fstat(folder)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise _foreign(path)
        return folder


def _lock(folder: int, kind: int) -> None:
    """Wait for a lock; what would end us does so meanwhile, though signals are blocked."""
    while True:
        try:
            fcntl.flock(folder, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if (got := signal.sigtimedwait(_PASSED_ON, _LOCK_S)) is not None:
                raise SystemExit(128 + got.si_signo) from None
        else:
            return


def _foreign(path: Path) -> FlannelError:
    return FlannelError(
        f"{path} is not a folder of this user's that nobody else may read, and so cannot say where his labs are: "
        "remove it, or set XDG_RUNTIME_DIR to a folder of his"
    )


def _remove(folder: int) -> None:
    """Remove what is in the folder."""
    with suppress(FileNotFoundError):
        os.unlink(_HOLDER, dir_fd=folder)


# The holder


def _find_holder(folder: int) -> int | None:
    """Return the process that holds the namespaces (a pidfd), ``None`` if there is none."""
    try:
        file = os.open(_HOLDER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: to look at the same time is no contradiction
    except BlockingIOError:
        with suppress(ProcessLookupError, ValueError):  # it ends; it was never started whole
            return os.pidfd_open(int(os.read(file, 20)))
    finally:
        os.close(file)
    return None


def require_linux(release: str) -> None:
    """Raise `FlannelError` if a kernel of this release (uname(2)) cannot let us into the holder's namespaces."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is not None and tuple(map(int, found.groups())) < _OLDEST_LINUX:
        raise FlannelError(f"a lab without root needs Linux 5.8 or later, and this is {release}: run it as root")


def _start_holder(folder: int) -> None:
    """Make the namespaces, and the process that keeps them. Raises `FlannelError`."""
    require_linux(os.uname().release)
    with suppress(FileNotFoundError):
        os.unlink(_HOLDER, dir_fd=folder)
        sys.stderr.write("flannel-udp: earlier labs of this user are gone: the process that held them was ended\n")
    file = os.open(_HOLDER, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _KEPT | 0o600, dir_fd=folder)
    fcntl.flock(file, fcntl.LOCK_EX)  # with the descriptor the holder gets the lock
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _make_namespaces(file)
        except FlannelError as error:
            os.write(tell, str(error).encode())
        except Exception as error:  # our parent would wait for a holder for ever
            os.write(tell, f"cannot start the process that holds this user's labs: {error}".encode())
        finally:
            os._exit(1)
    os.close(tell)
    os.close(file)
    with os.fdopen(told) as words:
        fault = words.read()  # until the holder has become a program of its own
    os.waitpid(child, 0)
    if fault:
        raise FlannelError(fault)


def _make_namespaces(file: int) -> NoReturn:
    """In a process for this alone: make them, start the holder as the first one inside, write down which it is."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        libc.call("unshare", NAMESPACES)
        # Who maps no id but his own needs no right for it, and must do without setgroups(2) (user_namespaces(7)).
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1\n")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1\n")
    except OSError as error:
        raise FlannelError(_why_not(error)) from None
    begin, known = os.pipe()
    holder = os.fork()
    if holder == 0:
        os.close(known)
        if os.read(begin, 1):  # else nobody knows of us
            become_holder(file)
        os._exit(1)
    os.write(file, f"{holder}\n".encode())
    os.write(known, b".")
    os._exit(0)


def _why_not(error: OSError) -> str:
    """Return why an ordinary user may have no namespaces here, and what allows it."""
    what = "a lab without root needs user namespaces, and here an ordinary user may make none"
    for name, forbids, remedy in _LIMITS:
        with suppress(OSError):
            if Path("/proc/sys", name).read_text().strip() == forbids:
                setting = f"{name.replace('/', '.')}={forbids}"
                return f"{what} ({setting}): as root, {remedy.format(python=os.path.realpath(sys.executable))}"
    if error.errno == errno.ENOSPC:
        return f"{what} more (user.max_user_namespaces, user.max_net_namespaces): end some, or raise the limit as root"
    if error.errno == errno.EINVAL:
        return f"{what}: the kernel is built without them (CONFIG_USER_NS); run it as root"
    return f"{what} ({error.strerror}): a chroot, or a container's seccomp profile, forbids it; run it as root"
