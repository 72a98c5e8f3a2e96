"""The command line: `flannel-udp` alone is the agent with flanneld's flags; `flannel-udp COMMAND` is everything else.

Whatever a command needs is imported when it runs, so that `--help`, `--version` and mistakes answer at once.
"""
# ruff: noqa: PLC0415 (imports inside functions are this module's purpose: see above)

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import IO

from flannel_udp.cli.arguments import read_arguments, split_rest, to_options, unknown_variables
from flannel_udp.cli.command import Command
from flannel_udp.cli.commands import COMMANDS
from flannel_udp.cli.flags import AGENT_FLAGS
from flannel_udp.cli.parser import agent_parser, command_parser, help_text, unknown_command
from flannel_udp.cli.search_path import complete_search_path
from flannel_udp.errors import Faults, FlannelError
from flannel_udp.options import Options

_GROUP_WORDS = 3
"""Where --help stands that asks for a group of commands: behind `lab`, or `lab lesson`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted."""
    _open_closed_streams()
    complete_search_path()
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 has no Chinese, and few lines to draw
    try:
        try:
            code = _dispatch(sys.argv[1:] if argv is None else list(argv))
        except SystemExit as stop:  # how argparse ends --help and --version
            if isinstance(stop.__context__, BrokenPipeError):  # and rich what nobody reads any more
                raise stop.__context__ from None
            code = int(stop.code or 0)
        sys.stdout.flush()
    except FlannelError as error:
        for line in error.faults if isinstance(error, Faults) else [str(error)]:
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
    text = f"flannel-udp: {line}"
    if "JOURNAL_STREAM" in os.environ:
        from flannel_udp.agent import logs

        text = logs.prefixed(text) if logs.is_journal(sys.stderr) else text
    with suppress(OSError):  # a log that cannot be written changes no exit code
        sys.stderr.write(f"{text}\n")


def _give_up(stream: IO[str]) -> None:
    """Let what is still buffered go nowhere: Python flushes once more at exit, and would make the exit code 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _dispatch(argv: list[str]) -> int:
    if is_agent(argv):
        return _agent(argv)
    for name, command in COMMANDS.items():
        words = name.split()
        if argv[: len(words)] == words:
            return _command(name, command, argv[len(words) :])
    asked = next((n for n, word in enumerate(argv[:_GROUP_WORDS]) if word in ("-h", "-help", "--help")), None)
    if asked is not None:
        sys.stdout.write(help_text(argv[:asked], COMMANDS))
        return 0
    raise unknown_command(argv, COMMANDS)


def is_agent(argv: Sequence[str]) -> bool:
    """Tell whether these words are the agent's flags, and not a command's name and its own."""
    return not argv or argv[0].startswith("-")


def _agent(argv: list[str]) -> int:
    options = agent_options(argv, os.environ)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # would end us before there is an agent to ask
    # An agent's modules, and then 100,000 peers, are a million objects that stay: do not look through them for garbage
    # over and over.
    gc.set_threshold(50_000)
    from flannel_udp.agent.run import run

    return run(options, unknown_variables(AGENT_FLAGS, os.environ))


def agent_options(argv: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Return what the agent's flags and its environment say. Raises `UsageError`; prints and exits for --help."""
    return to_options(read_arguments(agent_parser(COMMANDS), argv, AGENT_FLAGS, environ))


def _command(name: str, command: Command, argv: list[str]) -> int:
    flags, rest = command.all_flags, {}
    if command.takes_rest:
        argv, rest[command.arguments[-1].name] = split_rest(argv, flags, len(command.arguments) - 1)
    given = {**read_arguments(command_parser(name, command), argv, flags, os.environ), **rest}
    if name.startswith("lab ") and name != "lab view":  # whose server is where the browser is
        from flannel_udp.lab.rootless import enter

        enter()
    return command.run(given)
