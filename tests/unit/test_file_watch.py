"""Hearing of a file's changes by inotify, and going without where a user's instances are used up."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flannel_udp.files.watch import FileWatch
from tests.support.patience import PATIENCE_S

CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda path: path.write_text("new"),
    "removed": lambda path: path.unlink(),
    "replaced": lambda path: path.with_name("new").rename(path),
    "its folder renamed": lambda path: path.parent.rename(path.parent.with_name("former")),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("by_link", [False, True], ids=["", "by a link"])
async def test_a_change_is_heard_and_none_of_a_neighbour(tmp_path: Path, change: str, by_link: bool) -> None:
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    file.write_text("old")
    file.with_name("new").write_text("new")
    path = tmp_path / "link" if by_link else file
    if by_link:
        path.symlink_to(file)
    heard = asyncio.Event()
    watch = FileWatch(path, heard.set)
    try:
        file.with_name("neighbour").write_text("")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not heard.is_set()
        CHANGES[change](file)
        await asyncio.wait_for(heard.wait(), PATIENCE_S)
    finally:
        watch.close()


async def test_a_folder_that_comes_back_is_watched_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    heard = asyncio.Event()
    watch = FileWatch(path, heard.set)
    try:
        path.parent.rmdir()
        await asyncio.wait_for(heard.wait(), PATIENCE_S)
        watch.renew()  # nothing is there to be watched
        path.parent.mkdir()
        watch.renew()
        heard.clear()
        path.write_text("")
        await asyncio.wait_for(heard.wait(), PATIENCE_S)
    finally:
        watch.close()


KEEP = """
import asyncio, sys
from ipaddress import IPv4Network
from pathlib import Path
from flannel_udp.files.subnet_env import SubnetEnv
from flannel_udp.host.subnet_file import SubnetFile
from flannel_udp.model import Subnet

async def keep(path):
    file = SubnetFile(path, lambda: None)
    task = asyncio.create_task(file.run())
    file.want(SubnetEnv(IPv4Network("10.1.0.0/16"), Subnet(IPv4Network("10.1.5.0/24")), 1472, False))
    await file.stands()
    path.unlink()
    while not path.exists():
        await asyncio.sleep(0.01)
    task.cancel()

asyncio.run(asyncio.wait_for(keep(Path(sys.argv[1])), 30))
"""


def test_without_inotify_the_file_is_looked_at(tmp_path: Path) -> None:
    limit = "/proc/sys/user/max_inotify_instances"
    if subprocess.run(["unshare", "-Ur", "sh", "-c", f"echo 0 >{limit}"], check=False).returncode != 0:
        pytest.skip("needs a user namespace, to take inotify away in it")
    script = f'echo 0 >{limit}; exec "$@"'
    command = ["unshare", "-Ur", "sh", "-c", script, "sh", sys.executable, "-c", KEEP, str(tmp_path / "subnet.env")]
    subprocess.run(command, check=True, timeout=60)
