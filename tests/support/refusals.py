"""System calls that fail: a seccomp filter answers chosen ones with an error, in one thread or process. Needs no root.

The kernel itself refuses the call before it does anything, which is what the packet path meets when memory runs out
or a policy forbids something.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import struct
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# asm/unistd.h
_NUMBERS: Mapping[str, Mapping[str, int]] = {
    "x86_64": {
        "read": 0,
        "write": 1,
        "ioctl": 16,
        "writev": 20,
        "socket": 41,
        "sendto": 44,
        "setsockopt": 54,
        "fsync": 74,
        "recvmmsg": 299,
        "sendmmsg": 307,
        "epoll_create1": 291,
        "epoll_wait": 232,
        "timerfd_create": 283,
        "eventfd2": 290,
        "clone3": 435,
    },
    "aarch64": {
        "read": 63,
        "write": 64,
        "ioctl": 29,
        "writev": 66,
        "socket": 198,
        "sendto": 206,
        "setsockopt": 208,
        "fsync": 82,
        "recvmmsg": 243,
        "sendmmsg": 269,
        "epoll_create1": 20,
        "epoll_wait": 22,  # glibc: epoll_pwait
        "timerfd_create": 85,
        "eventfd2": 19,
        "clone3": 435,
    },
}
# linux/bpf_common.h, linux/seccomp.h, linux/prctl.h
_LOAD_WORD, _EQUALS, _AT_LEAST, _HAS_A_BIT_OF, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000  # the errno is in the lower half of _REFUSE
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_NUMBER_AT, _ARGUMENTS_AT, _ARGUMENT_BYTES = 0, 16, 8  # struct seccomp_data; little-endian, as both machines are


def number_of(name: str) -> int:
    """Return the number that a system call has on this machine."""
    return _NUMBERS[platform.machine()][name]


def thread_waits_in(name: str) -> bool:
    """Tell whether a thread of this process waits in that system call."""
    calls = [path.read_text() for path in Path("/proc/self/task").glob("*/syscall")]
    return any(call.startswith(f"{number_of(name)} ") for call in calls)


@dataclass(frozen=True)
class Refusal:
    """Calls of `name` fail with `error` where each argument in `where` has that value (lower 32 bits).

    An argument in `with_bits` must have one of those bits, one in `at_least` that value or a greater one.
    """

    name: str
    error: int
    where: Mapping[int, int] = field(default_factory=dict)
    with_bits: Mapping[int, int] = field(default_factory=dict)
    at_least: Mapping[int, int] = field(default_factory=dict)


NO_THREAD = Refusal("clone3", errno.EAGAIN)
"""What a limit of tasks answers to who wants a thread."""


def refused(refusals: Sequence[Refusal], body: Callable[[], object]) -> None:
    """Run `body` in a thread of its own, in which the kernel refuses these calls; raise what it raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            _install(refusals)
            body()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def wrapper(refusal: Refusal) -> tuple[str, ...]:
    """Return a command that runs the one behind it as a process in which the kernel refuses these calls."""
    return (sys.executable, __file__, json.dumps(asdict(refusal)))


def _run_wrapped(refusal: str, command: list[str]) -> None:
    wanted: dict[str, Any] = json.loads(refusal)
    for name in ("where", "with_bits", "at_least"):  # JSON's keys are text
        wanted[name] = {int(argument): value for argument, value in wanted[name].items()}
    _install([Refusal(**wanted)])
    os.execvp(command[0], command)  # noqa: S606 - no shell is wanted


class _Program(ctypes.Structure):
    _fields_ = (("n", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _install(refusals: Sequence[Refusal]) -> None:
    """Put the filter on the calling thread; nothing takes it off again."""
    code = b"".join(map(_rule, refusals)) + _instruction(_RETURN, _ALLOW)
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    # Without CAP_SYS_ADMIN a thread may filter itself once it has given up to gain rights by execve (seccomp(2)).
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program))):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


def _rule(refusal: Refusal) -> bytes:
    """Return the instructions that refuse such calls and let all others pass on to what follows."""
    tests = [(_NUMBER_AT, _EQUALS, number_of(refusal.name))]
    tests += [(_argument_at(i), _EQUALS, value) for i, value in refusal.where.items()]
    tests += [(_argument_at(i), _HAS_A_BIT_OF, bits) for i, bits in refusal.with_bits.items()]
    tests += [(_argument_at(i), _AT_LEAST, value) for i, value in refusal.at_least.items()]
    code = b""
    for number, (place, test, value) in enumerate(tests):
        after = 2 * (len(tests) - number) - 1  # instructions from behind this test to the end of the rule
        code += _instruction(_LOAD_WORD, place) + _instruction(test, value, if_not=after)
    return code + _instruction(_RETURN, _REFUSE | refusal.error)


def _argument_at(i: int) -> int:
    return _ARGUMENTS_AT + i * _ARGUMENT_BYTES


def _instruction(code: int, value: int, if_not: int = 0) -> bytes:
    """Return a struct sock_filter; a test that fails jumps over `if_not` instructions."""
    return struct.pack("=HBBI", code, 0, if_not, value)


if __name__ == "__main__":
    _run_wrapped(sys.argv[1], sys.argv[2:])
