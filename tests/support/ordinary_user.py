"""An ordinary user for tests that run as root: the uid of nobody, with a folder of its own, and no group of root's."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import flannel_udp
from flannel_udp.host.privileges import TUN_DEVICE
from tests.support.patience import PATIENCE_S

UID = 65534
_NEEDED = {Path(sys.base_prefix), Path(sys.prefix), Path(flannel_udp.__file__).parents[1]}
"""What our command is run from: interpreter, environment, package."""


class User:
    """Whoever runs commands; `folder` is where his sessions' files are."""

    def __init__(self, folder: Path, uid: int = UID) -> None:
        self.folder, self._uid = folder, uid
        self.env = {
            **os.environ,
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "HISTFILE": "",
        }

    def words(self, *command: str) -> list[str]:
        """Return what runs the command as this user.

        What he could not read, as it is in root's home, is where it was for this command, and for it only; likewise
        /dev/net/tun, which some machines keep for root.
        """
        drop = f"setpriv --reuid {self._uid} --regid {self._uid} --clear-groups"
        return ["unshare", "--mount", "sh", "-ec", f'{_opened()}exec {drop} -- "$@"', "sh", *command]

    def lab(self, *words: str) -> list[str]:
        """Return what runs `flannel-udp lab …` as this user."""
        return self.words(sys.executable, "-P", "-m", "flannel_udp", "lab", *words)

    def run(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=4 * PATIENCE_S, check=False)


@contextmanager
def ordinary_user(uid: int = UID) -> Iterator[User]:
    """Yield a user; what his commands left in his folder fails the test.

    Skips it, saying why, where the kernel lets none have namespaces of his own.
    """
    folder = Path(tempfile.mkdtemp(prefix="flannel-udp-user-"))
    os.chown(folder, uid, uid)
    user = User(folder, uid)
    try:
        tried = user.run(user.words("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "true"))
        if tried.returncode != 0:
            pytest.skip(f"an ordinary user may make no user namespaces here: {tried.stderr.strip()}")
        yield user
        assert sorted(folder.iterdir()) == []
    finally:
        for holder in folder.glob("*/holder"):
            with suppress(ValueError, ProcessLookupError):
                os.kill(int(holder.read_text()), signal.SIGKILL)
        shutil.rmtree(folder)


def _opened() -> str:
    """Return the lines of a shell that let everybody reach what is needed, in a mount namespace of the shell's own."""
    closed = {path: folder for path in _NEEDED if (folder := _closed_folder(path)) is not None}
    aside = "/mnt"  # only there to be covered: the namespace ends with the command
    lines = [f"mount -t tmpfs -o mode=755 opened {aside}"] if closed else []
    for number, path in enumerate(closed):
        lines += [f"mkdir {aside}/{number}", f"mount --bind {shlex.quote(str(path))} {aside}/{number}"]
    lines += [
        f"mount -t tmpfs -o mode=755 opened {shlex.quote(str(folder))}" for folder in sorted(set(closed.values()))
    ]
    for number, path in enumerate(closed):
        lines += [f"mkdir -p {shlex.quote(str(path))}", f"mount --bind {aside}/{number} {shlex.quote(str(path))}"]
    if TUN_DEVICE.exists() and TUN_DEVICE.stat().st_mode & 0o006 != 0o006:
        lines.append(f"mount -t tmpfs -o mode=755 opened {TUN_DEVICE.parent}")
        # Where the shell is in a user namespace that may not, nothing that follows needs it.
        lines.append(f"mknod --mode=666 {TUN_DEVICE} c 10 200 2>/dev/null || :")
    return "".join(f"{line}\n" for line in lines)


def _closed_folder(path: Path) -> Path | None:
    """Return the first folder on the way there that is not everybody's to enter."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)
