"""`lease list`, `show`, `release` and `reserve` through the program, with each registry."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.lab.etcd_server import EtcdServer
from flannel_udp.lab.netns import is_readable
from flannel_udp.model import LEASE_TTL_S, Entry
from flannel_udp.options import EtcdOptions, KubeOptions, Options
from flannel_udp.registry import Registry
from flannel_udp.registry.open import open_registry
from tests.kube_api.server import ApiServer
from tests.support.patience import PATIENCE_S

MARK = 0x1234ABCD
CONFIG = b'{"Network": "10.1.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:1::/48"}'
KEY, VALUE = "10.1.15.0-24", b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'
VXLAN_KEY = "10.1.16.0-24&fd00:1:0:16::-64"
VXLAN = (
    b'{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db8::2","BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"8e:64:7c:7f:e7:c9"},"BackendV6Data":{"VNI":1,"VtepMAC":"8e:64:7c:7f:e7:ca"}}'
)
RESERVED_KEY = "10.1.9.0-24"
ASKED = b"[y/N] "


class Store:
    """One registry: its flags, what others do there, and our commands."""

    def __init__(self, options: Options, flags: list[str], environment: dict[str, str]) -> None:
        self.options = options
        self._flags = flags
        self._env = {name: text for name, text in os.environ.items() if not name.startswith("FLANNELD_")} | environment

    async def do(self, call: Callable[[Registry], Any]) -> Any:
        registry = open_registry(self.options, MARK)
        try:
            return await call(registry)
        finally:
            await registry.close()

    async def entries(self) -> dict[str, Entry]:
        return dict((await self.do(lambda registry: registry.list())).entries)

    async def fill(self) -> None:
        """Have a configuration, a lease of either kind, and a reservation."""
        await self.do(lambda registry: registry.write_config(CONFIG))
        await self.do(lambda registry: registry.create(KEY, VALUE, LEASE_TTL_S))
        await self.do(lambda registry: registry.create(VXLAN_KEY, VXLAN, 3600))
        await self.do(lambda registry: registry.reserve(RESERVED_KEY, b'{"PublicIP":"192.0.2.9"}', None))

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "flannel_udp", "lease", *words, *self._flags]

    def run(self, *words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            self.argv(*words),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=self._env,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def json(self, *words: str) -> Any:
        code, out, err = self.run(*words, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    @contextmanager
    def on_a_terminal(self, *words: str) -> Iterator[Asked]:
        """Run a command that asks back, up to its question."""
        leader, follower = pty.openpty()
        process = subprocess.Popen(
            self.argv(*words), stdin=follower, stdout=subprocess.PIPE, stderr=follower, env=self._env
        )
        os.close(follower)
        try:
            yield Asked(process, leader)
        finally:
            process.kill()
            process.communicate()
            os.close(leader)


class Asked:
    """A command that waits for an answer."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int) -> None:
        self.process = process
        self._terminal = terminal
        self.shown = b""
        while not self.shown.endswith(ASKED):
            assert is_readable(terminal, PATIENCE_S), self.shown
            part = os.read(terminal, 4096)
            assert part, self.shown
            self.shown += part

    def answer(self, text: str) -> tuple[int, str]:
        """Return the exit code, and what the terminal shows after the answer."""
        os.write(self._terminal, text.encode())
        code = self.process.wait(60)
        return code, self.rest()

    def rest(self) -> str:
        shown = b""
        try:
            while part := os.read(self._terminal, 4096):
                shown += part
        except OSError:  # EIO: nobody has the other end any more
            pass
        return shown.decode().replace("\r\n", "\n")


@pytest.fixture(params=["etcd", "file"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        where = f"file:{tmp_path / 'registry.json'}"
        made = Store(Options(registry=where), [f"--registry={where}"], {})
    else:
        etcd: EtcdServer = request.getfixturevalue("etcd")
        options: EtcdOptions = request.getfixturevalue("etcd_options")
        flags = [f"--etcd-endpoints={etcd.endpoint}", f"--etcd-prefix={options.prefix}"]
        made = Store(Options(etcd=options), flags, {})
    await made.fill()
    return made


# list, show


async def test_all_leases_are_listed_with_whose_they_are_and_when_they_end(store: Store) -> None:
    reserved, lease, vxlan = store.json("list")
    assert [row["key"] for row in (reserved, lease, vxlan)] == [RESERVED_KEY, KEY, VXLAN_KEY]
    assert (reserved["reserved"], reserved["expires_in_s"], reserved["mark"]) == (True, None, None)
    assert (lease["subnet"], lease["ipv6_subnet"], lease["public_ip"]) == ("10.1.15.0/24", None, "192.0.2.1")
    assert (lease["reserved"], lease["mark"], lease["backend_type"]) == (False, "1234abcd", None)
    assert 86_000 < lease["expires_in_s"] <= 86_401
    assert (vxlan["subnet"], vxlan["ipv6_subnet"]) == ("10.1.16.0/24", "fd00:1:0:16::/64")
    assert (vxlan["public_ip"], vxlan["public_ipv6"]) == ("192.0.2.2", "2001:db8::2")
    assert vxlan["backend_data"] == {"VNI": 1, "VtepMAC": "8e:64:7c:7f:e7:c9"}
    assert vxlan["backend_v6_data"]["VtepMAC"] == "8e:64:7c:7f:e7:ca"
    code, out, err = store.run("list")
    assert (code, err) == (0, "")
    heading, *lines = [line.split() for line in out.splitlines()]
    assert heading == ["subnet", "public", "ip", "backend", "ends", "mark", "says"]
    assert lines[0] == ["10.1.9.0/24", "192.0.2.9", "reservation"]
    assert lines[1][:3] == ["10.1.15.0/24", "192.0.2.1", "in"]
    assert lines[1][-1] == "1234abcd"
    said = "VNI 1, VtepMAC 8e:64:7c:7f:e7:c9; VNI 1, VtepMAC 8e:64:7c:7f:e7:ca"
    assert " ".join(lines[2]).endswith(f"1234abcd {said}")


@pytest.mark.parametrize(
    "words", ["10.1.16.0/24", "fd00:1:0:16::/64", VXLAN_KEY, "10.1.16.7", "fd00:1:0:16::7", "192.0.2.2", "2001:db8::2"]
)
async def test_a_lease_is_shown_by_whatever_it_is_known_by(store: Store, words: str) -> None:
    (row,) = store.json("show", words)
    assert row["key"] == VXLAN_KEY
    code, out, _ = store.run("show", words)
    lines = {line[:11].strip(): line[11:] for line in out.splitlines()}
    assert code == 0
    assert lines.pop("ends").startswith(("in 1 h 0 min", "in 59 min "))
    assert lines == {
        "key": VXLAN_KEY,
        "subnet": "10.1.16.0/24 and fd00:1:0:16::/64",
        "public ip": "192.0.2.2 and 2001:db8::2",
        "backend": "vxlan",
        "says": "VNI 1, VtepMAC 8e:64:7c:7f:e7:c9",
        "says (v6)": "VNI 1, VtepMAC 8e:64:7c:7f:e7:ca",
        "mark": "1234abcd",
    }


@pytest.mark.parametrize("store", ["file"], indirect=True)
@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("10.1.155.0/24", ": did you mean 10.1.15.0/24?"),
        ("10.1.5.0-24", ": did you mean 10.1.15.0-24?"),
        ("198.51.100.7", ""),
        ("h2", ""),
    ],
)
async def test_a_lease_that_is_not_there_is_one_line(store: Store, words: str, hint: str) -> None:
    line = f"flannel-udp: the registry has no lease {words!r}{hint} (see: flannel-udp lease list)\n"
    assert store.run("show", words) == (1, "", line)


@pytest.mark.parametrize("store", ["file"], indirect=True)
async def test_what_cannot_be_understood_is_listed_with_the_reason_and_harms_no_terminal(store: Store) -> None:
    await store.do(lambda registry: registry.reserve("10.1.17.0-24", b'{"BackendType":"udp"}', None))
    said = b'{"PublicIP":"192.0.2.8","BackendType":"a\\u001b[31m","BackendData":"x\\ny"}'
    await store.do(lambda registry: registry.reserve("10.1.18.0-24", said, None))
    rows = {row["key"]: row for row in store.json("list")}
    assert rows["10.1.17.0-24"]["faults"] == ["lease value has no PublicIP"]
    _, out, err = store.run("list")
    assert err == ""
    assert "\x1b" not in out
    assert len(out.splitlines()) == 6
    assert "lease value has no PublicIP" in out


async def test_no_leases_are_told(tmp_path: Path) -> None:
    where = f"file:{tmp_path / 'registry.json'}"
    empty = Store(Options(registry=where), [f"--registry={where}"], {})
    (tmp_path / "registry.json").write_text("{}")
    assert empty.run("list") == (0, "no leases\n", "")
    assert empty.json("list") == []


# release


@pytest.mark.parametrize(
    ("words", "key"), [("10.1.15.0/24", KEY), (VXLAN_KEY, VXLAN_KEY), ("10.1.9.0/24", RESERVED_KEY)]
)
async def test_a_lease_is_released_and_the_others_stay(store: Store, words: str, key: str) -> None:
    before = await store.entries()
    code, out, err = store.run("release", words, "--yes")
    assert (code, err) == (0, "")
    assert out.startswith("released 10.1.")
    after = await store.entries()
    assert after.keys() == before.keys() - {key}


async def test_a_release_asks_back_and_does_what_is_said(store: Store) -> None:
    for answer in ("\n", "n\n", "\x04"):
        with store.on_a_terminal("release", "10.1.15.0/24") as asked:
            assert re.search(rb"10.1.15.0/24 of 192.0.2.1, ends in (23 h 59 min|1 d 0 h), 1234abcd", asked.shown)
            code, shown = asked.answer(answer)
            assert code == 1
            assert "nothing was done" in shown
        assert KEY in await store.entries()
    with store.on_a_terminal("release", "10.1.15.0/24") as asked:
        assert asked.answer("y\n")[0] == 0
    assert KEY not in await store.entries()


@pytest.mark.parametrize("command", ["release", "reserve"])
async def test_a_lease_that_changes_while_it_is_asked_back_is_left_alone(store: Store, command: str) -> None:
    with store.on_a_terminal(command, "10.1.15.0/24") as asked:
        entry = (await store.entries())[KEY]
        await store.do(lambda registry: registry.take(entry, b'{"PublicIP":"192.0.2.7"}', LEASE_TTL_S))
        code, shown = asked.answer("y\n")
    assert code == 1
    assert f"{KEY} was written by somebody else" in shown
    assert (await store.entries())[KEY].value == b'{"PublicIP":"192.0.2.7"}'


@pytest.mark.parametrize("store", ["file"], indirect=True)
@pytest.mark.parametrize("command", ["release", "reserve"])
async def test_who_interrupts_the_question_has_done_nothing(store: Store, command: str) -> None:
    with store.on_a_terminal(command, "10.1.15.0/24") as asked:
        code = None
        for _ in range(6):  # one that comes between the question and the reading of the answer is not heard by Python
            asked.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                code = asked.process.wait(10)
                break
        assert code == 130
        assert "Traceback" not in asked.rest()
    assert not (await store.entries())[KEY].reserved


@pytest.mark.parametrize("store", ["file"], indirect=True)
@pytest.mark.parametrize("command", ["release", "reserve"])
async def test_without_a_terminal_nothing_is_done_unless_it_is_told_to(store: Store, command: str) -> None:
    line = "flannel-udp: there is no terminal to ask back on, and nothing was done: give --yes\n"
    assert store.run(command, "10.1.15.0/24") == (2, "", line)
    assert not (await store.entries())[KEY].reserved


@pytest.mark.parametrize("store", ["file"], indirect=True)
@pytest.mark.parametrize(
    ("command", "flags"), [("release", ["--yes"]), ("reserve", ["--yes"]), ("reserve", []), ("show", [])]
)
async def test_what_is_no_subnet_of_a_lease_is_told(store: Store, command: str, flags: list[str]) -> None:
    code, out, err = store.run(command, "10.1.15.0/33", *flags)
    assert (code, out) == (1 if command == "show" else 2, "")
    assert len(err.splitlines()) == 1
    assert "10.1.15.0/33" in err


# reserve


async def test_a_lease_that_is_reserved_keeps_what_it_says_and_never_ends(store: Store) -> None:
    with store.on_a_terminal("reserve", "10.1.16.0/24") as asked:
        assert asked.answer("yes\n")[0] == 0
    entry = (await store.entries())[VXLAN_KEY]
    assert entry.reserved
    assert json.loads(entry.value) == json.loads(VXLAN)
    done = store.run("reserve", VXLAN_KEY, "--yes")
    said = "nothing done: 10.1.16.0/24 and fd00:1:0:16::/64 is a reservation already\n"
    assert done == (0, said, "")
    assert store.json("reserve", VXLAN_KEY, "--yes")["reserved"]["key"] == VXLAN_KEY


async def test_a_free_subnet_is_reserved_with_flannels_value(store: Store) -> None:
    document = store.json("reserve", "10.1.20.0/24", "--public-ip=192.0.2.20", "--yes")
    assert document["reserved"]["key"] == "10.1.20.0-24"
    key = "10.1.21.0-24&fd00:1:0:21::-64"
    done = store.run("reserve", key, "--public-ip=192.0.2.21", "--public-ipv6=2001:db8::21", "--yes")
    assert done == (0, "reserved 10.1.21.0/24 and fd00:1:0:21::/64\n", "")
    assert store.run("reserve", "fd00:1:0:22::/64", "--public-ipv6=2001:db8::22", "--yes")[0] == 0
    entries = await store.entries()
    for key, value in {
        "10.1.20.0-24": '{"PublicIP":"192.0.2.20","PublicIPv6":null}',
        "10.1.21.0-24&fd00:1:0:21::-64": '{"PublicIP":"192.0.2.21","PublicIPv6":"2001:db8::21"}',
        "0.0.0.0-0&fd00:1:0:22::-64": '{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::22"}',
    }.items():
        assert (entries[key].value.decode(), entries[key].reserved) == (value, True)


NO_HOST = "the network configuration has subnets of length /24 from 10.1.1.0 to 10.1.255.0"


@pytest.mark.parametrize("store", ["file"], indirect=True)
@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["10.1.20.0/24"], 2, "10.1.20.0/24 is nobody's yet: name the host that is to have it, by --public-ip"),
        (
            ["10.1.20.0/24", "--public-ip=192.0.2.20", "--public-ipv6=2001:db8::20"],
            2,
            "--public-ipv6=2001:db8::20 is given, and 10.1.20.0/24 has no IPv6 part",
        ),
        (["10.9.20.0/24", "--public-ip=192.0.2.20"], 2, f"no host would take 10.9.20.0/24: {NO_HOST}"),
        (["10.1.20.0/25", "--public-ip=192.0.2.20"], 2, f"no host would take 10.1.20.0/25: {NO_HOST}"),
        (
            ["10.1.8.0/23", "--public-ip=192.0.2.20"],
            1,
            "10.1.8.0/23 overlaps with 10.1.9.0/24 of 192.0.2.9, a reservation: release that first",
        ),
        (
            ["10.1.15.0/24", "--public-ip=192.0.2.20"],
            1,
            "10.1.15.0/24 is held by 192.0.2.1, not by 192.0.2.20: release it first",
        ),
        (
            ["10.1.15.7/24", "--public-ip=192.0.2.20"],
            2,
            "'10.1.15.7/24' is neither a subnet such as 10.1.15.0/24 nor a key such as 10.1.15.0-24",
        ),
        (["10.1.20.0/24", "--public-ip=h2"], 2, "--public-ip: 'h2' is not an IPv4 address such as 192.0.2.1"),
    ],
)
async def test_what_cannot_be_reserved_is_one_line(store: Store, words: list[str], code: int, line: str) -> None:
    before = await store.entries()
    assert store.run("reserve", *words, "--yes") == (code, "", f"flannel-udp: {line}\n")
    assert (await store.entries()).keys() == before.keys()


# Registries that refuse


async def test_kubernetes_is_listed_from_any_host_and_hands_out_its_subnets_itself() -> None:
    with ApiServer() as api:
        fields = {"kube_subnet_manager": "true", "backend_type": "vxlan", "public_ip": "192.0.2.2"}
        api.add_node("h2", "10.1.16.0/24", **fields, backend_data='{"VNI":1,"VtepMAC":"8e:64:7c:7f:e7:c9"}')
        options = Options(kube=KubeOptions(subnet_mgr=True, api_url=api.url))
        store = Store(options, ["--kube-subnet-mgr", f"--kube-api-url={api.url}"], {"NODE_NAME": ""})
        (row,) = store.json("list")
        assert (row["subnet"], row["public_ip"], row["reserved"]) == ("10.1.16.0/24", "192.0.2.2", True)
        assert row["backend_data"] == {"VNI": 1, "VtepMAC": "8e:64:7c:7f:e7:c9"}
        assert store.json("show", "192.0.2.2") == [row]
        api.add_node("h3", "10.1.16.0/24", **fields)
        (row,) = store.json("list")
        assert row["faults"] == ["the podCIDR of h2 and h3: packets go to one of them alone"]
        for command, why in {
            "release": "released: it ends with its node (kubectl delete node)",
            "reserve": "reserved: it is its node's for as long as that lives",
        }.items():
            line = f"flannel-udp: Kubernetes hands out the subnets, so that none can be {why}\n"
            assert store.run(command, "10.1.16.0/24", "--yes") == (1, "", line)


async def test_a_registry_that_is_away_is_one_line(tmp_path: Path) -> None:
    where = f"file:{tmp_path}"
    for command in (["list"], ["show", "10.1.15.0/24"], ["release", "10.1.15.0/24", "--yes"]):
        code, out, err = Store(Options(registry=where), [f"--registry={where}"], {}).run(*command)
        assert (code, out) == (1, "")
        assert err.startswith(f"flannel-udp: cannot read registry file {tmp_path}")
        assert len(err.splitlines()) == 1
