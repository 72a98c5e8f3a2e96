"""The agent's log: how much of it, and in which form it goes to standard error.

Forms: `text` for people, `klog` as flanneld's lines (for programs that read those), `json`, an object a line. Where
standard error is the journal's (JOURNAL_STREAM, systemd.exec(5)) each line begins with its priority (sd-daemon(3)).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import PurePath
from typing import IO, TypeVar

from flannel_udp.levels import BY_VERBOSITY, EVERYTHING
from flannel_udp.options import Options

_Value = TypeVar("_Value")

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
"""Of syslog(3), for what is at most this level; whatever is beyond is critical."""
_NAMES = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}


def start_log(options: Options) -> bool:
    """Write to standard error from now on, as much and in the form that the options say.

    Tell whether it is for people's eyes alone: then what is written there besides need not have the same form.
    """
    in_journal = is_journal(sys.stderr)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(_FORMS[options.log_format], in_journal=in_journal))
    level = BY_VERBOSITY[min(options.verbosity, len(BY_VERBOSITY) - 1)]
    everything = level == EVERYTHING
    # Libraries tell of each of their calls, asyncio of its selector: only who asks for everything wants to know.
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if everything else logging.WARNING)
    logging.getLogger("flannel_udp").setLevel(level)
    return options.log_format == "text" and not in_journal


def is_journal(stream: IO[str]) -> bool:
    """Tell whether what is written there goes to the journal."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # no file, or closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def prefixed(text: str, level: int = logging.ERROR) -> str:
    """Return a text whose every line begins with the priority, as the journal takes it."""
    priority = _at_most(_PRIORITIES, level, 2)
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


class _Formatter(logging.Formatter):
    def __init__(self, form: Callable[[logging.LogRecord, str], str], *, in_journal: bool) -> None:
        super().__init__("%(message)s")
        self._form = form
        self._in_journal = in_journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text; an exception's traceback follows its message."""
        text = self._form(record, super().format(record))
        return prefixed(text, record.levelno) if self._in_journal else text


def _text(record: logging.LogRecord, message: str) -> str:
    when = datetime.fromtimestamp(record.created)
    return f"{_letter(record)} {when:%Y-%m-%d %H:%M:%S},{record.msecs:03.0f} {message}"


def _klog(record: logging.LogRecord, message: str) -> str:
    """Return `Lmmdd hh:mm:ss.uuuuuu threadid file:line] msg`, klog's header."""
    when = datetime.fromtimestamp(record.created)
    place = f"{PurePath(record.pathname).name}:{record.lineno}"
    return f"{_letter(record)}{when:%m%d %H:%M:%S.%f} {os.getpid():7d} {place}] {message}"


def _json(record: logging.LogRecord, message: str) -> str:
    when = datetime.fromtimestamp(record.created, UTC)
    line = {
        "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": _at_most(_NAMES, record.levelno, "critical"),
        "logger": record.name.removeprefix("flannel_udp."),
        "message": message,
    }
    return json.dumps(line, ensure_ascii=False)


def _letter(record: logging.LogRecord) -> str:
    return str(_at_most(_NAMES, record.levelno, "critical")[0].upper())


def _at_most(of_level: Mapping[int, _Value], level: int, beyond: _Value) -> _Value:
    return next((of_level[limit] for limit in sorted(of_level) if level <= limit), beyond)


_FORMS: Mapping[str, Callable[[logging.LogRecord, str], str]] = {"text": _text, "klog": _klog, "json": _json}
