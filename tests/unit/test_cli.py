"""The program as a user meets it: what it prints, where, with which exit code, and what it loads to do so."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from flannel_udp import __version__
from flannel_udp.backend.table import BACKENDS, LAB_BACKENDS
from flannel_udp.cli.command import GROUPS
from flannel_udp.cli.commands import COMMANDS
from flannel_udp.cli.flags import AGENT_FLAGS, AGENT_GROUPS, IGNORED_FLAGS, JSON_FLAG
from flannel_udp.cli.main import main
from flannel_udp.options import Offload
from tests.support.patience import PATIENCE_S

GOOD = '{"Network": "10.1.0.0/16"}'
RUNGS = ", ".join(Offload().names())
LAB_NEEDS = (
    "lab needs one of: up, status, list, inspect, graph, exec, logs, down, demo, add, save, trace, view, follow, cut, "
    "mtu, kill, start, restart, takeover, etcd, poison, spoof, heal, lesson"
)
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("FLANNELD_")}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for flag in AGENT_FLAGS:
        monkeypatch.delenv(flag.variable, raising=False)
    monkeypatch.setenv("COLUMNS", "200")  # so that help texts are not wrapped
    yield


def run(*words: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flannel_udp", *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=ENVIRON | environ,
    )


# --- Help, version, mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["-h", "-help", "--help"])
def test_help_teaches_every_group_flag_and_command(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 0
    text = capsys.readouterr().out
    for title in AGENT_GROUPS:
        assert f"\n{title}:\n" in text
    for flag in AGENT_FLAGS:
        assert flag.spelling in text
        assert flag.default_text in text
    for name in {name if name.split()[0] not in GROUPS else name.split()[0] for name in COMMANDS}:
        assert re.search(rf"^  {name} ", text, re.MULTILINE)
    assert text.count("\n  flannel-udp --") == 2  # the examples


def test_help_in_forty_columns_cuts_no_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    main(["--help"])
    text = capsys.readouterr().out
    assert [flag.name for flag in AGENT_FLAGS if not all(word in text for word in flag.default_text.split())] == []
    assert "http://127.0.0.1:4001,http://127.0.0.1:2379" in text


def test_help_lists_the_ignored_flags_in_one_place_only(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    for flag in IGNORED_FLAGS:
        assert len(re.findall(rf"{flag.spelling}\b", text)) == 1


@pytest.mark.parametrize("word", ["--version", "-version"])
def test_version_is_one_line(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 0
    assert capsys.readouterr().out == f"flannel-udp {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("word", ["-h", "-help", "--help"])
def test_every_command_has_help_with_an_example(name: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split(), word]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: flannel-udp {name}")
    assert "example: " in text
    for flags in COMMANDS[name].flags.values():
        for flag in flags:
            assert flag.spelling in text


SHOW_NOTHING_OF_THEIR_OWN = {
    "bench serve",
    "docker-opts",
    "lab exec",
    "lab logs",
    "lab save",
    "lab view",
    "metrics",
    "help",
    "completion",
    "man",
}


def test_every_command_that_shows_something_shows_it_to_programs_too() -> None:
    without = {name for name, command in COMMANDS.items() if JSON_FLAG not in command.all_flags}
    assert without == SHOW_NOTHING_OF_THEIR_OWN


def test_cni_install_says_to_programs_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cni", "install", f"--bin-dir={tmp_path}", f"--conf-dir={tmp_path}", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert written == [str(tmp_path / "flannel"), str(tmp_path / "10-flannel.conflist")]
    assert all(Path(path).exists() for path in written)


@pytest.mark.parametrize("words", [["--help"], ["config", "check", "--help"], ["lab", "up", "--help"]])
def test_help_names_the_backends(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert ", ".join(LAB_BACKENDS if words[0] == "lab" else BACKENDS) in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["config"], ["config", "check"], ["status"], ["lab", "up"], ["help"]])
def test_help_says_what_the_flag_says(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", *words]) == 0
    by_command = capsys.readouterr().out
    assert main([*words, "--help"]) == 0
    assert capsys.readouterr().out == by_command
    assert by_command.startswith("usage: flannel-udp")


@pytest.mark.parametrize("group", ["config", "route", "lab"])
def test_help_of_a_group_lists_its_commands(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([group, "--help"]) == 0
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert (command.summary in text) == name.startswith(f"{group} ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["statsu"], "unknown command 'statsu': did you mean status? (see: flannel-udp --help)"),
        (["xyzzy"], "unknown command 'xyzzy' (see: flannel-udp --help)"),
        (["lab-demo"], "unknown command 'lab-demo': did you mean lab demo? (see: flannel-udp --help)"),
        ([""], "unknown command '' (see: flannel-udp --help)"),
        (["config"], "config needs one of: check, get, put (see: flannel-udp config --help)"),
        (
            ["config", "chekc"],
            "config needs one of: check, get, put: did you mean check? (see: flannel-udp config --help)",
        ),
        (["config", "check"], "the following arguments are required: FILE (see: flannel-udp config check --help)"),
        (["config", "check", "a", "b"], "unexpected argument 'b' (see: flannel-udp config check --help)"),
        (["config", "check", "-", "--jsno"], "unknown flag '--jsno': did you mean --json?"),
        (["config", "get", "--iface=eth0"], "unknown flag '--iface'"),
        (["route", "get"], "the following arguments are required: ADDRESS (see: flannel-udp route get --help)"),
        (["route", "get", "pod"], "'pod' is not an IP address"),
        (["help", "statu"], "unknown command 'statu': did you mean status? (see: flannel-udp --help)"),
        (["help", "status", "x"], "status has no command 'x' (see: flannel-udp status --help)"),
        (["help", "lab", "dmo"], LAB_NEEDS + ": did you mean demo? (see: flannel-udp lab --help)"),
        (["man", "statu"], "unknown command 'statu': did you mean status? (see: flannel-udp --help)"),
        (["completion", "bsh"], "completion: 'bsh' is not one of bash, zsh, tcsh, fish: did you mean bash?"),
        (["lab", "dmo"], LAB_NEEDS + ": did you mean demo? (see: flannel-udp lab --help)"),
        (["lab", "up", "--host=3"], "unknown flag '--host': did you mean --hosts?"),
        (["--datapath=kernal"], "--datapath: 'kernal' is not one of auto, kernel, userspace: did you mean kernel?"),
        (
            ["--offload=tos"],
            "--offload: 'tos' is not auto, off or one of " + ", ".join(Offload().names()) + ": did you mean tso?",
        ),
        (["--iface=eth0", "status"], "unexpected argument 'status' (see: flannel-udp --help)"),
        (
            ["-ip-masq", "true"],
            "unexpected argument 'true': a switch takes its value after '=' (see: flannel-udp --help)",
        ),
        (["--healthz-port=http"], "--healthz-port: 'http' is not a whole number from 0 to 65535"),
        (
            ["lab", "up", "--backend=hostgw"],
            f"--backend: 'hostgw' is not one of {', '.join(LAB_BACKENDS)}: did you mean host-gw?",
        ),
        (
            ["lab", "up", "--backend=ipip", "--families=46"],
            "--families 46: the backend ipip carries IPv4 only",
        ),
        (
            ["--public-ipv6=192.0.2.1"],
            "--public-ipv6: '192.0.2.1' is not an IPv6 address such as 2001:db8::1",
        ),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr() == ("", f"flannel-udp: {line}\n")


def test_the_program_exits_with_mains_code() -> None:
    done = run("--nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "flannel-udp: unknown flag '--nonsense'\n"


def test_a_faulty_variable_is_named() -> None:
    done = run(FLANNELD_HEALTHZ_PORT="http")
    assert done.returncode == 2
    assert done.stderr == (
        "flannel-udp: environment variable FLANNELD_HEALTHZ_PORT: 'http' is not a whole number from 0 to 65535\n"
    )


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["--nonsense"], ["config", "put", "--help"], ["statsu"]])
def test_help_version_and_mistakes_load_nothing_but_the_command_line(words: list[str]) -> None:
    code = (
        "import sys; before = set(sys.modules); from flannel_udp.cli.main import main; main(sys.argv[1:]);"
        "print(*sorted(set(sys.modules) - before), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
        env=ENVIRON,
    )
    loaded = done.stderr.splitlines()[-1].split()
    ours = {name for name in loaded if name.startswith("flannel_udp")}
    tables = ("backend", "backend.table", "bench", "bench.names", "errors", "options")
    rooms = [f"flannel_udp.{name}" for name in tables]
    assert {name for name in ours if not name.startswith("flannel_udp.cli")} == {"flannel_udp", *rooms}
    assert "flannel_udp.cli.config_put" not in ours
    heavy = {"h11", "shtab", "asyncio", "google", "grpc", "pyroute2", "pytun", "rich", "uvloop"}
    assert not heavy & {name.partition(".")[0] for name in loaded}


def wait_until_it_is_read(pipe: IO[bytes]) -> None:
    """Return when the other side has taken everything out of the pipe."""
    deadline = time.monotonic() + 30
    while int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- Ends that are nobody's mistake --------------------------------------------------------------------------------


def test_a_reader_that_went_away_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "flannel_udp", "--help"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=PATIENCE_S,
            check=False,
            env=ENVIRON,
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "as in containers"])
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["config", "--help"]])
def test_a_full_disk_under_stdout_is_one_line(words: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "flannel_udp", *words],
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=PATIENCE_S,
            check=False,
            env=ENVIRON | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr == b"flannel-udp: cannot write the output: No space left on device\n"


def test_a_full_disk_under_stderr_changes_no_exit_code() -> None:
    environment = {name: value for name, value in ENVIRON.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("wb") as stderr:
        done = subprocess.run(
            [sys.executable, "-m", "flannel_udp", "--no-such-flag"],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            timeout=PATIENCE_S,
            check=False,
            env=environment,
        )
    assert done.returncode == 2


def test_closed_streams_are_no_error() -> None:
    command = f"exec {sys.executable} -m flannel_udp --version <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=PATIENCE_S, check=False, env=ENVIRON)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_ctrl_c_ends_with_130_and_says_nothing() -> None:
    with subprocess.Popen(
        # What a shell starts in the background ignores Ctrl-C, and so would whatever the tests start from there.
        ["env", "--default-signal=INT", sys.executable, "-m", "flannel_udp", "config", "check", "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRON,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(GOOD.encode())
        process.stdin.flush()
        wait_until_it_is_read(process.stdin)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE_S) == 130
        assert process.stderr.read() == b""


@pytest.mark.parametrize("module", ["flannel_udp.interrupts", "flannel_udp.cli.commands"])
@pytest.mark.parametrize("start", ["-m flannel_udp", "the installed command"])
def test_ctrl_c_while_the_command_line_is_imported_ends_likewise(start: str, module: str) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    where, function = project["project"]["scripts"]["flannel-udp"].split(":")
    run_it = (
        'runpy.run_module("flannel_udp", run_name="__main__")'
        if start == "-m flannel_udp"
        else f"from {where} import {function} as main; sys.exit(main())"  # what pip writes
    )
    code = (
        "import os, runpy, signal, sys\n"
        "class CtrlC:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == '{module}':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, CtrlC())\n" + run_it
    )
    done = subprocess.run(
        ["env", "--default-signal=INT", sys.executable, "-c", code, "--version"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=ENVIRON,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# --- config check -------------------------------------------------------------------------------------------------


@pytest.fixture
def good_file(tmp_path: Path) -> Path:
    path = tmp_path / "net-conf.json"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("flags", [[], ["--json"], ["-json=true"]])
def test_config_check_prints_the_normalised_configuration(
    flags: list[str], good_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "check", str(good_file), *flags]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "EnableIPv4": True,
        "EnableIPv6": False,
        "EnableNFTables": False,
        "Network": "10.1.0.0/16",
        "SubnetLen": 24,
        "SubnetMin": "10.1.1.0",
        "SubnetMax": "10.1.255.0",
        "Backend": {"Type": "udp", "Port": 8285, "DSCP": 0},
    }


def test_what_config_check_prints_passes_config_check_unchanged() -> None:
    first = run("config", "check", "-", stdin=GOOD)
    second = run("config", "check", "-", stdin=first.stdout)
    assert (first.returncode, second.returncode) == (0, 0)
    assert second.stdout == first.stdout != ""


def test_config_check_prints_one_line_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"Network": 5, "SubnetLen": "x", "Backend": []}')
    assert main(["config", "check", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    keys = [line.removeprefix("flannel-udp: ").split()[0] for line in err.splitlines()]
    assert keys == ["Network", "SubnetLen", "Backend"]

    assert main(["config", "check", "--json", str(path)]) == 2
    document, again = capsys.readouterr()
    assert again == err
    assert json.loads(document) == {
        "ok": False,
        "faults": [line.removeprefix("flannel-udp: ") for line in err.splitlines()],
    }


def test_config_check_warns_on_stderr_and_succeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.json"
    path.write_text('{"Network": "10.1.0.0/16", "Netmask": 1}')
    assert main(["config", "check", str(path)]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["Network"] == "10.1.0.0/16"
    assert err == 'flannel-udp: warning: unknown key "Netmask" is ignored\n'


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", str(tmp_path / "none")]) == 2
    assert main(["config", "check", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"flannel-udp: cannot read '{tmp_path}/none': No such file or directory",
        f"flannel-udp: cannot read '{tmp_path}': Is a directory",
    ]


def test_an_endless_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "/dev/zero"]) == 2
    assert "bytes long" in capsys.readouterr().err


# --- status, peers, route get, lab ----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["status"], ["peers", "--json"], ["route", "get", "10.1.15.7"], ["route", "list"]])
@pytest.mark.parametrize("by_environment", [False, True])
def test_asking_where_no_agent_runs_fails_with_one_line(
    words: list[str],
    by_environment: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    socket = tmp_path / "agent.sock"
    if by_environment:
        monkeypatch.setenv("FLANNELD_CONTROL_SOCKET", str(socket))
    assert main(words if by_environment else [*words, f"-control-socket={socket}"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"flannel-udp: flannel-udp is not running: nothing answers on {socket} ")
    assert len(err.splitlines()) == 1


def test_lab_help_comes_from_the_lab(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "--help"]) == 0
    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["lab"], ["lab", "fly"], ["lab", "up", "--hosts=many"], ["lab", "up", "--nonsense"]])
def test_a_mistake_in_lab_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("flannel-udp: ")
    assert len(err.splitlines()) == 1
