"""The registry file when the world is difficult: gone, exchanged, cut short, locked, on a poor file system."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from flannel_udp.errors import LeaseLost, RegistryDenied, RegistryError
from flannel_udp.files.atomic import draft_of, replace_file
from flannel_udp.model import LEASE_TTL_S
from flannel_udp.registry.file import registry as file_module
from flannel_udp.registry.file import store
from flannel_udp.registry.file.registry import FileRegistry
from tests.registry.support import said, watching
from tests.registry.test_file import CONFIG, KEY, OTHER_VALUE, VALUE, expires_in, nobody, open_directory
from tests.support.patience import PATIENCE_S
from tests.support.refusals import Refusal, refused

__all__ = ["open_directory"]

THEIRS = {"10.1.16.0-24": {"PublicIP": "192.0.2.2"}}
DOCUMENT = json.dumps({"config": {"Network": "10.1.0.0/16"}, "subnets": THEIRS})


def _put(path: Path, make: Callable[[], object]) -> None:
    path.unlink()
    make()


FAULTS: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "half of it": lambda path: path.write_text(DOCUMENT[:60]),
    "a directory": lambda path: _put(path, path.mkdir),
    "a pipe": lambda path: _put(path, lambda: os.mkfifo(path)),
    "a link to nowhere": lambda path: _put(path, lambda: path.symlink_to("nowhere")),
    "a link in a circle": lambda path: _put(path, lambda: path.symlink_to(path.name)),
}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "etc" / "registry.json"
    path.parent.mkdir()
    path.write_text(DOCUMENT)
    return path


# Absent is not empty


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_file_that_cannot_be_read_for_a_while_removes_no_peer(
    fault: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flannel_udp")
    async with watching(FileRegistry(path)) as seen:
        first = await seen.snapshot()
        FAULTS[fault](path)
        await said(caplog, "trying again until it works")
        assert await seen.is_quiet(0.3)
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_text(DOCUMENT)
        assert (await seen.snapshot()).entries == first.entries
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"], caplog.messages


async def test_nothing_is_done_to_a_registry_that_is_gone(path: Path) -> None:
    registry = FileRegistry(path)
    await registry.list()
    path.unlink()
    for use in (registry.list(), registry.read_config(), registry.create(KEY, VALUE, LEASE_TTL_S)):
        with pytest.raises(RegistryError, match=f"registry file {path} is gone: put it back$"):
            await use
    assert not path.exists()
    await FileRegistry(path).write_config(CONFIG)  # another process, for which there never was one


async def test_a_file_that_is_gone_while_another_process_takes_over_is_an_outage(path: Path) -> None:
    path.unlink()
    async with watching(FileRegistry(path, in_use=True)) as seen:
        assert await seen.is_quiet(0.5)
        path.write_text(DOCUMENT)
        assert (await seen.snapshot()).entries.keys() == THEIRS.keys()


async def test_a_folder_that_is_replaced_is_followed(path: Path) -> None:
    async with watching(FileRegistry(path)) as seen:
        await seen.snapshot()
        path.parent.rename(path.parent.with_name("old"))
        path.parent.mkdir()
        path.write_text(json.dumps({"subnets": THEIRS | {KEY: {"PublicIP": "192.0.2.1"}}}))
        assert KEY in (await seen.entry(KEY, b'{"PublicIP":"192.0.2.1"}')).entries


async def test_links_that_are_exchanged_are_followed_as_a_mounted_config_map_has_them(tmp_path: Path) -> None:
    """The kubelet makes a folder for each version, and exchanges the link ..data; the former folder goes at once."""
    path, data = tmp_path / "registry.json", tmp_path / "..data"
    path.symlink_to("..data/registry.json")
    registry = FileRegistry(path)
    for version in range(3):
        folder = tmp_path / f"..2026_{version}"
        folder.mkdir()
        (folder / "registry.json").write_text(json.dumps({"subnets": {f"10.1.{version}.0-24": {}}}))
        link = tmp_path / "..data_tmp"
        link.symlink_to(folder.name)
        former = data.resolve()
        link.rename(data)
        if version:
            shutil.rmtree(former)
        assert list((await registry.list()).entries) == [f"10.1.{version}.0-24"]
    await registry.create(KEY, VALUE, LEASE_TTL_S)
    assert KEY in json.loads((folder / "registry.json").read_text())["subnets"]
    assert path.is_symlink()
    assert data.is_symlink()


async def test_permissions_that_go_and_come_back(open_directory: Path) -> None:
    path = open_directory / "registry.json"
    path.write_text(DOCUMENT)
    registry = FileRegistry(path)
    with nobody():
        await registry.list()
    path.chmod(0)
    with nobody(), pytest.raises(RegistryDenied):
        await registry.list()
    path.chmod(0o644)
    with nobody():
        assert (await registry.list()).entries.keys() == THEIRS.keys()


# What cannot be written


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync_is_written_and_said_once(
    error: int, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def write() -> None:
        registry = FileRegistry(path)
        entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
        await registry.renew(entry, OTHER_VALUE, LEASE_TTL_S)

    refused([Refusal("fsync", error)], lambda: asyncio.run(write()))
    assert json.loads(path.read_text())["subnets"][KEY]["PublicIP"] == "192.0.2.2"
    assert caplog.messages == [f"registry file {path}: a crash soon after a write may lose it"]


def test_a_disk_that_fails_is_no_written_file(path: Path) -> None:
    def write() -> None:
        with pytest.raises(OSError, match="Input/output error"):
            replace_file(path, b"{}")

    refused([Refusal("fsync", errno.EIO)], write)
    assert path.read_text() == DOCUMENT
    assert not draft_of(path).exists()


def _in_namespace(mounts: str, path: Path, body: str) -> list[str]:
    """Run `body` of an async function on a `registry`, in a mount namespace in which `mounts` ran; return its lines."""
    script = (
        textwrap.dedent(
            """
        import asyncio, logging, sys
        from pathlib import Path
        from flannel_udp.registry.file import store
        from flannel_udp.registry.file.registry import FileRegistry

        logging.basicConfig(stream=sys.stdout, format="%(message)s")

        async def main():
            registry = FileRegistry(Path(sys.argv[1]))
        """
        )
        + textwrap.indent(textwrap.dedent(body), "    ")
        + "\nasyncio.run(main())\n"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$0" -c "$@"', sys.executable, script, path],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_root
def test_a_file_that_is_a_mount_of_its_own_is_written_in_place(path: Path) -> None:
    inode = path.stat().st_ino
    body = """
        entry = await registry.create("10.1.15.0-24", b'{"PublicIP":"192.0.2.1"}', 60)
        await registry.renew(entry, b'{"PublicIP":"192.0.2.3"}', 60)
    """
    lines = _in_namespace(f"mount --bind {path} {path}", path, body)
    (line,) = lines
    assert line.startswith(f"registry file {path}: it is a mount of its own and is written in place: a crash amid ")
    assert json.loads(path.read_text())["subnets"][KEY]["PublicIP"] == "192.0.2.3"
    assert path.stat().st_ino == inode
    assert not draft_of(path).exists()


@needs_root
def test_a_watch_takes_a_write_in_place_for_no_outage(path: Path) -> None:
    body = """
        store.IN_PLACE_LOOKS, store.IN_PLACE_MAX_S = 1_000, 60.0  # a busy machine may hold up who writes
        entry = await registry.create("10.1.15.0-24", b'{"PublicIP":"192.0.2.1"}', 60)
        seen = set()

        async def watch():
            async for event in FileRegistry(Path(sys.argv[1])).watch():
                seen.update(entry.value for entry in event.entries.values() if entry)

        watching = asyncio.create_task(watch())
        for n in range(100):
            entry = await registry.renew(entry, b'{"PublicIP":"192.0.2.%d"}' % (n % 200), 60)
        while entry.value not in seen:
            await asyncio.sleep(0.01)
        watching.cancel()
    """
    lines = _in_namespace(f"mount --bind {path} {path}", path, body)
    assert [line for line in lines if "watching" in line] == []


@pytest.mark.parametrize("n_parts", [1, 5, 20])
def test_a_file_that_is_being_written_in_place_is_waited_for(
    n_parts: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = len(DOCUMENT) // n_parts + 1
    parts = [DOCUMENT[start : start + step] for start in range(0, len(DOCUMENT), step)]
    with path.open("w") as file:

        def write_on(_seconds: float) -> None:
            file.write(parts.pop(0))
            file.flush()

        monkeypatch.setattr(store, "time", SimpleNamespace(sleep=write_on, monotonic=time.monotonic))
        document, _ = store.FileStore(path).read()
    assert document["subnets"] == THEIRS


def test_a_file_that_stays_torn_is_told_after_a_few_looks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(DOCUMENT[:60])
    slept: list[float] = []
    monkeypatch.setattr(store, "time", SimpleNamespace(sleep=slept.append, monotonic=time.monotonic))
    with pytest.raises(RegistryError, match=r"not JSON"):
        store.FileStore(path).read()
    assert sum(slept) <= 0.2


@needs_root
def test_a_mounted_file_in_a_folder_that_is_read_only_is_written_in_place(path: Path) -> None:
    folder = path.parent
    mounts = f"mount --bind {folder} {folder} && mount --bind {path} {path} && mount -o remount,ro,bind {folder}"
    body = """await registry.create("10.1.15.0-24", b'{"PublicIP":"192.0.2.1"}', 60)"""
    (line,) = _in_namespace(mounts, path, body)
    assert "cannot be replaced (Read-only file system) and is written in place" in line
    assert KEY in json.loads(path.read_text())["subnets"]


@needs_root
@pytest.mark.parametrize("expires", [None, 7200])
def test_our_entry_in_a_folder_that_is_read_only_is_ours(expires: int | None, path: Path) -> None:
    ours = {"PublicIP": "192.0.2.1", "PublicIPv6": None}
    fields = ours | ({"Expires": expires_in(expires)} if expires else {})
    gone = {"10.1.99.0-24": {"PublicIP": "192.0.2.9", "Expires": expires_in(-60)}}
    path.write_text(json.dumps({"subnets": {KEY: fields} | gone}))
    before = path.read_bytes()
    mounts = f"mount --bind {path.parent} {path.parent} && mount -o remount,ro,bind {path.parent}"
    body = """
        entry = (await registry.list()).entries["10.1.15.0-24"]
        for _ in range(2):
            assert await registry.renew(entry, b'{"PublicIP":"192.0.2.1","PublicIPv6":null}', 86400) == entry
        print(await registry.time_left_s(entry))
    """
    *lines, left_s = _in_namespace(mounts, path, body)
    assert path.read_bytes() == before
    if expires is None:
        assert (lines, left_s) == ([], "None")
    else:
        assert float(left_s) == pytest.approx(7200, abs=30)
        (line,) = lines
        assert line.startswith(
            f"cannot lock registry file {path}: Read-only file system; {KEY} stays ours until its lease"
        )


async def test_a_value_that_must_be_written_and_cannot_be_is_no_renewal(open_directory: Path) -> None:
    path = open_directory / "registry.json"
    path.write_text(json.dumps({"subnets": {KEY: {"PublicIP": "192.0.2.1", "PublicIPv6": None}}}))
    open_directory.chmod(0o555)
    registry = FileRegistry(path)
    with nobody():
        entry = (await registry.list()).entries[KEY]
        with pytest.raises(RegistryDenied, match=f"cannot lock registry file {path}: Permission denied$"):
            await registry.renew(entry, OTHER_VALUE, LEASE_TTL_S)
        with pytest.raises(LeaseLost):
            await registry.renew(entry.__class__(KEY, OTHER_VALUE, 1, 0), OTHER_VALUE, LEASE_TTL_S)


async def test_what_an_interrupted_write_left_is_named(path: Path) -> None:
    path.write_bytes(b"")
    draft_of(path).write_text(DOCUMENT)
    with pytest.raises(RegistryError, match=f"; an interrupted write left what it wrote in {draft_of(path)}$"):
        await FileRegistry(path).list()


# The lock


async def test_nobody_else_may_open_the_lock(path: Path) -> None:
    lock = path.with_name("registry.json.lock")
    lock.touch(0o644)  # an earlier version's
    await FileRegistry(path).create(KEY, VALUE, LEASE_TTL_S)
    assert lock.stat().st_mode & 0o777 == 0o600
    lock.unlink()
    await FileRegistry(path).create("10.1.17.0-24", VALUE, LEASE_TTL_S)
    assert lock.stat().st_mode & 0o777 == 0o600


async def test_who_holds_the_lock_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "LOCK_TIMEOUT_S", 0.1)
    with path.with_name("registry.json.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RegistryError, match=rf"holds its lock for 0.1 s \(process {os.getpid()}, '"):
            await FileRegistry(path).create(KEY, VALUE, LEASE_TTL_S)
