"""Programs that are missing, fail, hang: real processes, one line each."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import uvloop

from flannel_udp.cli import search_path
from flannel_udp.cli.main import main
from flannel_udp.cli.search_path import completed
from flannel_udp.errors import FlannelError
from flannel_udp.host.firewall import keeper, tool
from flannel_udp.host.firewall.iptables import Iptables
from flannel_udp.host.firewall.keeper import Firewall
from flannel_udp.host.firewall.nftables import Nftables
from flannel_udp.host.firewall.owner import Owner
from flannel_udp.host.firewall.passages import Passage
from flannel_udp.host.firewall.rules import rules_for
from flannel_udp.host.firewall.tool import Finished, ToolMissing, run_tool
from tests.support.patience import PATIENCE_S

NETWORK = IPv4Network("10.1.0.0/16")
RULES = rules_for(NETWORK, IPv4Network("10.1.15.0/24"), masquerade=True, forward=True, random_fully=True)

MakeTool = Callable[[str, str], None]


@pytest.fixture
def make_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeTool:
    """Puts shell scripts into a folder that PATH begins with; the shell itself is found behind it."""

    def make(name: str, body: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return make


async def test_a_program_reads_writes_and_ends(make_tool: MakeTool) -> None:
    make_tool("nft", "cat; echo oops >&2; exit 3")
    done = await run_tool("nft", "-f", "-", stdin="rules\n")
    assert (done.status, done.output, done.errors) == (3, "rules\n", "oops\n")


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])  # the tests' loop and the agent's
def test_an_input_that_nobody_reads_is_no_fault(run: Callable[..., list[Finished]], make_tool: MakeTool) -> None:
    make_tool("nft", "exec <&-; exit 0")

    async def several() -> list[Finished]:
        return [await run_tool("nft", stdin="x" * 1_000_000) for _ in range(5)]

    assert [done.status for done in run(several())] == [0] * 5


async def test_a_missing_program_is_named_with_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolMissing, match=r"^nft is not in PATH \(/nowhere\)$"):
        await run_tool("nft")


@pytest.mark.parametrize(
    ("path", "searched"),
    [
        ("/usr/bin:/bin", "/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"),  # cron's
        ("/opt/bin:/usr/local/bin/", "/opt/bin:/usr/local/bin/:/usr/local/sbin:/usr/sbin:/sbin"),
        ("/usr/sbin:/usr/bin", "/usr/sbin:/usr/bin:/usr/local/sbin:/sbin"),
        (None, "/bin:/usr/bin:/usr/local/sbin:/usr/sbin:/sbin"),
        ("", "/bin:/usr/bin:/usr/local/sbin:/usr/sbin:/sbin"),
        ("/usr/local/sbin:/usr/sbin:/sbin:/bin", "/usr/local/sbin:/usr/sbin:/sbin:/bin"),
        ("/opt/tools", "/opt/tools"),  # somebody's choice
    ],
)
def test_programs_are_looked_for_in_sbin_after_path(path: str | None, searched: str) -> None:
    assert completed(path) == searched


async def test_a_program_in_sbin_is_found_by_every_command_where_path_lacks_that(
    make_tool: MakeTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_path, "SBIN", (str(tmp_path / "sbin"),))
    (tmp_path / "sbin").mkdir()
    make_tool("sbin/only-in-sbin", "echo found")
    with pytest.raises(ToolMissing):
        await run_tool("only-in-sbin")
    assert main(["--version"]) == 0
    assert (await run_tool("only-in-sbin")).output == "found\n"


async def test_a_program_that_cannot_be_run_is_named(make_tool: MakeTool, tmp_path: Path) -> None:
    make_tool("nft", "")
    (tmp_path / "nft").write_bytes(b"\x7fELF")
    with pytest.raises(FlannelError, match=r"^cannot run nft: Exec format error$"):
        await run_tool("nft")


UNMADE = """\
*filter
:FLANNEL-FWD - [0:0]
-D FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-X FLANNEL-FWD
COMMIT
*nat
:FLANNEL-POSTRTG - [0:0]
-D POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-X FLANNEL-POSTRTG
COMMIT
"""


@pytest.mark.parametrize("status", [0, 1])
async def test_rules_that_stood_are_taken_down_in_three_runs(make_tool: MakeTool, tmp_path: Path, status: int) -> None:
    """On a busy host each takes some 150 ms, and an agent that ends has 0.7 s."""
    make_tool("iptables", f"echo iptables >>{tmp_path}/runs")
    make_tool("iptables-restore", f"echo iptables-restore >>{tmp_path}/runs; cat >{tmp_path}/script; exit {status}")
    assert await Iptables(Owner(NETWORK)).take_down(RULES) is (status == 0)
    assert (tmp_path / "runs").read_text().split() == ["iptables", "iptables", "iptables-restore"]
    assert (tmp_path / "script").read_text() == UNMADE


async def test_the_rules_of_an_overlay_that_took_our_names_meanwhile_are_not_taken_down(
    make_tool: MakeTool, tmp_path: Path
) -> None:
    foreign = '-A FLANNEL-FWD -s 10.9.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT'
    make_tool("iptables", f"echo '{foreign}'")
    make_tool("iptables-restore", f"cat >{tmp_path}/script; exit 1")
    assert not await Iptables(Owner(NETWORK)).take_down(RULES)
    assert "-X FLANNEL-FWD\n" not in (tmp_path / "script").read_text()


async def test_a_table_of_nftables_is_taken_down_in_two_runs(make_tool: MakeTool, tmp_path: Path) -> None:
    make_tool("nft", f'echo "$*" >>{tmp_path}/runs')
    assert await Nftables(Owner(NETWORK)).take_down(RULES)
    runs = ["list table ip flannel-ipv4", "delete table ip flannel-ipv4"]
    assert (tmp_path / "runs").read_text().splitlines() == runs
    assert Nftables(Owner(NETWORK)).commands_against(RULES) == ["nft delete table ip flannel-ipv4"]


def test_the_commands_against_our_rules_are_those_that_undo_them() -> None:
    assert Iptables(Owner(NETWORK)).commands_against(RULES) == [
        'iptables -w -t filter -D FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD',
        "iptables -w -t filter -F FLANNEL-FWD",
        "iptables -w -t filter -X FLANNEL-FWD",
        'iptables -w -t nat -D POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG',
        "iptables -w -t nat -F FLANNEL-POSTRTG",
        "iptables -w -t nat -X FLANNEL-POSTRTG",
    ]


async def test_a_program_that_hangs_is_killed(make_tool: MakeTool, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Popen[str]] = []

    def start(*words: Any, **named: Any) -> Popen[str]:
        started.append(Popen(*words, **named))
        return started[0]

    monkeypatch.setattr(tool, "Popen", start)
    monkeypatch.setattr(tool, "TIME_LIMIT_S", 0.2)
    make_tool("nft", "exec sleep 60")
    with pytest.raises(FlannelError, match=r"^nft did not end within 0\.2 s and was killed$"):
        await run_tool("nft")
    assert started[0].returncode == -signal.SIGKILL


async def test_whoever_is_cancelled_leaves_no_program_behind(make_tool: MakeTool, tmp_path: Path) -> None:
    make_tool("nft", f"echo $$ >{tmp_path}/pid; exec sleep 60")
    running = asyncio.create_task(run_tool("nft"))
    deadline_s = time.monotonic() + PATIENCE_S
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    process = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}")
    while process.exists():  # killed; a thread collects it
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)


async def test_starting_a_program_holds_nobody_up_and_it_dies_with_whoever_is_cancelled_meanwhile(
    make_tool: MakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    started: list[Popen[str]] = []

    def start_slowly(*words: Any, **named: Any) -> Popen[str]:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        started.append(Popen(*words, **named))
        return started[0]

    monkeypatch.setattr(tool, "Popen", start_slowly)
    make_tool("nft", "exec sleep 60")
    running = asyncio.create_task(run_tool("nft"))
    assert await asyncio.to_thread(begun.wait, PATIENCE_S)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    go_on.set()
    deadline_s = time.monotonic() + PATIENCE_S
    while not started or started[0].returncode is None:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)
    assert started[0].returncode == -signal.SIGKILL


async def test_our_secrets_are_not_handed_on(make_tool: MakeTool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNELD_ETCD_PASSWORD", "hunter2")
    make_tool("nft", "env")
    output = (await run_tool("nft")).output
    assert "LC_ALL=C\n" in output
    assert "FLANNELD" not in output


async def test_what_nft_complains_of_is_one_line(make_tool: MakeTool) -> None:
    make_tool("nft", "printf 'Error: syntax\\n  ^^^\\n' >&2; exit 1")
    with pytest.raises(FlannelError, match=r"^nft failed \(exit 1\): Error: syntax \^\^\^$"):
        await Nftables(Owner(NETWORK)).put(RULES)


async def test_a_lock_that_another_program_holds_is_named(make_tool: MakeTool) -> None:
    said = "Another app is currently holding the xtables lock; still 4s 0us time ahead to have a chance"
    make_tool("iptables", f"echo '{said}' >&2; exit 4")
    expected = r"^iptables: another program holds the xtables lock for more than 5 s$"
    with pytest.raises(FlannelError, match=expected):
        await Iptables(Owner(NETWORK)).put(RULES)


async def test_random_source_ports_are_given_up_only_where_just_they_are_unknown(make_tool: MakeTool) -> None:
    make_tool("nft", "! grep -q fully-random")
    fitted = await Nftables(Owner(NETWORK)).fit(RULES)
    assert (fitted.masquerade, fitted.random_fully) == (RULES.masquerade, False)
    make_tool("iptables-restore", "! grep -q random-fully")
    assert (await Iptables(Owner(NETWORK)).fit(RULES)).random_fully is False
    make_tool("nft", "exit 1")
    assert await Nftables(Owner(NETWORK)).fit(RULES) == RULES
    make_tool("nft", "exit 0")
    assert await Nftables(Owner(NETWORK)).fit(RULES) == RULES


async def test_a_tool_that_prints_rules_in_other_words_is_believed_when_it_does_so_twice(
    make_tool: MakeTool, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    make_tool("nft", f'if [ "$1" = list ]; then sed "s/0x0000/0x/g" {kept}; else cat >{kept}; fi')
    applier = Nftables(Owner(NETWORK))
    await applier.put(RULES)
    assert await applier.stands(RULES)
    kept.write_text(kept.read_text().replace("return", "accept", 1))
    assert not await applier.stands(RULES)


async def test_rules_that_another_program_changes_all_the_time_are_an_error(
    make_tool: MakeTool, tmp_path: Path
) -> None:
    make_tool("nft", '[ "$1" != list ] || date +%N')
    with pytest.raises(FlannelError, match="another program changes our rules at the same moment"):
        await Nftables(Owner(NETWORK)).put(RULES)


async def no_passages() -> list[Sequence[Passage]]:
    return []


async def test_a_keeper_tells_what_goes_wrong_and_that_it_is_over(make_tool: MakeTool, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    make_tool("nft", "echo the set is busy >&2; exit 1")
    make_tool("iptables", "exit 0")
    told: list[str | None] = []
    firewall = Firewall(
        Owner(NETWORK), lambda *_, **__: None, no_passages, nftables=True, resync_s=600, tell=told.append
    )
    firewall.want(RULES)
    standing = asyncio.create_task(firewall.stood())
    keeping = asyncio.create_task(firewall.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not told:
                await asyncio.sleep(0.01)
            assert "the set is busy" in (told[0] or "")
            make_tool("nft", f'if [ "$1" = list ]; then cat {kept}; elif [ "$1" = -f ]; then sed 1,2d >{kept}; fi')
            await standing
            while told[-1] is not None:
                await asyncio.sleep(0.01)
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])


@pytest.mark.parametrize(("took_s", "rests_s"), [(0.01, 2.0), (0.5, 10.0), (5.0, 60.0), (100.0, 60.0)])
def test_a_look_at_the_rules_of_others_costs_a_twentieth_of_the_time_and_rests_a_minute_at_most(
    took_s: float, rests_s: float
) -> None:
    assert keeper.rest_s(took_s) == rests_s


async def test_who_cannot_look_at_the_rules_of_others_keeps_what_was_found_and_looks_again(
    make_tool: MakeTool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_REST_BESIDE_S", 0.01)
    monkeypatch.setattr(keeper, "_BESIDE_S", 0.01)
    kept = tmp_path / "kept"
    make_tool("nft", f'if [ "$1" = list ]; then cat {kept}; elif [ "$1" = -f ]; then sed 1,2d >{kept}; fi')
    make_tool("iptables", "exit 0")
    noted, looks = list[str](), 0

    async def passages() -> list[Sequence[Passage]]:
        nonlocal looks
        looks += 1
        if looks in (2, 3):
            raise FlannelError("asking which pods there are: Too many open files")
        return []

    firewall = Firewall(
        Owner(NETWORK), lambda source, *_, **__: noted.append(source), passages, nftables=True, resync_s=600
    )
    firewall.want(RULES)
    tasks = [asyncio.create_task(firewall.run()), asyncio.create_task(firewall.look_beside())]
    try:
        async with asyncio.timeout(PATIENCE_S):
            while looks < 5:
                assert not any(task.done() for task in tasks)
                await asyncio.sleep(0.01)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert noted.count("firewall") == looks - 2
    assert [record.message for record in caplog.records if "of others" in record.message] == [
        "looking at the firewall rules of others: asking which pods there are: Too many open files"
    ]


async def test_a_keeper_ends_when_it_is_cancelled_at_any_moment(make_tool: MakeTool, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    make_tool("nft", f'if [ "$1" = list ]; then cat {kept}; elif [ "$1" = -f ]; then sed 1,2d >{kept}; fi')
    make_tool("iptables", "exit 0")
    for i in range(10):
        firewall = Firewall(Owner(NETWORK), lambda *_, **__: None, no_passages, nftables=True, resync_s=600)
        keeping = asyncio.create_task(firewall.run())
        firewall.want(RULES)
        await firewall.stood()
        await asyncio.sleep(0.03 * i)
        # Together with an event: asyncio.wait_for of Python 3.11 would go on for ever.
        firewall._wake.set()
        keeping.cancel()
        done, _ = await asyncio.wait([keeping], timeout=PATIENCE_S)
        assert done
        assert keeping.cancelled()
