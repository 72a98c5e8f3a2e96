"""From the words of the command line and the environment to values: Go's spelling, argparse, checks, `Options`.

argparse splits the words and writes the help; it does not know Go's spelling, so `gnu_spelling` translates first. A
flag's text is read by the flag's own parser, in one place for command line and environment.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NoReturn

from flannel_udp.cli.flags import AGENT_FLAGS, Flag
from flannel_udp.cli.parsers import GO_BOOLS
from flannel_udp.errors import UsageError, did_you_mean
from flannel_udp.options import DataplaneOptions, EtcdOptions, FirewallOptions, InterfaceOptions, KubeOptions, Options

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

Values = Mapping[str, Any]
"""Values by flag name; a flag that nobody gave is absent."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line, a `UsageError`, instead of a usage text and an exit."""

    def error(self, message: str) -> NoReturn:
        """Raise the one line."""
        raise UsageError(f"{message} (see: {self.prog} --help)")

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """Print the help or the version. argparse's own hides what goes wrong in writing."""
        (file or sys.stdout).write(message)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Prints texts as they are, and cuts no word of a flag's help, which may be an address, however narrow it is."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(text, width, break_long_words=False, break_on_hyphens=False)


def make_parser(prog: str, usage: str, description: str, epilog: str = "") -> Parser:
    """Return a parser that takes no abbreviations and prints its texts as they are."""
    return Parser(prog, usage, description, epilog, formatter_class=_Formatter, allow_abbrev=False)


def add_flags(parser: Parser, title: str, flags: Iterable[Flag]) -> None:
    """Add a titled group of flags; each collects the texts it is given, in order."""
    group = parser.add_argument_group(title)
    for flag in flags:
        # For a switch nargs="?" shows the value as optional, and "=" before its name that there is no other way to
        # give it.
        group.add_argument(
            flag.spelling,
            dest=flag.name,
            action="append",
            nargs="?" if flag.switch else None,
            metavar=f"={flag.metavar}" if flag.switch else flag.metavar,
            help=flag.explanation.replace("%", "%%") if flag.help else argparse.SUPPRESS,
        )


def read_arguments(parser: Parser, words: Sequence[str], flags: Sequence[Flag], environ: Mapping[str, str]) -> Values:
    """Return what the words and the environment say; a positional argument goes by its own name.

    Raises `UsageError`, which never shows the text of a secret flag.
    """
    namespace, extra = parser.parse_known_args(gnu_spelling(words, flags))
    if extra:
        # A password with a space in it, left unquoted, ends up here: show nothing then.
        shown = "" if any(getattr(namespace, flag.name) for flag in flags if flag.secret) else f" {extra[0]!r}"
        hint = ": a switch takes its value after '='" if extra[0] in GO_BOOLS else ""
        parser.error(f"unexpected argument{shown}{hint}")
    given: dict[str, Any] = {}
    texts: dict[str, Any] = vars(namespace)
    for flag in flags:
        from_words = texts.pop(flag.name)
        variable = environ.get(flag.variable, "") if flag.in_environment else ""
        if from_words is not None:
            given[flag.name] = _read(flag, from_words, flag.spelling)
        elif variable:
            given[flag.name] = _read(flag, [variable], f"environment variable {flag.variable}")
    return given | texts


def gnu_spelling(words: Sequence[str], flags: Iterable[Flag]) -> list[str]:
    """Rewrite Go's spelling for argparse: `-name=value`, `--name=value` and `-name value` become `--name=value`.

    As in Go the next word is the value whatever it looks like, and a switch never takes it. Raises `UsageError` for an
    unknown flag and a missing value.
    """
    known = {flag.name: flag for flag in flags}
    rewritten: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            return [*rewritten, word, *rest]
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if not word.startswith("-") or word == "-":
            rewritten.append(word)
        elif name in ("h", "help", "version"):
            rewritten.append("--version" if name == "version" else "--help")
        elif name not in known:
            raise UsageError(f"unknown flag {_without_secret(name, known.values())!r}{did_you_mean(name, known, '--')}")
        else:
            flag = known[name]
            if not equals:
                text = "true" if flag.switch else next(rest, None)
                if text is None:
                    raise UsageError(f"{flag.spelling} needs a value: {flag.spelling}={flag.metavar}")
                value = text
            rewritten.append(f"{flag.spelling}={value}")
    return rewritten


def split_rest(words: Sequence[str], flags: Iterable[Flag], n_before: int) -> tuple[list[str], list[str]]:
    """Split behind the word number `n_before` that is no flag's: what follows is another program's, and stays as it is.

    A first ``--`` of it goes.
    """
    with_value = {flag.name for flag in flags if not flag.switch}
    end = 0
    while n_before and end < len(words) and words[end] != "--":
        word = words[end]
        name = word.removeprefix("-").removeprefix("-")
        if not word.startswith("-"):
            n_before -= 1
        elif name in with_value:
            end += 1
        end += 1
    rest = list(words[end:])
    return list(words[:end]), rest[1:] if rest[:1] == ["--"] else rest


def _without_secret(name: str, flags: Iterable[Flag]) -> str:
    """Return an unknown flag as it may be shown: `--etcd-password:hunter2` ends before the secret."""
    for flag in flags:
        if flag.secret and flag.name in name:
            return flag.spelling
    return f"--{name}"


def unknown_variables(flags: Iterable[Flag], environ: Mapping[str, str]) -> list[str]:
    """Return a line for each FLANNELD_… variable that is no flag's: a typing error goes unnoticed otherwise."""
    known = {flag.variable for flag in flags if flag.in_environment}
    unknown = sorted(name for name in environ if name.startswith("FLANNELD_") and name not in known)
    return [f"environment variable {name} is no flag's and ignored{did_you_mean(name, known)}" for name in unknown]


def _read(flag: Flag, texts: Sequence[str], source: str) -> Any:
    """Return the value of a flag's texts: all of a repeatable flag's, else the last, as in Go."""
    try:
        values = [flag.parse(text) for text in texts]
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from None
    # flanneld: an empty --iface matches the default interface, which is what is left when none is given.
    return tuple(filter(None, values)) if flag.repeatable else values[-1]


def to_options(given: Values) -> Options:
    """Return the options of a run; what was not given has the default of `Options`. Raises `UsageError`."""
    if "etcd-password" in given and "etcd-password-file" in given:
        raise UsageError("--etcd-password and --etcd-password-file are both given (or their variables): give one")
    parts: dict[str, dict[str, Any]] = {
        "": {},
        "etcd": {},
        "kube": {},
        "interface": {},
        "dataplane": {},
        "firewall": {},
    }
    for flag in AGENT_FLAGS:
        if flag.field and flag.name in given:
            part, _, field = flag.field.rpartition(".")
            parts[part][field] = given[flag.name]
    return Options(
        etcd=EtcdOptions(**parts["etcd"]),
        kube=KubeOptions(**parts["kube"]),
        interface=InterfaceOptions(**parts["interface"]),
        dataplane=DataplaneOptions(**parts["dataplane"]),
        firewall=FirewallOptions(**parts["firewall"]),
        **parts[""],
    )
