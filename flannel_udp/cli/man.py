"""Manual pages in the macros of man(7), from the same tables and texts as --help: one of the agent, one a command."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

from flannel_udp import __version__
from flannel_udp.cli.arguments import Parser
from flannel_udp.cli.command import Argument
from flannel_udp.cli.flags import AGENT_GROUPS, Flag
from flannel_udp.cli.parser import Commands, agent_parser, command_parser
from flannel_udp.errors import FlannelError

_SUMMARY = "flannel's agent: leases a subnet for this host and carries packets to the other hosts' pods"


def pages(commands: Commands) -> dict[str, str]:
    """Return all pages by their names: flannel-udp, flannel-udp-status, flannel-udp-route-get and so on."""
    made = {"flannel-udp": _page("flannel-udp", _SUMMARY, agent_parser(commands), AGENT_GROUPS)}
    for name, command in commands.items():
        page = _page_name(name)
        parser = command_parser(name, command)
        made[page] = _page(page, command.summary, parser, command.flags, command.arguments)
    return made


def write_pages(folder: Path, commands: Commands) -> list[Path]:
    """Write all pages into a folder, which is made, and return their paths. Raises `FlannelError`."""
    made = {folder / f"{name}.1": text for name, text in pages(commands).items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in made.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FlannelError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    return list(made)


def _page_name(command: str) -> str:
    return "-".join(["flannel-udp", *command.split()])


def _page(
    name: str,
    summary: str,
    parser: Parser,
    groups: Mapping[str, Iterable[Flag]],
    arguments: Iterable[Argument] = (),
) -> str:
    lines = [f'.TH {_escaped(name.upper())} 1 "" "flannel\\-udp {__version__}" "User Commands"']
    lines += [".ad l", ".nh"]  # ragged and unhyphenated: an address stays whole
    lines += [".SH NAME", f"{_escaped(name)} \\- {_escaped(summary)}", ".SH SYNOPSIS", ".nf"]
    lines += [_line(line.strip()) for line in (parser.usage or "").splitlines()]
    is_agent = name == "flannel-udp"
    details = parser.epilog or ""
    lines += [".fi", ".SH DESCRIPTION", *_text(parser.description or ""), *([] if is_agent else _text(details))]
    for argument in arguments:
        lines += [".TP", f".I {_escaped(argument.name)}", _line(argument.help)]
    lines += [".SH OPTIONS"] if groups else []
    for title, flags in groups.items():
        lines.append(f".SS {_escaped(title)}")
        for flag in flags:
            value = f"[={flag.metavar}]" if flag.switch else f"={flag.metavar}"
            lines += [".TP", f".B {_escaped(flag.spelling + value)}", _line(flag.explanation)]
    lines += [".SH NOTES", *_text(details)] if is_agent else [".SH SEE ALSO", "\\fBflannel\\-udp\\fP(1)"]
    return "\n".join(lines) + "\n"


def _text(text: str) -> Iterator[str]:
    """Yield the lines of a text whose paragraphs are apart by empty lines, and whose indented lines stay lines."""
    for paragraph in text.split("\n\n"):
        yield ".PP"
        for indented, lines in groupby(paragraph.splitlines(), key=lambda line: line.startswith("  ")):
            shown = [_line(line) for line in lines]
            yield from ([".nf", *shown, ".fi"] if indented else shown)


def _line(text: str) -> str:
    """Return a line of text that no formatter takes for a request of its own."""
    escaped = _escaped(text)
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _escaped(text: str) -> str:
    """Return a text with what roff would interpret escaped; a plain dash would be a hyphen, which cannot be pasted."""
    return text.replace("\\", "\\e").replace("-", "\\-")
