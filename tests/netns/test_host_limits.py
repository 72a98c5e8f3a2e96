"""A full disk, a read-only directory, a missing capability, a missing TUN driver: each is one line, nothing is left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make mount and user namespaces"),
]

CHECK = """
from flannel_udp.errors import FlannelError
from flannel_udp.host.privileges import check_privileges, check_tun
try:
    check_privileges()
    check_tun()
    print("fine")
except FlannelError as error:
    print(error.exit_code, error)
"""

WRITE = """
from ipaddress import IPv4Network
from pathlib import Path
from flannel_udp.files import subnet_env
from flannel_udp.errors import FlannelError
from flannel_udp.model import Subnet
env = subnet_env.SubnetEnv(IPv4Network("10.1.0.0/16"), Subnet(IPv4Network("10.1.15.0/24")), 1472, False)
try:
    subnet_env.write(Path("PATH"), env)
    print("written")
except FlannelError as error:
    print(error.exit_code, error)
"""


def run(*prefix: str, code: str) -> str:
    """Run Python code under a command that takes something away; the package is found from the repository's root."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def with_mounts(script: str, code: str) -> str:
    """Run a shell script and then the code in a mount namespace; its mounts end with it."""
    return run("unshare", "--mount", "sh", "-c", f'set -e; {script}; exec "$@"', "sh", code=code)


def tiny_disk(directory: Path, fill: str) -> str:
    """Mount a disk of one megabyte, keep an old subnet.env on it, fill it as told."""
    return f"mount -t tmpfs -o size=1m,nr_inodes=8 none {directory}; echo old >{directory}/subnet.env; {fill}"


SHOW = """
import os
print(sorted(os.listdir("DIR")), open("DIR/subnet.env").read().strip())
"""


def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    fill = f"dd if=/dev/zero of={tmp_path}/ballast bs=4k 2>/dev/null || true"
    code = WRITE.replace("PATH", f"{tmp_path}/subnet.env") + SHOW.replace("DIR", str(tmp_path))
    lines = with_mounts(tiny_disk(tmp_path, fill), code).splitlines()
    assert lines == [
        f"1 cannot write {tmp_path}/subnet.env: No space left on device",
        "['ballast', 'subnet.env'] old",
    ]


def test_a_disk_without_a_free_inode_keeps_the_old_file(tmp_path: Path) -> None:
    fill = f"for i in 1 2 3 4 5 6 7 8; do touch {tmp_path}/$i 2>/dev/null || true; done"
    code = WRITE.replace("PATH", f"{tmp_path}/subnet.env") + SHOW.replace("DIR", str(tmp_path))
    outcome, listing = with_mounts(tiny_disk(tmp_path, fill), code).splitlines()
    assert outcome == f"1 cannot write {tmp_path}/subnet.env: No space left on device"
    assert ".subnet.env.tmp" not in listing
    assert listing.endswith("] old")


def test_a_read_only_directory_is_one_clear_line(tmp_path: Path) -> None:
    script = tiny_disk(tmp_path, f"mount -o remount,ro {tmp_path}")
    code = WRITE.replace("PATH", f"{tmp_path}/subnet.env") + SHOW.replace("DIR", str(tmp_path))
    assert with_mounts(script, code).splitlines() == [
        f"1 cannot write {tmp_path}/subnet.env: Read-only file system",
        "['subnet.env'] old",
    ]


def test_a_directory_that_takes_no_files_is_one_clear_line() -> None:
    target = Path("/proc/1/subnet.env")
    assert run(code=WRITE.replace("PATH", str(target))).startswith(f"1 cannot write {target}: ")


def test_root_with_a_tun_driver_is_fine() -> None:
    assert run(code=CHECK) == "fine"


@pytest.mark.parametrize(
    ("dropped", "named"),
    [("net_admin", "CAP_NET_ADMIN"), ("net_raw", "CAP_NET_RAW"), ("all", "CAP_NET_ADMIN and CAP_NET_RAW")],
)
def test_missing_capabilities_are_named(dropped: str, named: str) -> None:
    bounds = ("setpriv", f"--bounding-set=-{dropped}", f"--inh-caps=-{dropped}")
    assert re.fullmatch(rf"1 missing {named}: run as root, or .*", run(*bounds, code=CHECK))


def test_an_ordinary_user_is_told_what_to_do() -> None:
    # The user changes only when everything is imported: an interpreter may live where nobody but root can read it.
    become = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    before, after = run(code=CHECK + become + CHECK).splitlines()
    assert before == "fine"
    assert after.startswith("1 missing CAP_NET_ADMIN and CAP_NET_RAW: run as root")


needs_user_namespaces = pytest.mark.skipif(
    subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode != 0,
    reason="the kernel refuses user namespaces here (in a chroot, say)",
)


@needs_user_namespaces
def test_root_of_a_user_namespace_only_is_told_that_it_does_not_count() -> None:
    line = run("unshare", "--user", "--map-root-user", code=CHECK)
    assert line.startswith("1 the capabilities of this user namespace do not reach its network namespace: run as")


@needs_user_namespaces
def test_root_of_a_user_namespace_with_a_network_of_its_own_is_fine() -> None:
    assert run("unshare", "--user", "--map-root-user", "--net", code=CHECK) == "fine"


def test_no_tun_device_is_one_clear_line(tmp_path: Path) -> None:
    line = with_mounts("mount -t tmpfs none /dev/net", CHECK)
    assert line.startswith("1 cannot open /dev/net/tun: No such file or directory: load the driver (modprobe tun)")


def test_a_forbidden_tun_device_is_one_clear_line() -> None:
    script = "mount -t tmpfs -o nodev none /dev/net; mknod /dev/net/tun c 10 200"
    line = with_mounts(script, CHECK)
    assert line.startswith("1 cannot open /dev/net/tun: Permission denied: let this user read and write it")


def test_a_tun_device_without_a_driver_is_one_clear_line() -> None:
    # A device number of the range for local use, behind which no driver stands.
    line = with_mounts("mount -t tmpfs -o dev none /dev/net; mknod /dev/net/tun c 240 77", CHECK)
    assert re.match(r"1 cannot open /dev/net/tun: No such device( or address)?: load the driver", line)
