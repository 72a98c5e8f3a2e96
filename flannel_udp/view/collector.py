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
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from flannel_udp.errors import FlannelError
from flannel_udp.files.watch import FileWatch
from flannel_udp.lab import netns
from flannel_udp.lab.graph import graph_svg
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.rootless import enter
from flannel_udp.view.reading import Reader


def main(name: str) -> None:
    """Answer until nobody asks any more, or the lab is gone."""
    try:
        enter()  # the page's server is outside of an ordinary user's namespaces, where his browser is
        lab = Lab.attach(name)
    except FlannelError as error:
        _say({"error": str(error), "code": error.exit_code})
        return
    with suppress(BrokenPipeError):  # nobody can ask any more
        asyncio.run(_answer_all(lab))


async def _answer_all(lab: Lab) -> None:
    questions = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    gone, reader = _Gone(lab), Reader(lab)
    _say({"ready": lab.name})
    while (question := await gone.or_else(questions.readline())) and (
        answer := await gone.or_else(asyncio.to_thread(_answer, lab, reader, json.loads(question)))
    ):
        _say(answer)
    if gone.is_so:
        _say({"gone": True})


def _answer(lab: Lab, reader: Reader, question: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        if question["ask"] == "drawing":
            return {"svg": graph_svg(lab, question["width"])}
        return reader.look()
    except (FlannelError, OSError) as error:  # a file or a namespace is not there any more, say
        return {"error": f"the lab {lab.name} cannot be looked at just now: {error}"}


class _Gone:
    """Knows whether the lab is gone, by the file that it is attached by."""

    def __init__(self, lab: Lab) -> None:
        self._file = lab.plan.state / "lab.json"
        self._identity = netns.identity(self._file)
        self._heard = asyncio.Event()
        with suppress(OSError):  # no more of inotify's: the next question finds out
            self._watch = FileWatch(self._file, self._look)

    @property
    def is_so(self) -> bool:
        """Whether it is; another one of its name is not it."""
        return netns.identity(self._file) != self._identity

    def _look(self) -> None:
        if self.is_so:
            self._heard.set()

    async def or_else(self, awaited: Any) -> Any:
        """Return what is awaited, or ``None`` once the lab is gone."""
        heard, task = asyncio.ensure_future(self._heard.wait()), asyncio.ensure_future(awaited)
        await asyncio.wait({heard, task}, return_when=asyncio.FIRST_COMPLETED)
        heard.cancel()
        if self.is_so:
            task.cancel()
            return None
        return task.result()


def _say(document: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
