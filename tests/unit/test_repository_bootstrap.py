"""bootstrap.sh where something is missing: one clear line, and nothing touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("sh", "dirname", "mkdir", "rm", "cat", "cksum", "grep", "sed", "head", "tail", "id", "mountpoint")
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount, or install packages")


class Checkout:
    """A folder with bootstrap.sh, and a PATH that holds only what is put there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.tools = folder / "tools"
        self.folder.mkdir()
        self.tools.mkdir()
        shutil.copy(ROOT / "bootstrap.sh", self.folder)
        for name in TOOLS:
            found = shutil.which(name)
            assert found, name
            (self.tools / name).symlink_to(found)

    def put(self, name: str, script: str) -> None:
        """Put a command there that stands for one of another machine."""
        path = self.tools / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def have_all_but_the_packages_of_python(self) -> None:
        """Let a run for the lab come as far as to `.venv/bin/pip`, which the test puts there."""
        for name in ("gcc", "python3", "ip", "ping", "iptables-restore"):
            self.put(name, "exit 0")
        self.put("id", "echo 0")
        for name in ("setup.py", "pyproject.toml", "_fastpath/a.pyx", "_fastpath/a.pxd", ".venv/bin/python"):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text("#!/bin/sh\n")
            (self.folder / name).chmod(0o755)
        (self.folder / ".venv/folder").write_text(f"{self.folder}\n")

    def put_pip(self, script: str) -> None:
        (self.folder / ".venv/bin/pip").write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / ".venv/bin/pip").chmod(0o755)

    def run(self, *arguments: str, behind: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Run bootstrap.sh as `behind`, a shell's words, leaves the machine."""
        # Of the machine's own folders bootstrap.sh adds /usr/sbin and /sbin; no compiler and no apt-get live there.
        return subprocess.run(
            [*behind, str(self.tools / "sh"), str(self.folder / "bootstrap.sh"), *arguments],
            env={"PATH": str(self.tools), "PIP_RETRIES": "0"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",)])
def test_help_names_all_commands(checkout: Checkout, arguments: tuple[str, ...]) -> None:
    done = checkout.run(*arguments)
    assert done.returncode == 0
    assert "./bootstrap.sh lab" in done.stdout
    assert "./bootstrap.sh test" in done.stdout
    assert "./bootstrap.sh bundle" in done.stdout


def test_an_unknown_command_is_one_clear_line(checkout: Checkout) -> None:
    done = checkout.run("tset")
    assert (done.returncode, done.stderr) == (2, "bootstrap: unknown command 'tset' (see: ./bootstrap.sh help)\n")


def test_where_there_is_no_apt_the_packages_are_named(checkout: Checkout) -> None:
    done = checkout.run("test")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("bootstrap: install these (Debian's names) and run this again: Python 3.11 or later")
    assert {"gcc", "libc6-dev", "etcd-server", "etcd-client", "socat"} <= set(last.split())
    assert not (checkout.folder / ".venv").exists()


@pytest.mark.parametrize("command", ["lab", "test"])
def test_without_root_it_says_how_to_install(checkout: Checkout, command: str) -> None:
    checkout.put("id", "echo 1000")
    checkout.put("apt-get", "echo apt-get must not run >&2; exit 100")
    done = checkout.run(command)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("bootstrap: run this as root once, or install: ")
    assert "must not run" not in done.stderr


@AS_ROOT
def test_a_step_that_fails_is_one_line_with_the_reason(checkout: Checkout) -> None:
    checkout.put("apt-get", "echo E: Unable to locate package; exit 100")
    done = checkout.run("test")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "bootstrap: failed: reading the package lists: E: Unable to locate package (all of it: build/bootstrap.log)"
    )


def test_an_old_python_is_not_taken(checkout: Checkout) -> None:
    checkout.put("python3", "exit 1")  # what `sys.version_info < (3, 11)` gives
    checkout.put("id", "echo 1000")
    done = checkout.run("test")
    assert "Python 3.11 or later" in done.stderr.splitlines()[-1]


# What went wrong, where much is said


BUILDING = "building flannel-udp, about a minute"
NOTES = """\
note: This error originates from a subprocess, and is likely not a problem with pip.

[notice] A new release of pip is available: 23.2.1 -> 26.0
[notice] To update, run: pip install --upgrade pip
"""
UNSHARE, MOUNT = shutil.which("unshare"), shutil.which("mount")


def in_mounts(mounting: str) -> tuple[str, ...]:
    """Return what runs a command where these mounts were made; they end with it."""
    return (str(UNSHARE), "--mount", "/bin/sh", "-c", f'{mounting} && exec "$@"', "sh")


CAUSES = {
    "ERROR: No matching distribution found for uvloop>=0.19": """\
Collecting uvloop>=0.19
ERROR: Could not find a version that satisfies the requirement uvloop>=0.19 (from versions: none)
ERROR: No matching distribution found for uvloop>=0.19
""",
    "No space left on device (df -h shows where)": """\
Installing collected packages: grpcio
ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device
""",
    "_fastpath/engine.c:6:10: fatal error: Python.h: No such file or directory": """\
  error: subprocess-exited-with-error
  x Building editable for flannel-udp (pyproject.toml) did not run successfully.
  │ exit code: 1
  ╰─> [30 lines of output]
      _fastpath/engine.c:6:10: fatal error: Python.h: No such file or directory
          6 | #include "Python.h"
      compilation terminated.
      error: command '/usr/bin/gcc' failed with exit code 1
      [end of output]
  ERROR: Failed building editable for flannel-udp
ERROR: Failed to build installable wheels for some pyproject.toml based projects (flannel-udp)
""",
    "the packages cannot be reached (Temporary failure in name resolution): is this machine online?": """\
WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<pip._vendor.urllib3.connection.\
HTTPSConnection object at 0x7f>: Failed to establish a new connection: [Errno -3] Temporary failure in name \
resolution')': /simple/tox/
ERROR: Could not find a version that satisfies the requirement tox<5,>=4.21 (from versions: none)
ERROR: No matching distribution found for tox<5,>=4.21
""",
    "the packages' server is not trusted (certificate verify failed: self-signed certificate in certificate \
chain): is the clock right, or is there a proxy here (PIP_CERT names its certificate)?": """\
WARNING: Retrying (Retry(total=0)) after connection broken by 'SSLError(SSLCertVerificationError(1, '[SSL: \
CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate in certificate \
chain (_ssl.c:1029)'))': /simple/tox/
ERROR: Could not find a version that satisfies the requirement tox<5,>=4.21 (from versions: none)
ERROR: No matching distribution found for tox<5,>=4.21
""",
    "error: metadata-generation-failed": """\
error: metadata-generation-failed
x Encountered error while generating package metadata.
hint: See above for details.
""",
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_line_of_a_failure_is_its_cause_and_not_what_is_said_last(checkout: Checkout, cause: str) -> None:
    checkout.have_all_but_the_packages_of_python()
    checkout.put_pip(f"cat <<'END'\n{CAUSES[cause]}{NOTES}END\nexit 1")
    done = checkout.run("lab")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        f"bootstrap: failed: {BUILDING}: {cause} (all of it: build/bootstrap.log)",
    )


@AS_ROOT
def test_packages_that_the_lists_lack_because_nothing_was_reached(checkout: Checkout) -> None:
    """`apt-get update` succeeds without a network; what follows from that is told by the next step."""
    checkout.put(
        "apt-get",
        'case $1 in update) echo "W: Failed to fetch http://deb.example/  Temporary failure resolving deb.example" ;; '
        '*) echo "E: Unable to locate package gcc"; exit 100 ;; esac',
    )
    checkout.put("apt-cache", "echo Package: x")
    done = checkout.run("test")
    line = done.stderr.splitlines()[-1]
    assert line.startswith("bootstrap: failed: installing with apt: gcc")
    assert ": the packages cannot be reached (Temporary failure resolving): is this machine online?" in line


@AS_ROOT
def test_without_a_network_a_real_pip_s_failure_is_one_line(checkout: Checkout) -> None:
    checkout.have_all_but_the_packages_of_python()
    # No settings of the machine's: one may have an index in its files.
    command = f"{sys.executable} -m pip install --target there --no-deps tox"
    checkout.put_pip(f"PIP_CONFIG_FILE={os.devnull} PIP_RETRIES=1 exec {command}")
    done = checkout.run("lab", behind=(str(UNSHARE), "--net"))
    line = done.stderr.splitlines()[-1]
    assert "the packages cannot be reached (" in line, (checkout.folder / "build/bootstrap.log").read_text()
    assert line.endswith("): is this machine online? (all of it: build/bootstrap.log)")


@AS_ROOT
def test_a_full_disk_is_said_also_where_it_leaves_no_room_to_say_so(checkout: Checkout) -> None:
    checkout.have_all_but_the_packages_of_python()
    checkout.put_pip("cat /dev/zero >build/there || exit 1")
    (checkout.folder / "build").mkdir()
    done = checkout.run("lab", behind=in_mounts(f"{MOUNT} -t tmpfs -o size=128k full {checkout.folder}/build"))
    line = done.stderr.splitlines()[-1]
    assert ": No space left on device (df -h shows where) (all of it: " in line


@AS_ROOT
@pytest.mark.parametrize("command", ["lab", "test"])
def test_a_read_only_checkout_is_one_clear_line(checkout: Checkout, command: str) -> None:
    place = checkout.folder
    read_only = f"{MOUNT} --bind {place} {place} && {MOUNT} -o remount,ro,bind {place}"
    done = checkout.run(command, behind=in_mounts(read_only))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"bootstrap: cannot write to {place}/build: copy this folder to where you may write, and run it there"
    ]


def test_a_checkout_that_was_moved_or_copied_gets_environments_of_its_own(checkout: Checkout) -> None:
    checkout.have_all_but_the_packages_of_python()
    checkout.put_pip("exit 1")
    (checkout.folder / ".tox").mkdir()
    assert BUILDING in checkout.run("lab").stderr
    assert (checkout.folder / ".tox").exists()
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("elsewhere"))
    assert "bootstrap: making .venv with python3\n" in checkout.run("lab").stderr
    assert not (checkout.folder / ".tox").exists()
    assert "making .venv" not in checkout.run("lab").stderr


@AS_ROOT
@pytest.mark.parametrize(
    ("shown", "packaged"), [("echo Package: x", True), ("exit 100", False), ("echo N: purely virtual >&2", False)]
)
def test_a_package_that_older_releases_have_within_another_is_asked_for_where_it_exists(
    checkout: Checkout, shown: str, packaged: bool
) -> None:
    checkout.put("apt-get", 'echo "$*" >>build/asked; case $1 in update) exit 0 ;; *) exit 100 ;; esac')
    checkout.put("apt-cache", f"case $2 in libclang-rt-dev | kubernetes-client) {shown} ;; *) echo x ;; esac")
    checkout.run("test")
    asked = (checkout.folder / "build/asked").read_text().splitlines()[-1].split()
    assert "clang" in asked
    assert ("libclang-rt-dev" in asked) is packaged
    assert ("kubernetes-client" in asked) is packaged


def test_an_environment_of_before_that_is_of_here_stays(checkout: Checkout) -> None:
    checkout.have_all_but_the_packages_of_python()
    checkout.put_pip("exit 1")
    (checkout.folder / ".venv/folder").unlink()
    (checkout.folder / ".venv/bin/activate").write_text(f"VIRTUAL_ENV='{checkout.folder}/.venv'\n")
    assert "making .venv" not in checkout.run("lab").stderr
    (checkout.folder / ".venv/folder").unlink()
    (checkout.folder / ".venv/bin/activate").write_text("VIRTUAL_ENV='/elsewhere/.venv'\n")
    assert "making .venv" in checkout.run("lab").stderr


# Without a network


@pytest.fixture
def offline(checkout: Checkout) -> Checkout:
    """A checkout with the folder of a bundle for this machine; nothing of it is real but its sums."""
    for name in ("sha256sum", "dpkg", "uname", "python3"):
        if found := shutil.which(name):
            (checkout.tools / name).symlink_to(found)
    checkout.have_all_but_the_packages_of_python()
    bundle = checkout.folder / "bundle"
    (bundle / "wheels").mkdir(parents=True)
    (bundle / "wheels/a.whl").write_text("a wheel")
    (bundle / "about").write_text(f"{this_machine()}\npython3\n")
    sums = ["sha256sum", "about", "wheels/a.whl"]
    (bundle / "SHA256SUMS").write_bytes(subprocess.run(sums, cwd=bundle, capture_output=True, check=True).stdout)
    return checkout


def this_machine() -> str:
    script = '. /etc/os-release; echo "$ID-$VERSION_ID-$(dpkg --print-architecture 2>/dev/null || uname -m)"'
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def test_a_lab_from_a_bundle_asks_no_network(offline: Checkout) -> None:
    offline.put_pip("echo $* >build/asked; exit 0")
    (offline.folder / ".venv/bin/flannel-udp").write_text("#!/bin/sh\necho demo $*\n")
    (offline.folder / ".venv/bin/flannel-udp").chmod(0o755)
    done = offline.run("lab", "--hosts=3")
    assert (done.returncode, done.stdout) == (0, "demo lab demo --hosts=3\n"), done.stderr
    asked = (offline.folder / "build/asked").read_text()
    assert asked == "install --no-index --find-links bundle/wheels flannel-udp\n"


@pytest.mark.parametrize("broken", ["about", "SHA256SUMS", "wheels/a.whl"])
@pytest.mark.parametrize("how", ["missing", "changed"])
def test_a_damaged_bundle_is_one_line(offline: Checkout, broken: str, how: str) -> None:
    file = offline.folder / "bundle" / broken
    if how == "missing":
        file.unlink()
    elif broken == "SHA256SUMS":
        file.write_text("half a li")
    else:
        file.write_text(file.read_text() + "more")
    done = offline.run("lab")
    assert done.returncode == 1
    *before, line = done.stderr.splitlines()
    assert before in ([], ["bootstrap: checking the folder bundle"])
    assert line.startswith(f"bootstrap: the folder bundle is damaged (bundle/{broken}): "), line


def test_a_bundle_may_be_in_a_folder_of_any_name(offline: Checkout) -> None:
    offline.folder = offline.folder.rename(offline.folder.with_name("50% of #1"))
    (offline.tools / "ping").unlink()
    offline.put("apt-get", "exit 0")
    offline.put_pip("exit 0")
    (offline.folder / ".venv/bin/flannel-udp").symlink_to(offline.tools / "ip")
    done = offline.run("lab")
    assert done.returncode == 0, done.stderr
    source = f"file:{offline.folder.parent}/50%25%20of%20%231/bundle/debs"
    assert (offline.folder / "build/sources.list").read_text() == f"deb [trusted=yes] {source} ./\n"


def test_a_bundle_of_another_release_is_one_line(offline: Checkout) -> None:
    (offline.folder / "bundle/about").write_text("debian-99-riscv64\npython3.11\n")
    done = offline.run("lab")
    assert done.returncode == 1
    assert done.stderr == (
        f"bootstrap: the folder bundle is for debian-99-riscv64, and this is {this_machine()}: "
        "make one there (./bootstrap.sh bundle), or remove it to use the network\n"
    )


@pytest.mark.parametrize(
    ("tool", "step"),
    [
        ("apt-get", "getting packages: python3.11-venv iproute2 iputils-ping iptables, and all that they need"),
        ("dpkg-deb", "writing down what there is"),
        ("tar", "packing build/flannel-udp-{machine}.tar"),
    ],
)
def test_a_bundle_that_cannot_be_made_whole_is_none(checkout: Checkout, tool: str, step: str) -> None:
    checkout.have_all_but_the_packages_of_python()
    checkout.put("python3", "echo python3.11")
    checkout.put_pip("exit 0")
    for name in ("apt-get", "dpkg-deb", "find", "sha256sum", "wc", "cut", "mv", "tar"):
        checkout.put(name, "exit 0")
    for name in ("dpkg", "uname"):
        if found := shutil.which(name):
            (checkout.tools / name).symlink_to(found)
    checkout.put(tool, f"echo 'E: {tool} fails' >&2; exit 100")
    done = checkout.run("bundle")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"bootstrap: failed: {step.format(machine=this_machine())}: E: {tool} fails (all of it: build/bootstrap.log)"
    )


def test_where_there_is_no_apt_no_bundle_is_made(checkout: Checkout) -> None:
    done = checkout.run("bundle")
    assert (done.returncode, done.stderr) == (
        1,
        "bootstrap: a bundle is made of Debian's packages: make it on Debian or Ubuntu, of the same release\n",
    )


def test_help_writes_nothing(checkout: Checkout) -> None:
    checkout.run("help")
    assert [path.name for path in checkout.folder.iterdir()] == ["bootstrap.sh"]
