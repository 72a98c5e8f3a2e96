"""The process that looks at the lab, for a page's server that may be elsewhere: a line of JSON asks, one answers.

`python -m flannel_udp.view.collector NAME`. It says ``{"ready": NAME}``, or ``{"error": "one line", "code": 1}`` and
ends. Asked ``{"ask": "look"}`` it answers with a `shapes.Look`, asked ``{"ask": "drawing", "width": 800}`` with
``{"svg": ...}``; what goes wrong is ``{"error": "one line"}``. Nothing is done while nobody asks. ``{"gone": true}`` is
the last line, at any time: the lab was taken down. It ends as well when nobody can ask any more.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flannel_udp.errors import FlannelError
from flannel_udp.files.watch import FileWatch
from flannel_udp.lab import netns
from flannel_udp.lab.graph import graph_svg
from flannel_udp.lab.lab import Lab, standing
from flannel_udp.lab.rootless import enter
from flannel_udp.view.reading import Reader


def main(name: str) -> None:
    """Answer until nobody asks any more, or the lab is gone."""
    try:
        enter()  # the page's server is outside of an ordinary user's namespaces, where his browser is
        lab = Lab.attach(name)
        with standing(name) as stands, suppress(BrokenPipeError):  # nobody can ask any more
            asyncio.run(_answer_all(lab, stands))
    except FlannelError as error:
        _say({"error": str(error), "code": error.exit_code})


async def _answer_all(lab: Lab, stands: Callable[[], bool]) -> None:
    questions = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    file, reader = _File(lab.plan.state / "lab.json", stands), Reader(lab)
    _say({"ready": lab.name})
    while (question := await file.gone_or(questions.readline())) and (
        answer := await file.gone_or(asyncio.to_thread(_answer, file, reader, json.loads(question)))
    ):
        _say(answer)
    if file.is_gone:
        _say({"gone": True})


def _answer(file: _File, reader: Reader, question: Mapping[str, Any]) -> Mapping[str, Any]:
    name = reader.lab.name
    try:
        if file.is_another():  # a host has joined
            reader.lab = Lab.attach(name)
        if question["ask"] == "drawing":
            return {"svg": graph_svg(reader.lab, question["width"])}
        return reader.look()
    except (FlannelError, OSError) as error:  # a file or a namespace is not there any more, say
        return {"error": f"the lab {name} cannot be looked at just now: {error}"}


class _File:
    """Knows whether the lab is gone, and whether its plan is another one, by the file that it is attached by."""

    def __init__(self, path: Path, stands: Callable[[], bool]) -> None:
        self._path, self._stands = path, stands
        self._identity = netns.identity(path)
        self._heard = asyncio.Event()
        with suppress(OSError):  # no more of inotify's: the next question finds out
            self._watch = FileWatch(path, self._look)

    @property
    def is_gone(self) -> bool:
        """Whether the lab is; another one of its name is not it."""
        return not self._stands()

    def is_another(self) -> bool:
        """Tell whether it was replaced since this was asked before."""
        before, self._identity = self._identity, netns.identity(self._path)
        return self._identity != before

    def _look(self) -> None:
        if self.is_gone:
            self._heard.set()

    async def gone_or(self, awaited: Any) -> Any:
        """Return what is awaited, or ``None`` once the lab is gone."""
        heard, task = asyncio.ensure_future(self._heard.wait()), asyncio.ensure_future(awaited)
        await asyncio.wait({heard, task}, return_when=asyncio.FIRST_COMPLETED)
        heard.cancel()
        if self.is_gone:
            task.cancel()
            return None
        return task.result()


def _say(document: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
