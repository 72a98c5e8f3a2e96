"""In which language a lesson speaks: which one is asked for, the words around the texts, and how they are laid out."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.cells import cell_len

ENGLISH = "en"
LANGUAGES = (ENGLISH, "zh")
MAX_COLUMNS = 100
"""Longer lines are hard to read."""

_WORDS = Path(__file__).with_name("words")
_WIDE = r"\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"
_PIECE = re.compile(rf"\s+|[{_WIDE}]|[^\s{_WIDE}]+")
"""What a line may be broken between: Chinese has no spaces, each of its characters is a piece."""


def language_of(environ: Mapping[str, str]) -> str:
    """Return the language that the environment asks for: the first variable that says anything counts (locale(7))."""
    said = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := environ.get(name))), "")
    return next((language for language in LANGUAGES if said.lower().startswith(language)), ENGLISH)


def words(language: str) -> Mapping[str, str]:
    """Return the words around the texts of lessons, by their English keys."""
    known: dict[str, str] = tomllib.loads((_WORDS / f"{language}.toml").read_text(encoding="utf-8"))
    return known


def laid_out(text: str, columns: int, indent: str = "") -> str:
    """Return a text with its paragraphs and list items broken into lines; what is indented by four stays as it is.

    Commands are never broken: a terminal wraps them so that they can still be copied.
    """
    lines: list[str] = []
    for paragraph in _paragraphs(text):
        if paragraph.startswith("    "):
            lines.append(indent + paragraph)
        else:
            hang = re.match(r"(- |\d+\. )?", paragraph)
            lines += _broken(paragraph, columns, indent, indent + " " * len(hang[0] if hang else ""))
    return "\n".join(line.rstrip() for line in lines)


def _paragraphs(text: str) -> Iterator[str]:
    """Yield what is a line of its own or is to be broken into some: blank lines are, and each item of a list."""
    gathered = ""
    for line in text.strip("\n").splitlines():
        own = not line.strip() or line.startswith("    ")
        if gathered and (own or re.match(r"- |\d+\. ", line)):
            yield gathered
            gathered = ""
        if own:
            yield line.rstrip()
        else:
            gathered = _joined(gathered, line.strip())
    if gathered:
        yield gathered


def _joined(before: str, line: str) -> str:
    """Join two lines of a paragraph: by a space, unless Chinese stands on both sides."""
    wide = before and cell_len(before[-1]) == 2 and cell_len(line[0]) == 2
    return f"{before}{line}" if wide or not before else f"{before} {line}"


def _broken(text: str, columns: int, first: str, then: str) -> list[str]:
    width, line, lines = min(columns, MAX_COLUMNS), first, []
    for piece in _PIECE.findall(text):
        full = cell_len(line) + cell_len(piece.rstrip()) > width and line.strip()
        if full and not piece.isspace() and not _ends(piece):
            kept = line[-1] if _begins(line[-1]) else ""
            lines.append(line.removesuffix(kept))
            line = then + kept
        if not (piece.isspace() and line == then and lines):
            line += " " if piece.isspace() else piece
    return [*lines, line]


def _ends(piece: str) -> bool:
    """Tell whether it is punctuation that may not begin a line."""
    return len(piece) == 1 and unicodedata.category(piece) in ("Po", "Pe", "Pf")


def _begins(piece: str) -> bool:
    """Tell whether it is punctuation that may not end a line."""
    return unicodedata.category(piece) in ("Ps", "Pi")
