"""The page's server: answers a browser of this machine that has the token, until Ctrl-C or until the lab is gone."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flannel_udp.admin.http_server import Answer, Handler, Limits, Refused, Request, Server, Stream, as_json, routed
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.view import commands
from flannel_udp.view.child import LabGone, collector
from flannel_udp.view.gate import ADDRESS, HEADERS, Gate
from flannel_udp.view.looks import Event, Looks

_LOGGER = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NOBODY_LOOKS = "the process that looked at the lab has ended by itself"
_LIMITS = Limits(
    head_bytes=64 * 1024,  # a browser brings the cookies of all that this machine serves
    body_bytes=4096,
    idle_s=3600.0,  # longer than browsers keep a connection: else a click may cross its end
    end_s=1.0,  # for a browser to hear that this was all, and for a command to be done
)
_WIDTHS = range(200, 10_001)
"""Pixels that a drawing may be asked for; others are taken as the next one."""


def serve(name: str, port: int, say: Callable[[str], object]) -> int:
    """Serve the lab of that name on a port of loopback, 0: a free one; `say` hears the address once it can be opened.

    Returns 0 once the lab is gone, or 128 + the signal that ended it. Raises `FlannelError` where there is no such lab,
    the port is taken, or nobody can look at the lab any more.
    """
    code = asyncio.run(_serve(name, port, say))
    if code == 1:
        raise FlannelError(_NOBODY_LOOKS)
    return code


async def _serve(name: str, port: int, say: Callable[[str], object]) -> int:
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    with _listen(port) as listening:
        async with collector(name) as child:
            for number in _ENDING:
                asyncio.get_running_loop().add_signal_handler(number, _end, ended, 128 + number)
            child.ended.add_done_callback(lambda task: _end(ended, 0 if task.result() else 1))
            gate = Gate(listening.getsockname()[1])
            page = Page(name, gate, child.ask)
            server = page.server()
            listener = await server.listen(listening)
            try:
                say(gate.url)
                code = await ended
                listener.close()
                why = {0: f"the lab {name} is gone", 1: _NOBODY_LOOKS}
                await page.looks.end(why.get(code, "the page's server was ended"))
            finally:
                listener.close()
                await server.close()
    return code


def _end(ended: asyncio.Future[int], code: int) -> None:
    if not ended.done():
        ended.set_result(code)


def _listen(port: int) -> socket.socket:
    """Return a socket that listens on loopback only. Raises `FlannelError`."""
    try:
        return socket.create_server((ADDRESS, port))
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "another program has it" if taken else error.strerror
        raise FlannelError(
            f"cannot listen on {ADDRESS}, port {port}: {why}: give another --port, or none for a free one"
        ) from None


class Page:
    """What answers for one lab, which is looked at by `ask` (`Collector.ask`)."""

    def __init__(self, name: str, gate: Gate, ask: Callable[..., Awaitable[Mapping[str, Any]]]) -> None:
        self._name, self._gate, self._ask = name, gate, ask
        self.looks = Looks(lambda: ask(ask="look"))
        self._turn = asyncio.Lock()
        root = f"/{gate.token}/"
        get = {root: _file("index.html"), **{root + path.name: _file(path.name) for path in PAGE.iterdir()}}
        get |= {root + "live": self._live, root + "drawing": self._drawing}
        post = {
            root + "change": self._change,
            root + "learn": self._learn,
            root + "follow": self._follow,
            root + "foretell": self._foretell,
        }
        self._answer = routed(get, post)

    def server(self) -> Server:
        """Return what lets browsers in."""
        return Server(self._guard, _LIMITS, HEADERS)

    async def _guard(self, request: Request) -> Answer | Stream:
        """Answer whom `Gate` knows; say what goes wrong in a line."""
        why = self._gate.refusal(
            request.method, request.path, request.headers.get("host"), request.headers.get("origin")
        )
        if why is not None:
            return _error(403, why)
        try:
            return await self._answer(request)
        except Refused as refused:
            return _error(refused.status, f"{request.method}: {HTTPStatus(refused.status).phrase}", refused.headers)
        except FlannelError as error:
            status = 400 if isinstance(error, UsageError) else 410 if isinstance(error, LabGone) else 503
            return _error(status, str(error))
        except Exception:
            _LOGGER.exception("answering a %s of the page failed", request.method)  # its path has the token in it
            return _error(500, "the page's server failed: it has written why to standard error")

    async def _live(self, _request: Request) -> Stream:
        """Tell what comes as server-sent events (HTML, section 9.2)."""
        return Stream(self._events(), "text/event-stream")

    async def _events(self) -> AsyncGenerator[bytes]:
        async with aclosing(self.looks.watch()) as events:
            async for event in events:
                yield _sent(event)

    async def _drawing(self, request: Request) -> Answer:
        asked = request.query.get("width", "")
        width = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 6 else 0
        drawing = await self._ask(ask="drawing", width=min(max(width, _WIDTHS[0]), _WIDTHS[-1]))
        return Answer(drawing["svg"].encode(), "image/svg+xml; charset=utf-8")

    async def _change(self, request: Request) -> Answer:
        async with self._turn:  # one after the other, whoever asks
            done = await commands.change(self._name, _asked(request))
        self.looks.hurry()
        return as_json(done)

    async def _learn(self, request: Request) -> Answer:
        async with self._turn:
            found = await commands.learn(self._name, _asked(request))
        self.looks.hurry()
        return as_json(found)

    async def _follow(self, request: Request) -> Answer:
        return as_json(await commands.follow(self._name, _asked(request)))

    async def _foretell(self, request: Request) -> Answer:
        asked, look = _asked(request), await self._ask(ask="look")
        hosts = {address: host["name"] for host in look["hosts"] for address in host["addresses"]}
        return as_json(await commands.foretell(self._name, asked, hosts))


def _file(name: str) -> Handler:
    async def answer(_request: Request) -> Answer:
        path = PAGE / name
        return Answer(path.read_bytes(), f"{_KINDS[path.suffix]}; charset=utf-8")

    return answer


def _asked(request: Request) -> Mapping[str, Any]:
    try:
        asked = json.loads(request.body)
    except (ValueError, RecursionError):
        asked = None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" or not isinstance(asked, dict):
        raise UsageError("ask with an object of JSON")
    return asked


def _sent(event: Event) -> bytes:
    name, what = event
    return f"event: {name}\ndata: {json.dumps(what)}\n\n".encode()


def _error(status: int, message: str, headers: Mapping[str, str] = MappingProxyType({})) -> Answer:
    return as_json({"error": message}, status, headers)
