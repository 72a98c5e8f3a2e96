"""HTTP for others of this host: h11 understands it (RFC 9112), and what is here moves the bytes and ends in time.

A connection is kept for the next request. Answers to who reads slowly hold up that connection alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote, urlsplit

import h11

logger = logging.getLogger(__name__)

_READ_BYTES = 8 * 1024
"""At a time: h11 holds what it has not understood yet against `head_bytes`, not what came with it."""
_LINGER_S = 1.0
"""For who is refused amid a request: closing with bytes unread may cost them the answer (RFC 9112 section 9.6)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server grants those who ask."""

    connections: int | None = None
    """Of more than that the oldest ones end at once, whatever they wait for: one that is closed in order waits for its
    reader. Those that come in one turn of the loop are counted with the next one."""
    head_bytes: int = 8 * 1024
    body_bytes: int = 1024 * 1024
    idle_s: float = 75.0
    """An idle connection, or a request that does not go on, is waited for longer than lies between two scrapes."""
    end_s: float = 0.2
    """How long an answer that nobody reads may hold up the end."""


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks; `query` and `headers`, whose names are in lower case, have the first value of each name."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    connection: socket.socket
    """The asyncio transport's: for questions to the kernel about the other end."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is whole."""

    body: bytes
    kind: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer in parts as they come, an `endless` one until nobody reads: with an empty part that is looked for."""

    parts: AsyncGenerator[bytes, None]
    kind: str
    endless: bool = False


class Refused(Exception):
    """The request is not answered: the status says why."""

    def __init__(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(HTTPStatus(status).phrase)
        self.status = status
        self.headers = headers or {}


Handler = Callable[[Request], Awaitable[Answer | Stream]]


def routed(get: Mapping[str, Handler], post: Mapping[str, Handler] | None = None) -> Handler:
    """Return what answers by path and method; HEAD is answered as GET (RFC 9110 section 9.3.2).

    It raises `Refused` for other paths, and for paths that are asked by another method.
    """
    ways = {"GET": get, "HEAD": get, "POST": post or {}}

    async def answer(request: Request) -> Answer | Stream:
        allowed = [method for method, handlers in ways.items() if request.path in handlers]
        if not allowed:
            raise Refused(404)
        if request.method not in allowed:
            raise Refused(405, {"Allow": ", ".join(allowed)})
        return await ways[request.method][request.path](request)

    return answer


def as_json(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Return a document as an answer."""
    return Answer(json.dumps(document).encode(), "application/json; charset=utf-8", status, headers or {})


class Server:
    """Answers on sockets that listen, until `close`; every answer has these headers, refusals too."""

    def __init__(
        self, handler: Handler, limits: Limits | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.handler = handler
        self.limits = limits or Limits()
        self.headers = headers or {}
        self.is_ending = False
        self._connections: dict[_Connection, None] = {}  # the oldest first

    async def listen(self, listening: socket.socket, backlog: int = 100) -> asyncio.Server:
        """Answer whom the socket lets in until what is returned is closed, and the socket with it."""
        return await asyncio.get_running_loop().create_server(self._let_in, sock=listening, backlog=backlog)

    async def close(self) -> None:
        """End all connections: who is being answered has `end_s`, but for answers without an end."""
        self.is_ending = True
        running = [connection for connection in self._connections if not connection.task.done()]
        for connection in running:
            if not connection.is_answering or connection.is_endless:
                connection.task.cancel()
        tasks = {connection.task for connection in running}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self.limits.end_s)
            for task in late:
                task.cancel()
            await asyncio.wait(tasks)
        for connection in list(self._connections):
            connection.abort()

    def _let_in(self) -> asyncio.Protocol:
        if self.limits.connections is not None:
            opened = [connection for connection in self._connections if not connection.is_aborted]
            for connection in opened[: max(0, len(opened) + 1 - self.limits.connections)]:
                connection.abort()
        return _Connection(self, self._connections)


class _Connection(asyncio.StreamReaderProtocol):
    """One that came in, with the task that answers there."""

    def __init__(self, server: Server, connections: dict[_Connection, None]) -> None:
        super().__init__(asyncio.StreamReader(), self._begin)
        self._server = server
        self._connections = connections
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=server.limits.head_bytes)
        self.is_answering = False
        self.is_endless = False
        self.is_aborted = False

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._connections[self] = None
        self.task = asyncio.create_task(self._serve())

    def connection_lost(self, exc: Exception | None) -> None:
        """Be forgotten, which only now needs no descriptor any more."""
        self._connections.pop(self, None)
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close the connection without waiting for anybody to read what is left."""
        self.is_aborted = True
        self._writer.transport.abort()

    async def _serve(self) -> None:
        try:
            while (request := await self._next_request()) is not None:
                self.is_answering = True
                await self._answer(request)
                self.is_answering = False
                if (
                    self._server.is_ending
                    or self._http.our_state is not h11.DONE
                    or self._http.their_state is not h11.DONE
                ):
                    return
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            # Whoever reaches a port may send as many of these as he likes.
            logger.debug("a request that is no HTTP: %s", error)
            with suppress(ConnectionError, h11.LocalProtocolError):
                await self._refuse_rest(error.error_status_hint)
        except (ConnectionError, TimeoutError):
            pass
        except Exception:
            logger.exception("an answer failed amid its parts")
        finally:
            self._writer.close()

    async def _next_request(self) -> Request | None:
        """Return the next one with its body, ``None`` once none will come. Raises what h11 does, and `TimeoutError`."""
        body = bytearray()
        async with asyncio.timeout(self._server.limits.idle_s):
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    if self._http.they_are_waiting_for_100_continue:
                        await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                    self._http.receive_data(await self._reader.read(_READ_BYTES))
                elif isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > self._server.limits.body_bytes:
                        raise h11.RemoteProtocolError("a body that is too large", 413)
                elif isinstance(event, h11.EndOfMessage):
                    return self._understood(head, bytes(body))
                else:
                    return None

    def _understood(self, head: h11.Request, body: bytes) -> Request:
        try:
            target = urlsplit(head.target.decode("ascii"))
        except ValueError as error:
            raise h11.RemoteProtocolError(f"a target that is none: {error}") from error
        query: dict[str, str] = {}
        for key, value in parse_qsl(target.query, keep_blank_values=True):
            query.setdefault(key, value)
        headers: dict[str, str] = {}
        for name, told in head.headers:
            headers.setdefault(name.decode("ascii"), told.decode("latin-1"))  # of which any byte is a letter
        connection = self._writer.get_extra_info("socket")
        return Request(head.method.decode("ascii"), unquote(target.path), query, headers, body, connection)

    async def _answer(self, request: Request) -> None:
        try:
            answer = await self._server.handler(request)
        except Refused as refused:
            answer = Answer(f"{refused.status}: {refused}\n".encode(), status=refused.status, headers=refused.headers)
        except Exception:
            logger.exception("answering %s failed", request.path)
            answer = Answer(b"500: Internal Server Error\n", status=500)
        if isinstance(answer, Answer):
            await self._tell(answer, has_body=request.method != "HEAD")
            return
        self.is_endless = answer.endless
        async with aclosing(answer.parts):
            await self._stream(answer, has_body=request.method != "HEAD")

    async def _tell(self, answer: Answer, *, has_body: bool) -> None:
        headers = [("Content-Type", answer.kind), ("Content-Length", str(len(answer.body))), *answer.headers.items()]
        await self._send(self._head(answer.status, headers))
        if has_body:
            await self._send(h11.Data(data=answer.body))
        await self._send(h11.EndOfMessage())

    async def _stream(self, answer: Stream, *, has_body: bool) -> None:
        await self._send(self._head(200, [("Content-Type", answer.kind)]))
        if has_body:
            async for part in answer.parts:
                if self._writer.is_closing() or (answer.endless and self._reader.at_eof()):
                    raise ConnectionResetError("nobody reads any more")
                if part:
                    await self._send(h11.Data(data=part))
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> None:
        """Send that, and wait while the other end reads slowly. Raises `ConnectionError` if it is gone."""
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            await self._writer.drain()

    async def _refuse_rest(self, status: int) -> None:
        """Say what is wrong with what came, then let the other end hang up."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        phrase = HTTPStatus(status).phrase
        await self._tell(
            Answer(f"{status}: {phrase}\n".encode(), status=status, headers={"Connection": "close"}), has_body=True
        )
        with suppress(OSError):  # who has hung up already needs no end
            self._writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while await self._reader.read(_READ_BYTES):
                    pass

    def _head(self, status: int, headers: list[tuple[str, str]]) -> h11.Response:
        headers = [*headers, *self._server.headers.items()]
        return h11.Response(status_code=status, reason=HTTPStatus(status).phrase, headers=headers)
