"""Become a command inside a node, as on a machine of its own: its network, its host name, its names for the others.

What only this process sees (namespaces(7)): a UTS namespace with the node's host name, and a mount namespace, where
/sys shows the node's interfaces, /etc/hosts has the lab's names, and no other source of names is asked.

The commands of flannel-udp find the host's agent by the environment variables of its flags (``FLANNELD_CONTROL_SOCKET``
and so on). A private mount of /run/flannel would need that folder on the machine, and the registry's flags anyway.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from flannel_udp.errors import FlannelError
from flannel_udp.lab import libc, netns
from flannel_udp.lab.lab import Lab, no_lab
from flannel_udp.lab.node import Node, clean_environment

_HOSTS, _NSSWITCH, _SYS = Path("/etc/hosts"), Path("/etc/nsswitch.conf"), Path("/sys")
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as shells say it


class NotRun(FlannelError):
    """The command cannot be run; the exit code is the one that shells have for it."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def become(lab: Lab, node: Node, command: Sequence[str]) -> NoReturn:
    """Run the command in place of this process, whose exit code is then the command's own. Raises `FlannelError`."""
    _unshare()
    netns.enter(node.namespace)
    _call("mount", None, b"/", None, libc.MS_REC | libc.MS_SLAVE, None)
    _show_interfaces(node)
    # What is not there cannot be covered: the machine gets no file of ours.
    if _HOSTS.exists():
        _cover(lab, _HOSTS, hosts_text(lab))
    if _NSSWITCH.exists():
        _cover(lab, _NSSWITCH, names_from_files_only(_NSSWITCH.read_text(errors="replace")))
    socket.sethostname(node.hostname)
    # Python ignores these two, and what is ignored stays so in the command: `yes | head` would complain.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), environment(node))  # noqa: S606 - shell-free on purpose
    except (FileNotFoundError, NotADirectoryError):
        raise NotRun(f"{node.path}: there is no command {command[0]}", _NOT_FOUND) from None
    except OSError as error:
        raise NotRun(f"{node.path}: cannot run {command[0]}: {error.strerror}", _NOT_EXECUTABLE) from None


def environment(node: Node) -> dict[str, str]:
    """Return the environment of a command inside: what `node.flags` say, and where our own commands are."""
    env = clean_environment()
    env |= {f"FLANNELD_{flag.upper().replace('-', '_')}": value for flag, value in node.flags.items()}
    # Last, so that a virtual environment's Python does not become that of the command.
    env["PATH"] = os.pathsep.join([env.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    return env


def hosts_text(lab: Lab) -> str:
    """Return what /etc/hosts shall be: localhost, and by their names all nodes of the lab that have addresses now."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    servers = ["net", "etcd"] if lab.plan.registry == "etcd" else ["net"]
    for version in lab.plan.versions:
        lines.append(" ".join([str(lab.plan.bridge(version)), *servers]))
        lines += [f"{host.underlay_of(version)} {host.hostname}" for host in lab.hosts]
        lines += [f"{ip} {pod.hostname}" for pod in lab.pods() if (ip := pod.known_address(version)) is not None]
    return "\n".join(lines) + "\n"


def names_from_files_only(nsswitch: str) -> str:
    """Return nsswitch.conf(5) with /etc/hosts as the only source of host names.

    A resolver service of the machine knows the machine's names, and servers of names cannot be reached from a lab: each
    unknown one, and each address that tcpdump shows, would cost seconds.
    """
    return re.sub(r"(?m)^\s*hosts:.*$", "hosts: files", nsswitch)


def _unshare() -> None:
    # os.unshare exists from Python 3.12 on only.
    _call("unshare", libc.CLONE_NEWNS | libc.CLONE_NEWUTS)


def _show_interfaces(node: Node) -> None:
    """Mount /sys anew: a sysfs shows the network namespace that it was mounted in."""
    kept = libc.MS_RDONLY if os.statvfs(_SYS).f_flag & os.ST_RDONLY else 0
    _call("umount2", bytes(_SYS), libc.MNT_DETACH)
    _call("mount", node.namespace.encode(), bytes(_SYS), b"sysfs", kept, None)


def _cover(lab: Lab, path: Path, text: str) -> None:
    """Let this process see the text in place of a file; nothing is left of it once the process has ended."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=lab.plan.state) as file:
            file.write(text)
            file.flush()
            Path(file.name).chmod(0o644)  # whoever the command becomes may read it
            _call("mount", file.name.encode(), bytes(path), None, libc.MS_BIND, None)
    except FileNotFoundError:  # `lab down` meanwhile
        raise no_lab(lab.name) from None


def _call(name: str, *arguments: bytes | int | None) -> None:
    """Call a function of the C library that returns 0. Raises `FlannelError`."""
    try:
        libc.call(name, *arguments)
    except OSError as error:
        raise FlannelError(f"cannot enter the lab: {error.filename}: {error.strerror}") from None
