"""All commands beside the agent, by name, in the order in which help shows them; those that are about commands, too."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must load nothing)

from __future__ import annotations

import sys
from collections.abc import Mapping

from flannel_udp.cli.arguments import Values
from flannel_udp.cli.asking_commands import ASKING_COMMANDS
from flannel_udp.cli.bench_commands import BENCH_COMMANDS
from flannel_udp.cli.bench_run_commands import BENCH_RUN_COMMANDS
from flannel_udp.cli.capture_commands import CAPTURE_COMMANDS
from flannel_udp.cli.cloud_commands import CLOUD_COMMANDS
from flannel_udp.cli.command import Argument, Command
from flannel_udp.cli.config_commands import CONFIG_COMMANDS
from flannel_udp.cli.flags import Flag
from flannel_udp.cli.host_commands import HOST_COMMANDS
from flannel_udp.cli.lab_change_commands import LAB_CHANGE_COMMANDS
from flannel_udp.cli.lab_commands import LAB_COMMANDS
from flannel_udp.cli.lab_fault_commands import LAB_FAULT_COMMANDS
from flannel_udp.cli.lab_lesson_commands import LAB_LESSON_COMMANDS
from flannel_udp.cli.lab_view_commands import LAB_VIEW_COMMANDS
from flannel_udp.cli.lease_commands import LEASE_COMMANDS
from flannel_udp.cli.metrics_commands import METRICS_COMMANDS
from flannel_udp.cli.monitor_commands import MONITOR_COMMANDS
from flannel_udp.cli.parsers import choice, parse_path
from flannel_udp.cli.peer_commands import PEER_COMMANDS
from flannel_udp.cli.route_commands import ROUTE_COMMANDS
from flannel_udp.cli.trace_commands import LAB_TRACE_COMMANDS, TRACE_COMMANDS
from flannel_udp.errors import UsageError

SHELLS = ("bash", "zsh", "tcsh", "fish")


def _help(given: Values) -> int:
    from flannel_udp.cli.parser import help_text

    sys.stdout.write(help_text(given["COMMAND"], COMMANDS))
    return 0


def _completion(given: Values) -> int:
    from flannel_udp.cli.completion import completion_script

    try:
        shell = choice(*SHELLS)(given["SHELL"])
    except ValueError as error:
        raise UsageError(f"completion: {error}") from None
    sys.stdout.write(completion_script(shell, COMMANDS))
    return 0


def _man(given: Values) -> int:
    from flannel_udp.cli.man import pages, write_pages

    if "dir" in given:
        sys.stdout.write("".join(f"wrote {path}\n" for path in write_pages(given["dir"], COMMANDS)))
        return 0
    made, name = pages(COMMANDS), "-".join(["flannel-udp", *given["COMMAND"]])
    if name not in made:
        from flannel_udp.cli.parser import unknown_command

        raise unknown_command(given["COMMAND"], COMMANDS)
    sys.stdout.write(made[name])
    return 0


COMMANDS: Mapping[str, Command] = {
    **CONFIG_COMMANDS,
    **ASKING_COMMANDS,
    **PEER_COMMANDS,
    **ROUTE_COMMANDS,
    **CLOUD_COMMANDS,
    **TRACE_COMMANDS,
    **LEASE_COMMANDS,
    **MONITOR_COMMANDS,
    **CAPTURE_COMMANDS,
    **METRICS_COMMANDS,
    **HOST_COMMANDS,
    **LAB_COMMANDS,
    **LAB_CHANGE_COMMANDS,
    **LAB_TRACE_COMMANDS,
    **LAB_VIEW_COMMANDS,
    **LAB_FAULT_COMMANDS,
    **LAB_LESSON_COMMANDS,
    **BENCH_RUN_COMMANDS,
    **BENCH_COMMANDS,
    "help": Command(
        "explain a command, as its --help does",
        "example: flannel-udp help route get",
        _help,
        {},
        (Argument("COMMAND", "the command's words; without any: the agent", "*"),),
    ),
    "completion": Command(
        "print a script by which a shell completes commands, flags and their values",
        f"SHELL is one of {', '.join(SHELLS)}. To have it in every bash:\n"
        "  flannel-udp completion bash > /etc/bash_completion.d/flannel-udp\n"
        "in every zsh:\n"
        "  flannel-udp completion zsh > /usr/local/share/zsh/site-functions/_flannel-udp\n\n"
        "example: . <(flannel-udp completion bash)",
        _completion,
        {},
        (Argument("SHELL", "|".join(SHELLS), words=SHELLS),),
    ),
    "man": Command(
        "print the manual page of the agent, or of a command, or write them all",
        "They say what --help says.\n\n"
        "example: flannel-udp man status | man -l -\n"
        "         flannel-udp man --dir=/usr/local/share/man/man1",
        _man,
        {"output": (Flag("dir", "write all pages into this folder", "DIR", parse_path, in_environment=False),)},
        (Argument("COMMAND", "the command's words; without any: the agent", "*"),),
    ),
}
