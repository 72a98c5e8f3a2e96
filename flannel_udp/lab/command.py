"""The arguments of `flannel-udp lab …`. Imports nothing heavy: what the commands do is in `actions`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from flannel_udp.errors import UsageError

_DEFAULT_NAME = "lab"
_DEMO_NAME = "demo"


def add_arguments(parser: argparse.ArgumentParser, backends: Iterable[str]) -> None:
    """Add the lab's commands to the parser of `flannel-udp lab`; `backends` are named in the help."""
    # Without prog argparse would make it of the whole usage line.
    commands = parser.add_subparsers(dest="lab_command", metavar="COMMAND", required=True, prog=parser.prog)

    def add(command: str, text: str, name: str = _DEFAULT_NAME) -> argparse.ArgumentParser:
        added = commands.add_parser(command, help=text, description=f"{text}.", allow_abbrev=False)
        added.add_argument("--name", default=name, help="which lab (default: %(default)s)")
        return added

    _add_plan(add("up", "build hosts and pods, start an agent on every host"), backends)
    add("status", "show the hosts, what their agents run, and the pods").add_argument(
        "--json", action="store_true", help="as a JSON document"
    )
    execute = add("exec", "run a command on a host, in a pod, or in `net` where the underlay's bridge is")
    execute.add_argument("node", metavar="HOST[/POD]", help="h1, h1/p1 or net")
    # REMAINDER, because "+" drops a second `--`, which belongs to the command (before Python 3.13).
    execute.add_argument(
        "command", metavar="-- COMMAND", nargs=argparse.REMAINDER, help="the command and its arguments"
    )
    add("logs", "print what a host's agent has logged").add_argument("host", metavar="HOST", help="h1, h2, …")
    down = add("down", "remove a lab, also a half-made or killed one")
    down.add_argument("--all", action="store_true", help="remove every lab of this machine")
    _add_plan(add("demo", "build a lab, show how a packet gets from pod to pod, remove it", _DEMO_NAME), backends)


def _add_plan(parser: argparse.ArgumentParser, backends: Iterable[str]) -> None:
    parser.add_argument("--hosts", type=int, default=2, metavar="N", help="how many hosts (default: %(default)s)")
    parser.add_argument("--pods", type=int, default=1, metavar="M", help="pods on each host (default: %(default)s)")
    parser.add_argument(
        "--backend",
        metavar="TYPE",
        help=f"how packets travel: {', '.join(backends)} (default: flannel's, udp)",
    )
    parser.add_argument(
        "--datapath",
        metavar="LIST",
        help="of a tunnel: auto, kernel or userspace; several go round the hosts: kernel,userspace",
    )
    parser.add_argument(
        "--routed", type=int, default=0, metavar="N", help="how many of the hosts, the last ones, are behind a router"
    )
    parser.add_argument(
        "--families",
        choices=("4", "6", "46"),
        default="4",
        help="addresses of hosts and pods: IPv4, IPv6 or both (default: %(default)s)",
    )
    parser.add_argument(
        "--registry", choices=("file", "etcd"), default="file", help="where the leases live (default: %(default)s)"
    )


def command_words(words: Sequence[str]) -> list[str]:
    """Return the command of `lab exec` without its `--`, which Python 3.13 leaves there. Raises `UsageError`."""
    command = list(words[1:] if words[:1] == ["--"] else words)
    if not command or command[0].startswith("-"):
        raise UsageError("lab exec needs a command: flannel-udp lab exec [--name NAME] HOST[/POD] -- COMMAND...")
    return command


def run(args: argparse.Namespace) -> int:
    """Run the command that was given and return its exit code. Raises `FlannelError`."""
    if args.lab_command == "exec":
        args.command = command_words(args.command)
    from flannel_udp.lab import actions  # noqa: PLC0415 - so that help and mistakes answer at once

    return actions.ACTIONS[args.lab_command](args)
