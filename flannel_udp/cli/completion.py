"""Completion scripts, written by shtab from an argparse tree of all commands, which is made here from the tables.

The tree is not the one that reads words: argparse knows neither Go's `-iface` nor switches that take a value after `=`
only.
"""

from __future__ import annotations

import argparse
from typing import Any

import shtab

from flannel_udp.cli.command import Argument
from flannel_udp.cli.flags import AGENT_FLAGS, Flag
from flannel_udp.cli.parser import Commands

_PATHS = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
"""By the metavar of a flag, or the name of an argument."""

_BASH = """
# bash breaks words at "=", so that --flag=value is three of them; for the rest of this script it is two.
_flannel_udp() {
  local -a words=()
  local i cword=0
  for ((i = 0; i < ${#COMP_WORDS[@]}; i++)); do
    if [[ ${COMP_WORDS[i]} != "=" ]]; then
      words+=("${COMP_WORDS[i]}")
    elif ((i == COMP_CWORD)); then
      words+=("")
    fi
    ((i == COMP_CWORD)) && cword=$((${#words[@]} - 1))
  done
  local -a COMP_WORDS=("${words[@]}")
  local COMP_CWORD=$cword
  _shtab_flannel_udp
}
complete -o bashdefault -F _flannel_udp flannel-udp
"""


def completion_script(shell: str, commands: Commands) -> str:
    """Return the script for a shell that shtab knows."""
    script = shtab.complete(_tree(commands), shell)
    return f"{script}\n{_BASH if shell == 'bash' else ''}"


def _tree(commands: Commands) -> argparse.ArgumentParser:
    root = argparse.ArgumentParser("flannel-udp")
    root.add_argument("--version", "-version", action="version", help="print the version")
    _add_flags(root, AGENT_FLAGS)
    groups: dict[str, Any] = {"": root.add_subparsers()}
    for name, command in commands.items():
        *firsts, last = name.split()
        group = ""
        for word in firsts:
            former, group = group, f"{group} {word}".strip()
            if group not in groups:
                groups[group] = groups[former].add_parser(word, help=f"{group} commands").add_subparsers()
        parser = groups[group].add_parser(last, help=command.summary)
        _add_flags(parser, command.all_flags)
        for argument in command.arguments:
            _add_argument(parser, argument, commands)
    return root


def _add_flags(parser: argparse.ArgumentParser, flags: tuple[Flag, ...]) -> None:
    for flag in flags:
        if not flag.help:  # accepted, and of no use
            continue
        spellings = dict.fromkeys((flag.spelling, f"-{flag.name}"))  # flanneld's own has one dash
        if flag.switch:
            parser.add_argument(*spellings, action="store_true", help=_plain(flag.help))
            continue
        _complete(parser.add_argument(*spellings, help=_plain(flag.help), choices=flag.words or None), flag.metavar)


def _add_argument(parser: argparse.ArgumentParser, argument: Argument, commands: Commands) -> None:
    words = argument.words
    if argument.name == "COMMAND" and argument.count == "*":
        words = tuple(dict.fromkeys(name.split()[0] for name in commands))
    count: Any = argument.count or None
    _complete(parser.add_argument(argument.name, nargs=count, choices=words or None), argument.name)


def _complete(action: argparse.Action, kind: str) -> None:
    if kind in _PATHS:
        action.complete = _PATHS[kind]  # type: ignore[attr-defined]  # how shtab wants to be told


def _plain(text: str) -> str:
    """Return a help text as argparse's formatting takes it."""
    return text.replace("%", "%%")
