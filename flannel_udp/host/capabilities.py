"""Give up every capability that the agent does not need, for good.

Capabilities belong to threads, not to the process (capabilities(7)), and a new thread has those of the one that starts
it. So this runs before gRPC, the data threads and the thread pool exist; later there would be no way to reach them all.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flannel_udp.errors import FlannelError

# Bit numbers of linux/capability.h.
CAP_DAC_OVERRIDE, CAP_SETPCAP, CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW = 1, 8, 10, 12, 13

KEPT = {
    CAP_NET_ADMIN: "CAP_NET_ADMIN",
    CAP_NET_RAW: "CAP_NET_RAW",
    CAP_NET_BIND_SERVICE: "CAP_NET_BIND_SERVICE",
}
"""What a running agent needs: to make flannel0 again and to set routes, socket buffers and firewall rules; for the raw
socket of ICMP answers and for iptables, which opens one; for a Backend.Port or health port below 1024."""

_VERSION_3 = 0x20080522  # linux/capability.h: two words a set
_WORDS = 2
# linux/prctl.h
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 23, 24, 38, 47
_PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 2, 4


class _Header(ctypes.Structure):
    """struct __user_cap_header_struct; pid 0 is the calling thread."""

    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    """struct __user_cap_data_struct: 32 bits of each set."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


class FileAccess(NamedTuple):
    """A file or folder that the agent will open later, and how: a mode of os.access."""

    path: Path
    mode: int


class Kept(NamedTuple):
    """The names of the capabilities that are left, and the file for which CAP_DAC_OVERRIDE is one of them."""

    names: list[str]
    foreign: Path | None

    def __str__(self) -> str:
        """Return the line for the log."""
        reason = f" (for {self.foreign}, which is another user's)" if self.foreign else ""
        return f"kept {', '.join(self.names)}{reason} and gave up all other capabilities; no_new_privs is set"


def drop_capabilities(files: Sequence[FileAccess]) -> Kept:
    """Keep `KEPT` only, in every set, for this thread, those it starts and the programs they run; return what is left.

    CAP_DAC_OVERRIDE stays as well if one of `files` belongs to another user and is out of reach without it. Sets
    no_new_privs. Raises `FlannelError` where the kernel refuses, and when other threads run already.
    """
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise FlannelError("cannot give up capabilities: other threads run already and would keep theirs")
    libc = ctypes.CDLL(None, use_errno=True)
    permitted = _permitted()
    _set(libc, permitted & _bits(KEPT), permitted)  # effective only: what can be opened like this?
    wanted, foreign = dict(KEPT), None
    if permitted >> CAP_DAC_OVERRIDE & 1:
        foreign = next((file.path for file in files if not _accessible(file)), None)
        if foreign is not None:
            wanted[CAP_DAC_OVERRIDE] = "CAP_DAC_OVERRIDE"
    kept = permitted & _bits(wanted)
    if permitted >> CAP_SETPCAP & 1:
        _set(libc, kept | 1 << CAP_SETPCAP, permitted)
        for bit in _known_bits(libc):
            if not kept >> bit & 1:
                _prctl(libc, _PR_CAPBSET_DROP, bit)
    _set(libc, kept, kept, inheritable=kept)
    # So that iptables and nft, which we run, have them too when we are not root.
    _prctl(libc, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for bit in wanted:
        if kept >> bit & 1:
            _prctl(libc, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, bit)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    return Kept([name for bit, name in wanted.items() if kept >> bit & 1], foreign)


def _bits(capabilities: dict[int, str]) -> int:
    return sum(1 << bit for bit in capabilities)


def _known_bits(libc: ctypes.CDLL) -> Iterator[int]:
    """Yield the capabilities that the kernel knows; /proc/sys, which names the last one, may be hidden."""
    for bit in range(32 * _WORDS):
        if libc.prctl(_PR_CAPBSET_READ, ctypes.c_ulong(bit), *[ctypes.c_ulong(0)] * 3) < 0:
            return  # EINVAL: there are no more
        yield bit


def _permitted() -> int:
    status = Path("/proc/thread-self/status").read_text(encoding="ascii", errors="replace")
    match = re.search(r"^CapPrm:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return int(match[1], 16) if match else 0


def _accessible(file: FileAccess) -> bool:
    """Whether we may, with the effective capabilities; what does not exist yet is made in the nearest folder."""
    path, mode = file
    while not path.exists() and path != path.parent:
        path, mode = path.parent, os.W_OK | os.X_OK
    return os.access(path, mode, effective_ids=True)


def _set(libc: ctypes.CDLL, effective: int, permitted: int, *, inheritable: int = 0) -> None:
    header = _Header(_VERSION_3, 0)
    data = (_Data * _WORDS)()
    for word in range(_WORDS):
        sets = (effective, permitted, inheritable)
        data[word] = _Data(*(bits >> 32 * word & 0xFFFFFFFF for bits in sets))
    _check("capset", libc.capset(ctypes.byref(header), ctypes.byref(data)))


def _prctl(libc: ctypes.CDLL, option: int, *arguments: int) -> None:
    # All five arguments are unsigned long, and those that an option does not use must be 0 (prctl(2)).
    words = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    _check(f"prctl option {option}", libc.prctl(option, *words))


def _check(call: str, result: int) -> None:
    if result != 0:
        raise FlannelError(f"cannot give up capabilities: {call}: {os.strerror(ctypes.get_errno())}")
