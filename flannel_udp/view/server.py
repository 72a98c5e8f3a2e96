"""The page's server: answers a browser of this machine that has the token, until Ctrl-C or until the lab is gone."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.view import commands
from flannel_udp.view.bad_requests import keep_bad_requests_quiet
from flannel_udp.view.child import LabGone, collector
from flannel_udp.view.gate import ADDRESS, HEADERS, Gate
from flannel_udp.view.looks import Event, Looks

PAGE = Path(__file__).parent / "page"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NOBODY_LOOKS = "the process that looked at the lab has ended by itself"
_SHUTDOWN_S = 1.0
"""How long a browser may take to hear that this was all."""
_MOST_BYTES = 4096
"""Of what somebody asks for."""
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
            keep_bad_requests_quiet()
            runner = web.AppRunner(
                page.application(), access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN_S
            )
            await runner.setup()
            try:
                await web.SockSite(runner, listening).start()
                say(gate.url)
                code = await ended
                why = {0: f"the lab {name} is gone", 1: _NOBODY_LOOKS}
                await page.looks.end(why.get(code, "the page's server was ended"))
            finally:
                await runner.cleanup()
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

    def application(self) -> web.Application:
        """Return it for aiohttp."""
        app = web.Application(middlewares=[self._guard], client_max_size=_MOST_BYTES)
        prefix = f"/{self._gate.token}"
        app.add_routes([web.get(f"{prefix}/", _file("index.html"))])
        app.add_routes([web.get(f"{prefix}/{path.name}", _file(path.name)) for path in PAGE.iterdir()])
        app.add_routes(
            [
                web.get(f"{prefix}/live", self._live, allow_head=False),
                web.get(f"{prefix}/drawing", self._drawing),
                web.post(f"{prefix}/change", self._change),
                web.post(f"{prefix}/learn", self._learn),
                web.post(f"{prefix}/follow", self._follow),
                web.post(f"{prefix}/foretell", self._foretell),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse whom `Gate` does not know; say what goes wrong in a line."""
        why = self._gate.refusal(
            request.method, request.path, request.headers.get("Host"), request.headers.get("Origin")
        )
        if why is not None:
            return _error(403, why)
        try:
            response = await handler(request)
        except web.HTTPException as error:
            return _error(error.status, f"{request.method}: {error.reason}")
        except UsageError as error:
            return _error(400, str(error))
        except LabGone as error:
            return _error(410, str(error))
        except FlannelError as error:
            return _error(503, str(error))
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    async def _live(self, request: web.Request) -> web.StreamResponse:
        """Tell what comes as server-sent events (HTML, section 9.2)."""
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        with suppress(ConnectionError):
            async with aclosing(self.looks.watch()) as events:
                async for event in events:
                    await response.write(_sent(event))
        return response

    async def _drawing(self, request: web.Request) -> web.Response:
        asked = request.query.get("width", "")
        width = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 6 else 0
        drawing = await self._ask(ask="drawing", width=min(max(width, _WIDTHS[0]), _WIDTHS[-1]))
        return web.Response(text=drawing["svg"], content_type="image/svg+xml")

    async def _change(self, request: web.Request) -> web.Response:
        async with self._turn:  # one after the other, whoever asks
            done = await commands.change(self._name, await _asked(request))
        self.looks.hurry()
        return web.json_response(done)

    async def _learn(self, request: web.Request) -> web.Response:
        async with self._turn:
            found = await commands.learn(self._name, await _asked(request))
        self.looks.hurry()
        return web.json_response(found)

    async def _follow(self, request: web.Request) -> web.Response:
        return web.json_response(await commands.follow(self._name, await _asked(request)))

    async def _foretell(self, request: web.Request) -> web.Response:
        asked, look = await _asked(request), await self._ask(ask="look")
        hosts = {address: host["name"] for host in look["hosts"] for address in host["addresses"]}
        return web.json_response(await commands.foretell(self._name, asked, hosts))


def _file(name: str) -> Callable[[web.Request], Any]:
    async def answer(_request: web.Request) -> web.Response:
        path = PAGE / name
        return web.Response(text=path.read_text(encoding="utf-8"), content_type=_KINDS[path.suffix], charset="utf-8")

    return answer


async def _asked(request: web.Request) -> Mapping[str, Any]:
    try:
        asked = json.loads(await request.read())
    except (ValueError, RecursionError):
        asked = None
    if request.content_type != "application/json" or not isinstance(asked, dict):
        raise UsageError("ask with an object of JSON")
    return asked


def _sent(event: Event) -> bytes:
    name, what = event
    return f"event: {name}\ndata: {json.dumps(what)}\n\n".encode()


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status, headers=HEADERS)
