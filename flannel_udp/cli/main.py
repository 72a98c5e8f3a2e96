"""The command line: `flannel-udp` alone is the agent with flanneld's flags; `flannel-udp COMMAND` is everything else.

Whatever a command needs is imported when it runs, so that `--help`, `--version` and mistakes answer at once.
"""
# ruff: noqa: PLC0415 (imports inside functions are this module's purpose: see above)

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import fill
from typing import IO

from flannel_udp import __version__
from flannel_udp.backend.table import BACKENDS
from flannel_udp.cli.arguments import (
    add_flags,
    did_you_mean,
    make_parser,
    read_arguments,
    to_options,
    unknown_variables,
)
from flannel_udp.cli.commands import COMMANDS, Command
from flannel_udp.cli.flags import AGENT_FLAGS, AGENT_GROUPS, IGNORED_FLAGS
from flannel_udp.errors import ConfigError, FlannelError, UsageError
from flannel_udp.options import Options

LAB_SUMMARY = "build hosts and pods in network namespaces, to try and to test"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted."""
    _open_closed_streams()
    try:
        try:
            code = _dispatch(sys.argv[1:] if argv is None else list(argv))
        except SystemExit as stop:  # how argparse ends --help and --version
            code = int(stop.code or 0)
        sys.stdout.flush()
    except FlannelError as error:
        for line in error.faults if isinstance(error, ConfigError) else [str(error)]:
            _complain(line)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130  # 128 + SIGINT, as a shell reports it
    except BrokenPipeError:
        _give_up(sys.stdout)  # the reader (`| head`) has gone
        code = 141  # 128 + SIGPIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _give_up(sys.stdout)
        _complain(f"cannot write {error.filename or 'the output'}: {error.strerror}")
        code = FlannelError.exit_code
    try:
        sys.stderr.flush()
    except OSError:
        _give_up(sys.stderr)
    return code


def _open_closed_streams() -> None:
    """Lead the streams that the parent has closed nowhere: else a socket of ours gets the number of one of them."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        setattr(sys, name, getattr(sys, name) or _open_nowhere(mode))


def _open_nowhere(mode: str) -> IO[str]:
    return Path(os.devnull).open(mode, encoding="utf-8")


def _complain(line: str) -> None:
    with suppress(OSError):  # a log that cannot be written changes no exit code
        sys.stderr.write(f"flannel-udp: {line}\n")


def _give_up(stream: IO[str]) -> None:
    """Let what is still buffered go nowhere: Python flushes once more at exit, and would make the exit code 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0].startswith("-"):
        return _agent(argv)
    if argv[0] == "lab":
        return _lab(argv[1:])
    for name, command in COMMANDS.items():
        words = name.split()
        if argv[: len(words)] == words:
            return _command(name, command, argv[len(words) :])
    return _incomplete_command(argv)


def _agent(argv: list[str]) -> int:
    options = agent_options(argv, os.environ)
    for line in unknown_variables(AGENT_FLAGS, os.environ):
        _complain(f"warning: {line}")
    from flannel_udp.agent.run import run

    return run(options)


def agent_options(argv: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Return what the agent's flags and its environment say. Raises `UsageError`; prints and exits for --help."""
    ignored = ", ".join(flag.spelling for flag in IGNORED_FLAGS)
    commands = {**{name: command.summary for name, command in COMMANDS.items()}, "lab": LAB_SUMMARY}
    parser = make_parser(
        "flannel-udp",
        "flannel-udp [FLAG...]\n       flannel-udp COMMAND ...",
        "Without a command: the agent of a host. It leases a subnet of the overlay network, learns the leases of all\n"
        "other hosts and lets packets travel between their pods, by the backend that the network configuration names:\n"
        f"{', '.join(BACKENDS)}. Its flags are flanneld's, and some are (ours).\n\n"
        f"commands (flannel-udp COMMAND --help explains each):\n{_table(commands)}",
        "Flags may be written as in Go: -iface=eth0, --iface=eth0, --iface eth0, -ip-masq, --ip-masq=true.\n"
        "Each is also an environment variable: FLANNELD_ and the name in capitals, - as _ (FLANNELD_ETCD_PREFIX).\n"
        "A flag wins over its variable. A variable holds one value, also where the flag may be repeated.\n"
        f"{fill(f'Accepted for the sake of old unit files, without effect: {ignored}.', 110)}\n\n"
        "examples:\n"
        "  flannel-udp --etcd-endpoints=http://192.0.2.10:2379 --iface=eth1\n"
        "  flannel-udp --registry=file:/etc/flannel/registry.json --healthz-port=8080\n\n"
        "A network configuration that is wrong, or that this host cannot run, is waited for.\n"
        "exit codes: 0 stopped cleanly, 1 failed, 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"flannel-udp {__version__}", help="print the version")
    for title, flags in AGENT_GROUPS.items():
        add_flags(parser, title, flags)
    add_flags(parser, "", IGNORED_FLAGS)
    return to_options(read_arguments(parser, argv, AGENT_FLAGS, environ))


def _command(name: str, command: Command, argv: list[str]) -> int:
    prog = f"flannel-udp {name}"
    argument = command.argument
    usage = " ".join([prog, *([argument[0]] if argument else []), "[FLAG...]"])
    parser = make_parser(prog, usage, f"{command.summary}.", command.details)
    if argument:
        parser.add_argument(argument[0], help=argument[1])
    for title, flags in command.flags.items():
        add_flags(parser, title, flags)
    known = [flag for flags in command.flags.values() for flag in flags]
    return command.run(read_arguments(parser, argv, known, os.environ))


def _lab(argv: list[str]) -> int:
    from flannel_udp.lab import command

    parser = make_parser("flannel-udp lab", "flannel-udp lab COMMAND ...", f"{LAB_SUMMARY}.")
    command.add_arguments(parser, BACKENDS)
    args = parser.parse_args(argv)
    kind = getattr(args, "backend", None)
    if kind is not None and kind not in BACKENDS:
        parser.error(f"--backend: {kind!r} is not one of {', '.join(BACKENDS)}{did_you_mean(kind, BACKENDS)}")
    if kind is not None and "6" in args.families and 6 not in BACKENDS[kind].families:
        parser.error(f"--families {args.families}: the backend {kind} carries IPv4 only")
    return command.run(args)


def _incomplete_command(argv: list[str]) -> int:
    """Answer a command's first word without the second, or a word that is no command. Raises `UsageError`."""
    first = argv[0]
    group = {name: command.summary for name, command in COMMANDS.items() if name.split()[0] == first}
    if not group:
        hint = did_you_mean(first, {name.split()[0] for name in COMMANDS} | {"lab"})
        raise UsageError(f"unknown command {first!r}{hint} (see: flannel-udp --help)")
    if argv[1:2] in (["-h"], ["-help"], ["--help"]):
        sys.stdout.write(f"usage: flannel-udp {first} COMMAND ...\n\ncommands:\n{_table(group)}\n")
        return 0
    names = [name.split()[1] for name in group]
    hint = did_you_mean(argv[1], names) if len(argv) > 1 else ""
    raise UsageError(f"{first} needs one of: {', '.join(names)}{hint} (see: flannel-udp {first} --help)")


def _table(summaries: dict[str, str]) -> str:
    return "\n".join(f"  {name:<14}{summary}" for name, summary in summaries.items())
