"""`flannel-udp lab …` of an ordinary user: as root's, in namespaces of his own, and nothing is left of it."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.lab.lab import lab_names
from flannel_udp.lab.netns import is_readable, wait_until
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.ordinary_user import UID, User, ordinary_user
from tests.support.patience import PATIENCE_S

pytestmark = [
    *NEEDS_NETNS,
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (package util-linux)"),
]

FROM_NOWHERE = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.mkdir(sys.argv[1])
os.chdir(sys.argv[1])
os.rmdir(sys.argv[1])
from flannel_udp.cli.main import main
sys.exit(main(["lab", "list"]))
"""
REFUSED = """
import errno, os, sys
from pathlib import Path
from flannel_udp.cli.main import main
from flannel_udp.lab import libc
call, fork, file = libc.call, os.fork, Path(os.environ["XDG_RUNTIME_DIR"], "flannel-udp/holder")
def refuse(name):
    if name == sys.argv[1] and (holder := file.read_text()):  # not while the holder is being started
        print(holder, flush=True)
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
def careful_call(name, *arguments):
    refuse(name)
    return call(name, *arguments)
def careful_fork():
    refuse("fork")
    return fork()
libc.call, os.fork = careful_call, careful_fork
sys.exit(main(["lab", "list"]))
"""
GONE = "flannel-udp: earlier labs of this user are gone: the process that held them was ended\n"


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    with ordinary_user() as user:
        yield user


@pytest.fixture(scope="module")
def lab(user: User) -> Iterator[str]:
    """One host with an agent and a pod; no test changes it."""
    name = fresh_name()
    done = user.run(user.lab("up", "--name", name, "--hosts", "1"))
    assert done.returncode == 0, done.stderr
    yield name
    assert user.run(user.lab("down", "--name", name)).stdout == f"removed: {name}\n"
    assert not (user.folder / "flannel-udp").exists()


def holder_of(user: User) -> int:
    return int((user.folder / "flannel-udp/holder").read_text())


def has_ended(pid: int) -> bool:
    """Tell whether a process that is not our child runs no more, collected by whoever has to or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_his_commands_find_his_lab(user: User, lab: str) -> None:
    (row,) = json.loads(user.run(user.lab("list", "--json")).stdout)
    assert (row["name"], row["agents"]) == (lab, {"planned": 1, "running": 1})
    pinged = user.run(user.lab("exec", "--name", lab, "h1/p1", "--", "ping", "-c1", "h1"))
    assert "1 received" in pinged.stdout, pinged.stderr
    asked = user.run(user.lab("exec", "--name", lab, "h1", "--", sys.executable, "-m", "flannel_udp", "status"))
    assert "running (ready)" in asked.stdout, asked.stderr


def test_neither_root_nor_another_user_meets_it(user: User, lab: str) -> None:
    assert lab not in lab_names()
    with ordinary_user(UID - 1) as other:
        assert other.run(other.lab("list")).stdout == "no lab is up\n"
        # Even if he says that his place is hers.
        other.env["XDG_RUNTIME_DIR"] = str(user.folder)
        assert other.run(other.lab("list")).stdout == "no lab is up\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [(("sh", "-c", "exit 7"), 7), (("sh", "-c", "kill -KILL $$"), 137), (("there-is-none",), 127)],
)
def test_the_exit_code_is_the_command_s_own(user: User, lab: str, command: tuple[str, ...], code: int) -> None:
    assert user.run(user.lab("exec", "--name", lab, "h1", "--", *command)).returncode == code


def test_a_shell_has_the_terminal_and_gives_it_back(user: User, lab: str) -> None:
    shell = " ".join(["python", "-P", "-m", "flannel_udp", "lab", "exec", "--name", lab, "h1", "bash"])
    shell = shell.replace("python", sys.executable, 1)
    words = user.words("bash", "-c", f"{shell}; echo back; read -r line; echo read $line")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(words[0], words, user.env)  # noqa: S606 - a child with a terminal of its own
    try:
        os.write(terminal, b"set -m; sleep 300 & kill %1; echo job $?; hostname; exit\nlast\n")
        seen = b""
        while b"read last" not in seen:
            assert is_readable(terminal, PATIENCE_S), seen
            seen += os.read(terminal, 4096)
        assert b"job 0" in seen
        assert b"\nh1" in seen
    finally:
        os.close(terminal)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def other() -> Iterator[User]:
    """One without a holder: who has one needs nothing more to be allowed."""
    with ordinary_user(UID - 1) as user:
        yield user


def test_a_demonstration_that_is_interrupted_leaves_nothing(other: User) -> None:
    words = other.lab("demo", "--name", fresh_name())
    with subprocess.Popen(words, env=other.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        assert demo.stderr is not None
        demo.stderr.readline()  # building
        holder = holder_of(other)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(PATIENCE_S) == 130
    assert wait_until(lambda: has_ended(holder), PATIENCE_S)


def test_a_lab_ends_with_its_holder_and_the_next_command_says_so(other: User) -> None:
    up = other.lab("up", "--name", fresh_name(), "--hosts", "1", "--backend", "host-gw")
    done = other.run(["sh", "-c", 'exec 9</dev/null; exec "$@"', "sh", *up])
    assert done.returncode == 0, done.stderr
    holder = holder_of(other)
    assert not Path(f"/proc/{holder}/fd/9").is_symlink()  # a script's lock, say, is not held by what outlives it
    inside = [int(pid) for pid in Path(f"/proc/{holder}/task/{holder}/children").read_text().split()]
    assert inside
    os.kill(holder, signal.SIGKILL)
    assert wait_until(lambda: all(map(has_ended, inside)), PATIENCE_S)
    done = other.run(other.lab("list"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "no lab is up\n", GONE)


def test_whoever_is_in_a_removed_folder_and_ignores_children_may_ask(other: User) -> None:
    done = other.run(other.words(sys.executable, "-c", FROM_NOWHERE, str(other.folder / "removed")))
    assert (done.returncode, done.stdout, done.stderr) == (0, "no lab is up\n", "")


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="needs systemd-tmpfiles (package systemd)")
def test_what_tidies_tmp_up_leaves_the_holder_s_file(user: User, lab: str, tmp_path: Path) -> None:
    (tmp_path / "all.conf").write_text(f"e {user.folder} - - - 0\n")
    file = user.folder / "flannel-udp/holder"
    other = file.with_name("other")
    other.touch()
    subprocess.run(["systemd-tmpfiles", "--clean", tmp_path / "all.conf"], check=True, timeout=PATIENCE_S)
    assert (other.exists(), file.exists()) == (False, True)
    assert lab in user.run(user.lab("list")).stdout


# Where it is refused


@pytest.mark.parametrize("what", ["setns", "fork"])
def test_who_cannot_enter_leaves_no_holder(other: User, what: str) -> None:
    done = other.run(other.words(sys.executable, "-c", REFUSED, what))
    assert (done.returncode, "Operation not permitted" in done.stderr) == (1, True), done
    assert wait_until(lambda: has_ended(int(done.stdout)), PATIENCE_S)


def test_who_cannot_enter_leaves_the_holder_that_was_there(user: User, lab: str) -> None:
    done = user.run(user.words(sys.executable, "-c", REFUSED, "setns"))
    assert (done.returncode, done.stderr) == (
        1,
        "flannel-udp: cannot enter the namespaces of this user's labs: Operation not permitted\n",
    )
    assert not has_ended(int(done.stdout))
    assert lab in user.run(user.lab("list")).stdout


def test_a_place_that_may_not_be_written_is_one_line(other: User) -> None:
    other.folder.chmod(0o500)
    done = other.run(other.lab("list"))
    other.folder.chmod(0o700)
    assert done.returncode == 1
    assert done.stderr == (
        f"flannel-udp: cannot make {other.folder}/flannel-udp, which is to say where this user's labs are: "
        "Permission denied; set XDG_RUNTIME_DIR to a folder of his that he may write\n"
    )


@pytest.mark.parametrize("make", ["ln -s /tmp {}", "mkdir -m 755 {}", "touch {}"])
def test_a_folder_that_is_not_his_alone_is_not_used(other: User, make: str) -> None:
    folder = other.folder / "flannel-udp"
    assert other.run(other.words(*make.format(folder).split())).returncode == 0
    done = other.run(other.lab("list"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"flannel-udp: {folder} is not a folder of this user's that nobody else may read")
    assert len(done.stderr.splitlines()) == 1
    assert other.run(other.words("rm", "-d", str(folder))).returncode == 0


def test_a_limit_of_none_is_one_line_that_names_it(other: User) -> None:
    # In a user namespace of root's, with all of the machine's ids in it, the limit can be set for the test alone.
    wait = ["unshare", "--user", "sh", "-ec", 'echo made; read -r mapped; exec "$@"', "sh"]
    words = [*wait, "sh", "-ec", 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"', "sh", *other.lab("list")]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, env=other.env, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "made\n"
        for ids in ("uid_map", "gid_map"):
            Path(f"/proc/{command.pid}/{ids}").write_text("0 0 65536\n")
        stderr = command.communicate("mapped\n", PATIENCE_S)[1]
    assert command.returncode == 1
    assert stderr == (
        "flannel-udp: a lab without root needs user namespaces, and here an ordinary user may make none "
        "(user.max_user_namespaces=0): as root, sysctl -w user.max_user_namespaces=10000\n"
    )


def test_in_a_chroot_it_is_one_line(other: User) -> None:
    chroot = ["unshare", "--mount", "sh", "-ec", 'mount --rbind / /mnt && exec chroot /mnt "$@"', "sh"]
    done = other.run([*chroot, *other.lab("list")])
    assert done.returncode == 1
    assert done.stderr == (
        "flannel-udp: a lab without root needs user namespaces, and here an ordinary user may make none "
        "(Operation not permitted): a chroot, or a container's seccomp profile, forbids it; run it as root\n"
    )
