"""Completion as it is in a shell: a bash on a terminal, to which is typed what a user types."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.cli.commands import SHELLS

PATIENCE_S = 60.0
DONE = "typed and done\r\n$ "
"""With the prompt: before that the terminal itself would interpret what is typed."""


def script(shell: str) -> str:
    command = [sys.executable, "-m", "flannel_udp", "completion", shell]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


class Terminal:
    """A bash on a pseudo-terminal, wide enough that nothing is wrapped."""

    def __init__(self, folder: Path) -> None:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 500, 0, 0))
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb", "PS1": "$ "}
        self._shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self._master = master

    def type(self, keys: str) -> str:
        """Type keys, throw the line away, and return everything that the terminal has shown until then."""
        # The marker is put together by the shell, so that the echo of what is typed does not hold it.
        os.write(self._master, f"{keys}\x15printf '%s\\n' 'typed and'\" done\"\n".encode())
        shown = b""
        until_s = time.monotonic() + PATIENCE_S
        while DONE.encode() not in shown:
            ready, _, _ = select.select([self._master], [], [], max(0.0, until_s - time.monotonic()))
            assert ready, f"bash shows {shown.decode()!r} and no more"
            shown += os.read(self._master, 65536)
        return shown.decode()

    def close(self) -> None:
        self._shell.kill()
        self._shell.wait()
        os.close(self._master)


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    folder = tmp_path_factory.mktemp("home")
    (folder / "script").write_text(script("bash"))
    (folder / "net-conf.json").touch()
    (folder / "kube").mkdir()
    (folder / "kube" / "admin.conf").touch()
    terminal = Terminal(folder)
    try:
        terminal.type("bind 'set show-all-if-ambiguous on'\n. ./script\n")
        yield terminal
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("flannel-udp st", "flannel-udp status "),
        ("flannel-udp route g", "flannel-udp route get "),
        ("flannel-udp lab d", None),  # demo or down
        ("flannel-udp lab de", "flannel-udp lab demo "),
        ("flannel-udp help sta", "flannel-udp help status "),
        ("flannel-udp completion z", "flannel-udp completion zsh "),
        ("flannel-udp --iface-c", "flannel-udp --iface-can-reach "),
        ("flannel-udp -iface-c", "flannel-udp -iface-can-reach "),
        ("flannel-udp status --con", "flannel-udp status --control-socket "),
        ("flannel-udp --log-format j", "flannel-udp --log-format json "),
        ("flannel-udp --log-format=j", "flannel-udp --log-format=json "),
        ("flannel-udp -log-format=kl", "flannel-udp -log-format=klog "),
        ("flannel-udp --iface=eth0 --log-format=j", "flannel-udp --iface=eth0 --log-format=json "),
        ("flannel-udp lab up --backend vx", "flannel-udp lab up --backend vxlan "),
        ("flannel-udp config put net-c", "flannel-udp config put net-conf.json "),
        ("flannel-udp config put --json net-c", "flannel-udp config put --json net-conf.json "),
        ("flannel-udp --kubeconfig-file=kube/a", "flannel-udp --kubeconfig-file=kube/admin.conf "),
        ("flannel-udp nonsen", None),
    ],
)
def test_a_tab_completes_what_is_one_thing_only(bash: Terminal, typed: str, completed: str | None) -> None:
    shown = bash.type(f"{typed}\t")
    assert completed is None or completed in shown
    if completed is None:
        assert f"{typed} " not in shown


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("flannel-udp config ", {"check", "get", "put"}),
        ("flannel-udp --log-format=", {"text", "klog", "json"}),
        ("flannel-udp lab up --registry ", {"file", "etcd"}),
    ],
)
def test_a_tab_offers_what_there_is(bash: Terminal, typed: str, offered: set[str]) -> None:
    assert any(set(line.split()) == offered for line in bash.type(f"{typed}\t").splitlines())


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_one_that_its_shell_can_read(shell: str, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(script(shell))
    assert "flannel-udp" in path.read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
