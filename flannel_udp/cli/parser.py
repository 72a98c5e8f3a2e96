"""The parsers of the agent and of each command, made from the tables: they read words, and write what --help shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

from flannel_udp import __version__
from flannel_udp.backend.table import BACKENDS
from flannel_udp.cli.arguments import Parser, add_flags, make_parser
from flannel_udp.cli.command import GROUPS, REST, Command
from flannel_udp.cli.flags import AGENT_GROUPS, IGNORED_FLAGS
from flannel_udp.errors import UsageError, did_you_mean

Commands = Mapping[str, Command]


def agent_parser(commands: Commands) -> Parser:
    """Return the parser of `flannel-udp` without a command, whose help names the commands."""
    ignored = ", ".join(flag.spelling for flag in IGNORED_FLAGS)
    parser = make_parser(
        "flannel-udp",
        "flannel-udp [FLAG...]\n       flannel-udp COMMAND ...",
        "Without a command: the agent of a host. It leases a subnet of the overlay network, learns the leases of all\n"
        "other hosts and lets packets travel between their pods, by the backend that the network configuration names:\n"
        f"{', '.join(BACKENDS)}. Its flags are flanneld's, and some are (ours).\n\n"
        f"commands (flannel-udp COMMAND --help explains each):\n{_table(_summaries(commands))}",
        "Flags may be written as in Go: -iface=eth0, --iface=eth0, --iface eth0, -ip-masq, --ip-masq=true.\n"
        "Each is also an environment variable: FLANNELD_ and the name in capitals, - as _ (FLANNELD_ETCD_PREFIX).\n"
        "A flag wins over its variable. A variable holds one value, also where the flag may be repeated.\n"
        f"{fill(f'Accepted for the sake of old unit files, without effect: {ignored}.', 110)}\n\n"
        "examples:\n"
        "  flannel-udp --etcd-endpoints=http://192.0.2.10:2379 --iface=eth1\n"
        "  flannel-udp --registry=file:/etc/flannel/registry.json --healthz-port=8080\n\n"
        "A network configuration that is wrong, or that this host cannot run, is waited for.\n"
        "signals: SIGTERM and SIGINT stop it, SIGHUP reads the network configuration again, SIGUSR1 writes to the log\n"
        "what `flannel-udp status` shows.\n"
        "exit codes: 0 stopped cleanly, 1 failed, 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"flannel-udp {__version__}", help="print the version")
    for title, flags in AGENT_GROUPS.items():
        add_flags(parser, title, flags)
    add_flags(parser, "", IGNORED_FLAGS)
    return parser


def command_parser(name: str, command: Command) -> Parser:
    """Return the parser of one command."""
    prog = f"flannel-udp {name}"
    parser = make_parser(prog, _usage(prog, command), f"{command.summary}.", command.details)
    for argument in command.arguments:
        # What is left as it is never comes here, see `split_rest`.
        count = "*" if argument.count == REST else argument.count or None
        parser.add_argument(argument.name, help=argument.help, nargs=count)
    for title, flags in command.flags.items():
        add_flags(parser, title, flags)
    return parser


def _usage(prog: str, command: Command) -> str:
    words = [argument.usage for argument in command.arguments]
    if command.flags:
        words.insert(0 if command.takes_rest else len(words), "[FLAG...]")
    return " ".join([prog, *words])


def help_text(words: Sequence[str], commands: Commands) -> str:
    """Return what --help shows of a command, of a group of commands, or of the agent. Raises `UsageError`."""
    name = " ".join(words)
    if not words:
        return agent_parser(commands).format_help()
    if name in commands:
        return command_parser(name, commands[name]).format_help()
    if _below(words, commands):
        return _group_help(name, commands)
    raise unknown_command(words, commands)


def unknown_command(words: Sequence[str], commands: Commands) -> UsageError:
    """Return what is to be said of words that name no command."""
    first, n = words[0], 0
    if first in commands:
        return UsageError(f"{first} has no command {words[1]!r} (see: flannel-udp {first} --help)")
    while n < len(words) and _below(words[: n + 1], commands):
        n += 1
    if n == 0:
        hint = did_you_mean(first, [*dict.fromkeys(name.split()[0] for name in commands), *commands])
        return UsageError(f"unknown command {first!r}{hint} (see: flannel-udp --help)")
    group = " ".join(words[:n])
    known = list(dict.fromkeys(name.split()[n] for name in _below(words[:n], commands)))
    hint = did_you_mean(words[n], known) if len(words) > n else ""
    return UsageError(f"{group} needs one of: {', '.join(known)}{hint} (see: flannel-udp {group} --help)")


def _below(words: Sequence[str], commands: Commands) -> list[str]:
    """Return the commands that begin with these words and have more."""
    return [name for name in commands if name.startswith(f"{' '.join(words)} ")]


def _group_help(words: str, commands: Commands) -> str:
    group = {name: commands[name].summary for name in commands if name == words or name.startswith(f"{words} ")}
    summary = f"{GROUPS[words]}.\n\n" if words in GROUPS else ""
    return f"usage: flannel-udp {words} COMMAND ...\n\n{summary}commands:\n{_table(group)}\n"


def _summaries(commands: Commands) -> dict[str, str]:
    summaries: dict[str, str] = {}
    for name, command in commands.items():
        first = name.split()[0]
        summaries[first if first in GROUPS else name] = GROUPS.get(first, command.summary)
    return summaries


def _table(summaries: Mapping[str, str]) -> str:
    width = max(12, *map(len, summaries)) + 2
    return "\n".join(f"  {name:<{width}}{summary}" for name, summary in summaries.items())
