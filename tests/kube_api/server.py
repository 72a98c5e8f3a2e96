"""The server: HTTP around a `Store`, in a thread of its own, with faults that a test orders."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from aiohttp import web

from tests.kube_api.discovery import discover
from tests.kube_api.store import Object, Refused, Store
from tests.support.patience import PATIENCE_S

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STRATEGIC = "application/strategic-merge-patch+json"


@dataclass
class Fault:
    """What happens to the next request of one verb.

    Its fields are steps in this order, and those left empty are left out: wait; refuse; for a watch, send raw bytes
    after the first event that comes, then cut the connection or end the answer properly.
    """

    wait_s: float = 0.0
    refuse: Refused | None = None
    retry_after: str = ""
    """Beside `refuse`: the header of that name."""
    plain: str = ""
    """Answer with this text, which is no JSON, and status 200."""
    raw: bytes = b""
    cut_event: bool = False
    """Send half of the first event's line instead of it, then cut the connection."""
    cut: bool = False
    end: bool = False


@dataclass
class Seen:
    """One request: its verb as RBAC has it, what it concerned, and its parameters."""

    verb: str
    resource: str
    parameters: Mapping[str, str]
    user: str
    at_s: float


class ApiServer:
    """A server on `listener` (default: a free port of 127.0.0.1); a context manager.

    With `tokens` (token → user) everybody must log in; with `rules` (of a ClusterRole) they are what a user may do.
    """

    def __init__(
        self,
        listener: socket.socket | None = None,
        tls: ssl.SSLContext | None = None,
        rules: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self._tls = tls
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self.tokens: dict[str, str] = {}
        self.rules = rules
        self.bookmark_s = 60.0
        self.requests: list[Seen] = []
        self.bookmarks: list[int] = []
        self._store = Store()
        self._faults: dict[str, list[Fault]] = {}
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.address[0]}:{self.address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._listener.close()

    # What a test does, from any thread.

    def do(self, work: Callable[[Store], T]) -> T:
        """Run `work` on the store and wake the watches."""

        async def run() -> T:
            done = work(self._store)
            self._changed.set()
            self._changed = asyncio.Event()
            return done

        return self._call(run())

    def add_node(self, name: str, pod_cidr: str | None = None, **annotations: str) -> None:
        """See `Store.add_node`."""
        self.do(lambda store: store.add_node(name, pod_cidr, **annotations))

    def order(self, verb: str, *faults: Fault) -> None:
        """Let the next requests of `verb` (get, list, watch, patch) meet these faults, in order."""
        self._faults.setdefault(verb, []).extend(faults)

    def count(self, verb: str) -> int:
        return sum(seen.verb == verb for seen in self.requests)

    def start(self) -> None:
        self._call(self._start())

    def stop(self) -> None:
        """Stop listening and cut all connections; the store stays. `start` again takes the same port."""
        if self._runner is not None:
            self._call(self._runner.cleanup())
            self._runner = None

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/api/v1/nodes", self._nodes)
        app.router.add_get("/api/v1/nodes/{name}", self._get)
        app.router.add_patch("/api/v1/nodes/{name}/status", self._patch)
        app.router.add_get("/api/v1/namespaces/{namespace}/pods/{name}", self._get)
        app.router.add_get("/{path:.*}", self._discover)
        # Who hangs up waits for nothing any more, as with a real one: no task of his is left at the end.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        # The listener outlives the runner, so that a restarted server has the same port.
        site = web.SockSite(self._runner, self._listener.dup(), ssl_context=self._tls)
        await site.start()

    def _call(self, work: Awaitable[T]) -> T:
        async def run() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE_S)

    # What a client meets.

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refused as refused:
            return web.json_response(refused.status, status=refused.code, headers=refused.headers)

    async def _admit(self, request: web.Request) -> Fault:
        """Authenticate, authorise, and meet what the test ordered."""
        resource = "pods" if "/pods/" in request.path else "nodes"
        verb = request.method.lower()
        if request.path == "/api/v1/nodes":
            verb = "watch" if request.query.get("watch") == "true" else "list"
        if verb == "patch":
            resource += "/status"
        user = "system:anonymous"
        if self.tokens:
            token = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if token not in self.tokens:
                raise Refused(401, "Unauthorized", "Unauthorized")
            user = self.tokens[token]
        self.requests.append(Seen(verb, resource, dict(request.query), user, self._loop.time()))
        if self.rules is not None and not any(
            verb in rule["verbs"] and resource in rule["resources"] and "" in rule["apiGroups"] for rule in self.rules
        ):
            name = request.match_info.get("name", "")
            what = (
                f"{resource.partition('/')[0]} {json.dumps(name)} is forbidden" if name else f"{resource} is forbidden"
            )
            raise Refused(
                403,
                "Forbidden",
                f'{what}: User "{user}" cannot {verb} resource "{resource}" in API group "" at the cluster scope',
            )
        ordered = self._faults.get(verb)
        fault = ordered.pop(0) if ordered else Fault()
        await asyncio.sleep(fault.wait_s)
        if fault.refuse is not None:
            fault.refuse.headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            raise fault.refuse
        if fault.plain:
            raise web.HTTPOk(text=fault.plain)
        return fault

    async def _get(self, request: web.Request) -> web.Response:
        await self._admit(request)
        where = request.match_info
        resource = "pods" if "namespace" in where else "nodes"
        return web.json_response(self._store.get(resource, where.get("namespace", ""), where["name"]))

    async def _patch(self, request: web.Request) -> web.Response:
        await self._admit(request)
        if request.content_type != STRATEGIC:
            raise Refused(415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {STRATEGIC}")
        patch: Object = await request.json()
        name = request.match_info["name"]
        node = self._store.patch_status(name, patch)
        self._changed.set()
        self._changed = asyncio.Event()
        return web.json_response(node)

    async def _nodes(self, request: web.Request) -> web.StreamResponse:
        fault = await self._admit(request)
        if request.query.get("watch") == "true":
            return await self._watch(request, fault)
        limit = int(request.query.get("limit", "0"))
        return web.json_response(self._store.list_nodes(limit, request.query.get("continue", "")))

    async def _watch(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        version = int(request.query["resourceVersion"])
        self._store.since(version)  # a version that is too old is refused before the answer begins
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        with suppress(ConnectionResetError):  # the client has gone
            await self._stream(request, response, version, fault)
        return response

    async def _stream(self, request: web.Request, response: web.StreamResponse, version: int, fault: Fault) -> None:
        asked = version
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + float(request.query.get("timeoutSeconds", "1800"))
        bookmark_s = loop.time() + self.bookmark_s
        while loop.time() < ends_s:
            changed = self._changed
            try:
                events = self._store.since(version)
            except Refused as expired:  # compacted while the watch was open: told inside the stream
                await response.write(_line("ERROR", expired.status))
                return
            for event in events:
                line = _line(event.kind, event.node)
                if fault.cut_event:
                    await response.write(line[: len(line) // 2])
                    _cut(request)
                    return
                await response.write(line)
                version = event.version
            if fault.raw and (events or fault.end or fault.cut):
                await response.write(fault.raw)
            if fault.cut:
                _cut(request)
            if fault.cut or fault.end:
                return
            if loop.time() >= bookmark_s and request.query.get("allowWatchBookmarks") == "true":
                if self._store.version > asked:  # as events: what is no later than was asked for is not sent
                    version = self._store.version
                    metadata = {"resourceVersion": str(version), "creationTimestamp": None}
                    await response.write(_line("BOOKMARK", {"kind": "Node", "apiVersion": "v1", "metadata": metadata}))
                    self.bookmarks.append(version)
                bookmark_s = loop.time() + self.bookmark_s
            try:
                await asyncio.wait_for(changed.wait(), max(min(bookmark_s, ends_s) - loop.time(), 0.0))
            except TimeoutError:
                continue

    async def _discover(self, request: web.Request) -> web.Response:
        return web.json_response(discover(request.path))


def _line(kind: str, thing: Object) -> bytes:
    return json.dumps({"type": kind, "object": thing}).encode() + b"\n"


def _cut(request: web.Request) -> None:
    """Reset the connection, as a server that dies does."""
    assert request.transport is not None
    request.transport.abort()
