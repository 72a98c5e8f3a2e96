"""What only the registry file has: a reader's eyes, other writers, disks that are full and files that are broken."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from flannel_udp.errors import ConfigMissing, LeaseLost, RegistryDenied, RegistryError, SubnetTaken
from flannel_udp.files.atomic import draft_of
from flannel_udp.model import LEASE_TTL_S, Entry
from flannel_udp.registry.file import registry as file_module
from flannel_udp.registry.file.registry import FileRegistry
from tests.registry.support import said, watching
from tests.support.names import name_cut_in_a_letter
from tests.support.patience import PATIENCE_S

KEY = "10.1.15.0-24"
VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'
OTHER_VALUE = b'{"PublicIP":"192.0.2.2","PublicIPv6":null}'
CONFIG = b'{"Network": "10.1.0.0/16"}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.json"


@pytest.fixture
def registry(path: Path) -> FileRegistry:
    return FileRegistry(path)


def expires_in(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


# The document


async def test_the_file_is_one_that_a_person_would_write(registry: FileRegistry, path: Path) -> None:
    await registry.write_config(CONFIG)
    await registry.create(KEY, VALUE, LEASE_TTL_S)
    text = path.read_text()
    expires = json.loads(text)["subnets"][KEY]["Expires"]
    assert text == textwrap.dedent(
        f"""\
        {{
          "config": {{
            "Network": "10.1.0.0/16"
          }},
          "subnets": {{
            "10.1.15.0-24": {{
              "PublicIP": "192.0.2.1",
              "PublicIPv6": null,
              "Expires": "{expires}"
            }}
          }}
        }}
        """
    )
    left_s = (datetime.strptime(expires, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()
    assert left_s == pytest.approx(86_400, abs=10)


async def test_a_table_written_by_hand_is_a_registry(registry: FileRegistry, path: Path) -> None:
    path.write_text('{"config": {"Network": "10.1.0.0/16"}, "subnets": {"10.1.15.0-24": {"PublicIP": "192.0.2.1"}}}')
    assert await registry.read_config() == b'{"Network":"10.1.0.0/16"}'
    (entry,) = (await registry.list()).entries.values()
    assert (entry.key, entry.value, entry.reserved) == (KEY, b'{"PublicIP":"192.0.2.1"}', True)


async def test_what_is_unknown_is_kept(registry: FileRegistry, path: Path) -> None:
    note = {"Note": "die Tür links ☃", "Rack": [1, {"x": None}]}
    path.write_text(
        json.dumps({"comment": note, "subnets": {KEY: {"PublicIP": "192.0.2.1", "BackendType": "x"} | note}})
    )
    entry = (await registry.list()).entries[KEY]
    renewed = await registry.renew(entry, OTHER_VALUE, LEASE_TTL_S)
    await registry.create("10.1.16.0-24", VALUE, LEASE_TTL_S)
    document = json.loads(path.read_text())
    assert document["comment"] == note
    assert document["subnets"][KEY] == {"PublicIP": "192.0.2.2", "PublicIPv6": None} | note
    assert renewed == (await registry.list()).entries[KEY]
    assert "Tür links ☃" in path.read_text()


async def test_expired_entries_are_absent_and_stay_until_their_subnet_is_wanted(
    registry: FileRegistry, path: Path
) -> None:
    subnets = {
        "10.1.1.0-24": {"PublicIP": "192.0.2.1", "Expires": "2001-01-01T00:00:00Z"},
        "10.1.2.0-24": {"PublicIP": "192.0.2.2", "Expires": expires_in(60)},
        "10.1.3.0-24": {"PublicIP": "192.0.2.3", "Expires": expires_in(60).removesuffix("+00:00")},
        "10.1.4.0-24": {"PublicIP": "192.0.2.4", "Expires": "2001-01-01T00:00:00+01:00"},
        "10.1.5.0-24": {"PublicIP": "192.0.2.5", "Expires": "soon"},
        "10.1.6.0-24": {"PublicIP": "192.0.2.6", "Expires": 5},
    }
    path.write_text(json.dumps({"subnets": subnets}))
    entries = (await registry.list()).entries
    assert {key: entry.reserved for key, entry in entries.items()} == {
        "10.1.2.0-24": False,
        "10.1.3.0-24": False,
        "10.1.5.0-24": True,  # a time that cannot be read takes nobody's subnet away
        "10.1.6.0-24": True,
    }
    assert len(json.loads(path.read_text())["subnets"]) == 6
    assert set((await registry.list()).ended) == {"10.1.1.0-24", "10.1.4.0-24"}
    await registry.write_config(CONFIG)
    assert json.loads(path.read_text())["subnets"] == subnets
    await registry.create("10.1.1.0-25", VALUE, LEASE_TTL_S)
    assert json.loads(path.read_text())["subnets"].keys() == {"10.1.1.0-25", *subnets} - {"10.1.1.0-24"}


async def test_a_missing_file_is_empty_and_is_made_by_the_first_write(registry: FileRegistry, path: Path) -> None:
    assert (await registry.list()).entries == {}
    with pytest.raises(ConfigMissing, match=str(path)):
        await registry.read_config()
    with pytest.raises(LeaseLost):
        await registry.renew(Entry(KEY, VALUE, 1, 1), VALUE, LEASE_TTL_S)
    assert not path.exists()
    await registry.write_config(CONFIG)
    assert path.stat().st_mode & 0o777 == 0o644
    assert sorted(path.parent.iterdir()) == [path, path.with_name("registry.json.lock")]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "line 1 column 1: not JSON: Expecting value"),
        (b'{\n  "config": {},\n  "subnets": }', "line 3 column 14: not JSON: Expecting value"),
        (b'{\n "note": "\xff"}', "line 2 column 11: not UTF-8"),
        (b"[]", "must be a JSON object"),
        (b'{"subnets": []}', '"subnets" must be a JSON object'),
        (b"[" * 100_000, "nested more than 32 deep"),
        (b'{"x": ' + b"[" * 40 + b'"[]"' + b"]" * 40 + b"}", "nested more than 32 deep"),
    ],
)
async def test_a_broken_file_is_named_with_line_and_column_and_never_overwritten(
    registry: FileRegistry, path: Path, content: bytes, fault: str
) -> None:
    path.write_bytes(content)
    entry = Entry(KEY, VALUE, 1, 1)
    for use in (
        registry.read_config(),
        registry.list(),
        registry.write_config(CONFIG),
        registry.create(KEY, VALUE, LEASE_TTL_S),
        registry.renew(entry, VALUE, LEASE_TTL_S),
        registry.delete(entry),
        registry.time_left_s(entry),
    ):
        with pytest.raises(RegistryError) as caught:
            await use
        assert str(caught.value).startswith(f"registry file {path}: ")
        assert fault in str(caught.value)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


async def test_brackets_in_texts_do_not_count_as_nesting(registry: FileRegistry, path: Path) -> None:
    path.write_text(json.dumps({"note": "[{" * 100 + '\\"' + "[" * 100}))
    assert (await registry.list()).entries == {}


@pytest.mark.parametrize("value", [b"", b"x", b"[]", b'"x"', b"[" * 100_000])
async def test_a_value_that_is_no_json_object_is_refused(registry: FileRegistry, path: Path, value: bytes) -> None:
    with pytest.raises(RegistryError, match="what is to be written is no"):
        await registry.create(KEY, value, LEASE_TTL_S)
    assert not path.exists()


# The file system


async def test_mode_owner_and_link_survive_a_write(path: Path) -> None:
    path.write_bytes(b"{}")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
    before = path.stat()
    link = path.with_name("link.json")
    link.symlink_to(path.name)
    await FileRegistry(link).write_config(CONFIG)
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert link.is_symlink()
    assert json.loads(path.read_text())["config"] == {"Network": "10.1.0.0/16"}


async def test_what_a_killed_writer_left_is_no_obstacle(registry: FileRegistry, path: Path) -> None:
    draft_of(path).write_bytes(b"half wri")
    await registry.write_config(CONFIG)
    assert sorted(path.parent.iterdir()) == [path, path.with_name("registry.json.lock")]


async def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "registry.json"
    line = rf"{path}: its directory does not exist: make it \(mkdir -p {path.parent}\)$"
    with pytest.raises(RegistryError, match=line):
        await FileRegistry(path).write_config(CONFIG)


async def test_a_directory_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=f"cannot read registry file {tmp_path}: Is a directory$"):
        await FileRegistry(tmp_path).list()


@contextmanager
def nobody() -> Iterator[None]:
    """Give up root's right to ignore permissions for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody can reach, which pytest's own is not."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o777)
        yield directory


async def test_a_file_that_must_not_be_written_is_denied_and_left_alone(open_directory: Path) -> None:
    path = open_directory / "registry.json"
    path.write_bytes(b"{}")
    path.chmod(0o444)
    with nobody(), pytest.raises(RegistryDenied, match=f"cannot write registry file {path}: Permission denied$"):
        await FileRegistry(path).write_config(CONFIG)
    assert path.read_bytes() == b"{}"
    assert not draft_of(path).exists()


async def test_a_directory_that_must_not_be_written_is_denied(open_directory: Path) -> None:
    open_directory.chmod(0o555)
    path = open_directory / "registry.json"
    with nobody(), pytest.raises(RegistryDenied, match=f"cannot lock registry file {path}: Permission denied$"):
        await FileRegistry(path).write_config(CONFIG)


async def test_a_file_that_must_not_be_read_is_denied_also_by_the_watch(open_directory: Path) -> None:
    path = open_directory / "registry.json"
    path.write_bytes(b"{}")
    path.chmod(0o000)
    with nobody():
        for use in (FileRegistry(path).list(), anext(FileRegistry(path).watch())):
            with pytest.raises(RegistryDenied, match=f"cannot read registry file {path}: Permission denied$"):
                await use


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from flannel_udp.errors import RegistryError
        from flannel_udp.registry.file.registry import FileRegistry

        async def main():
            registry = FileRegistry(Path(sys.argv[1]))
            await registry.write_config(b'{"Network": "10.1.0.0/16"}')
            before = Path(sys.argv[1]).read_bytes()
            try:
                await registry.create("10.1.15.0-24", b'{"PublicIP":"192.0.2.1","x":"' + 70_000 * b"x" + b'"}', 60)
            except RegistryError as error:
                print(type(error).__name__, error)
            assert Path(sys.argv[1]).read_bytes() == before
            print(sorted(path.name for path in Path(sys.argv[1]).parent.iterdir()))

        asyncio.run(main())
        """
    )
    path = tmp_path / "registry.json"
    shell = 'mount -t tmpfs -o size=64k tmpfs "$1" && exec "$2" -c "$3" "$4"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, "sh", tmp_path, sys.executable, script, path],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.stdout.splitlines() == [
        f"RegistryError cannot write registry file {path}: No space left on device",
        "['registry.json', 'registry.json.lock']",
    ], done.stderr


# Several at once


async def test_a_lock_that_is_never_let_go_is_an_error_and_holds_up_nothing_else(
    registry: FileRegistry, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_module, "LOCK_TIMEOUT_S", 0.3)
    with path.with_name("registry.json.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        writing = asyncio.create_task(registry.write_config(CONFIG))
        await asyncio.sleep(0.1)
        assert (await registry.list()).entries == {}  # readers need no lock
        held = f"registry file {path}: another process holds its lock for 0.3 s"
        with name_cut_in_a_letter(), pytest.raises(RegistryError, match=f"{held} [(]process {os.getpid()}, '"):
            await writing
    await registry.write_config(CONFIG)


def test_five_processes_that_acquire_at_once_get_five_subnets(path: Path) -> None:
    script = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from flannel_udp.errors import SubnetTaken
        from flannel_udp.registry.file.registry import FileRegistry

        async def main():
            registry = FileRegistry(Path(sys.argv[1]))
            sys.stdin.readline()
            while True:
                taken = (await registry.list()).entries
                key = next(f"10.1.{n}.0-24" for n in range(1, 256) if f"10.1.{n}.0-24" not in taken)
                try:
                    print((await registry.create(key, b'{"PublicIP":"%s"}' % sys.argv[2].encode(), 60)).key)
                    return
                except SubnetTaken:
                    pass

        asyncio.run(main())
        """
    )
    agents = [
        subprocess.Popen(
            [sys.executable, "-c", script, path, f"192.0.2.{n}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(1, 6)
    ]
    try:
        keys = []
        for agent in agents:
            assert agent.stdin is not None
            agent.stdin.write("go\n")
            agent.stdin.flush()
        for agent in agents:
            out, _ = agent.communicate(timeout=PATIENCE_S)
            assert agent.returncode == 0
            keys.append(out.strip())
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    assert sorted(keys) == [f"10.1.{n}.0-24" for n in range(1, 6)]
    subnets = json.loads(path.read_text())["subnets"]
    assert {subnet["PublicIP"] for subnet in subnets.values()} == {f"192.0.2.{n}" for n in range(1, 6)}


async def test_a_reader_never_sees_half_a_file(registry: FileRegistry, path: Path) -> None:
    other = FileRegistry(path)
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    stop_s = time.monotonic() + 0.5
    reads = 0

    def goes_on() -> bool:
        return time.monotonic() < stop_s or reads < 10

    async def write() -> None:
        nonlocal entry
        while goes_on():
            entry = await registry.renew(entry, OTHER_VALUE if entry.value == VALUE else VALUE, LEASE_TTL_S)

    async def read() -> None:
        nonlocal reads
        while goes_on():
            assert list((await other.list()).entries) == [KEY]
            reads += 1

    await asyncio.gather(write(), read())


# Watching


async def test_a_watch_sees_an_editor_that_writes_in_place_and_one_that_replaces(
    registry: FileRegistry, path: Path
) -> None:
    async with watching(registry) as seen:
        assert (await seen.snapshot()).entries == {}
        path.write_text('{"subnets": {"10.1.1.0-24": {"PublicIP": "192.0.2.1"}}}')
        assert list((await seen.change()).entries) == ["10.1.1.0-24"]
        new = path.with_name("new.json")
        new.write_text('{"subnets": {"10.1.2.0-24": {"PublicIP": "192.0.2.1"}}}')
        new.replace(path)
        change = await seen.change()
        assert set(change.entries) == {"10.1.1.0-24", "10.1.2.0-24"}
        assert change.entries["10.1.1.0-24"] is None
        path.write_text("{}")
        assert (await seen.change()).entries == {"10.1.2.0-24": None}


async def test_two_writes_of_equal_size_within_one_tick_are_both_seen(registry: FileRegistry, path: Path) -> None:
    path.write_bytes(b'{"subnets": {"10.1.1.0-24": {"PublicIP": "192.0.2.1"}}}')
    moment_ns = time.time_ns() + 10**10  # as if it was looked at within the tick, however long this machine hesitates
    os.utime(path, ns=(moment_ns, moment_ns))
    async with aclosing(registry.watch()) as items:
        await anext(items)
        with path.open("r+b") as file:
            file.write(b'{"subnets": {"10.1.1.0-24": {"PublicIP": "192.0.2.9"}}}')
        os.utime(path, ns=(moment_ns, moment_ns))
        change = await asyncio.wait_for(anext(items), PATIENCE_S)
        entry = change.entries["10.1.1.0-24"]
        assert entry is not None
        assert b"192.0.2.9" in entry.value


async def test_a_file_that_breaks_and_heals_is_one_line_each_way_and_a_snapshot(
    registry: FileRegistry, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flannel_udp")
    async with watching(registry) as seen:
        await seen.snapshot()
        path.write_text('{"subnets": {')
        await said(caplog, "not JSON")
        assert await seen.is_quiet(0.1)
        path.write_text('{"subnets": {"10.1.1.0-24": {"PublicIP": "192.0.2.1"}}}')
        assert list((await seen.snapshot()).entries) == ["10.1.1.0-24"]
    messages = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in messages] == ["WARNING", "INFO"], messages
    assert f"registry file {path}: line 1 column 14: not JSON" in messages[0][1]
    assert "works again after" in messages[1][1]


async def test_a_reservation_cannot_be_created_over(registry: FileRegistry, path: Path) -> None:
    path.write_text(json.dumps({"subnets": {KEY: "not even an object"}}))
    with pytest.raises(SubnetTaken):
        await registry.create(KEY, VALUE, LEASE_TTL_S)
