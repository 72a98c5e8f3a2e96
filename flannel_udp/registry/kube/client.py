"""The few calls of the Kubernetes API that the agent makes, and what their failures mean.

Paths, parameters and events are those of "Kubernetes API Concepts". lightkube brings the connection (kubeconfig, TLS,
tokens that are rotated); why its own watch is not used: docs/decisions/0013-kubernetes.md.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

import httpx2
from lightkube.core.exceptions import ConfigError

from flannel_udp.errors import RegistryDenied, RegistryError
from flannel_udp.registry.kube.node_list import read_node_list
from flannel_udp.registry.kube.nodes import KubeNode, parse_node
from flannel_udp.registry.kube.options import REQUEST_TIMEOUT_S, KubeFiles
from flannel_udp.registry.replaceable import Replaceable

NODES = "/api/v1/nodes"
PAGE_NODES = 50
"""Nodes in one part of a list that the server does not give out whole."""
ANSWER_TIMEOUT_S = 30.0
"""For a whole answer, however slowly it comes."""
LIST_TIMEOUT_S = 300.0
"""For a whole list: 5,000 nodes have 100 MB."""
RETRY_AFTER_MAX_S = 10.0
IDLE_S = (90, 150)
"""A watch that says nothing for longer may wait for what never comes: the server sends a bookmark about every minute.

At random, as below. In a cluster of a few nodes it may be so because nothing happened: there is none for old news.
"""
WATCH_S = (300, 600)
"""How long a watch stays open, at random so that a cluster's agents do not come back all at once (as client-go)."""
MAX_LINE_BYTES = 4 * 1024 * 1024
"""An object in etcd has at most 1.5 MB."""

NO_SERVICE = " (usually a Service's address: does kube-proxy run on this node? Else give --kubeconfig-file)"
"""Said of the address that pods are told. `--kube-api-url` alone would be without credentials."""
STRATEGIC = "application/strategic-merge-patch+json"


class NotFound(RegistryError):
    """The object does not exist."""


class Unsuitable(RegistryError):
    """The server does not take a request as it is."""


class Silent(RegistryError):
    """A watch stands and tells nothing: nothing happens, the connection is dead, or versions went back."""


class Expired(RegistryError):
    """The server no longer has the history from which a watch was to go on: list again."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event: ``node`` as it is now, or was when it was deleted; ``None`` for a bookmark."""

    resource_version: str
    node: KubeNode | None
    deleted: bool = False


class KubeClient:
    """Talks to one API server; the owner closes it."""

    def __init__(self, files: KubeFiles) -> None:
        self._files = files
        self._clients = Replaceable(files.first, httpx2.AsyncClient.aclose)
        self._not_before_s = 0.0
        url = files.first.base_url
        proxy = _by_proxy(url)
        self.name = f"Kubernetes at {url.scheme}://{url.netloc.decode()}{proxy}"
        self._unreached = NO_SERVICE if files.by_service and not proxy else ""

    async def get_node(self, name: str) -> KubeNode:
        """Return a node. Raises `NotFound`."""
        return _node(await self._ask("GET", _path(name)), self.name)

    async def get_pods_node(self, namespace: str, pod: str) -> str:
        """Return the name of the node a pod runs on, empty before it is scheduled. Raises `NotFound`."""
        answer = await self._ask("GET", f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(pod, safe='')}")
        spec = answer.get("spec") if isinstance(answer, dict) else None
        return str(spec.get("nodeName") or "") if isinstance(spec, dict) else ""

    async def patch_node_status(self, name: str, patch: Mapping[str, Any]) -> KubeNode:
        """Merge `patch` into a node through its status, which may change annotations too; return the node."""
        body = json.dumps(patch).encode()
        return _node(await self._ask("PATCH", f"{_path(name)}/status", body=body), self.name)

    async def list_nodes(self, take: Callable[[KubeNode], None]) -> str:
        """Hand all nodes to `take`; return the resourceVersion from which a watch goes on.

        From the server's memory and whole (resourceVersion 0 takes no limit): parts are read from etcd for every
        client anew. Only where that is refused it comes in parts. Raises `Expired` when that took long.
        """
        try:
            version, more = await self._list_part({"resourceVersion": "0"}, take)
        except Unsuitable:
            version, more = await self._list_part({"limit": str(PAGE_NODES)}, take)
        while more:
            version, more = await self._list_part({"limit": str(PAGE_NODES), "continue": more}, take)
        return version

    async def newest_version(self) -> str:
        """Return the resourceVersion that the server's store has come to; costs a node and not all of them."""
        version, _ = await self._list_part({"limit": "1"}, lambda _node: None)
        return version

    async def _list_part(self, parameters: Mapping[str, str], take: Callable[[KubeNode], None]) -> tuple[str, str]:
        async with (
            self._translated("list nodes"),
            asyncio.timeout(LIST_TIMEOUT_S),
            self._client() as http,
            http.stream("GET", NODES, params=parameters) as response,
        ):
            if response.is_error:
                self._heed(response)
                raise self._refusal("list nodes", response.status_code, await response.aread())
            try:
                return await read_node_list(aiter(response.aiter_bytes()), take)
            except ValueError as error:
                raise RegistryError(f"{self.name}: the answer is no list of nodes: {error}") from None

    async def watch_nodes(self, resource_version: str) -> AsyncGenerator[WatchEvent]:
        """Yield what happens to nodes after `resource_version`, until the server ends the watch.

        A bookmark of our own comes first, as soon as the watch stands. Raises `Expired` when the server does not go
        back that far, and `Silent`: a server whose store was restored from a backup takes a version that is yet to
        come there, and tells nothing before it is past that.
        """
        parameters = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(random.randint(*WATCH_S)),  # noqa: S311 - no secret
        }
        timeout = httpx2.Timeout(REQUEST_TIMEOUT_S, read=random.uniform(*IDLE_S))  # noqa: S311 - no secret
        async with (
            self._translated("watch nodes"),
            asyncio.timeout(ANSWER_TIMEOUT_S) as opening,
            self._client() as http,
            http.stream("GET", NODES, params=parameters, timeout=timeout) as response,
        ):
            opening.reschedule(None)
            if response.is_error:
                self._heed(response)
                raise self._refusal("watch nodes", response.status_code, await response.aread())
            yield WatchEvent(resource_version, None)
            try:
                async for line in _lines(response.aiter_bytes()):
                    yield self._event(line)
            except httpx2.ReadTimeout:
                raise Silent(f"{self.name}: the watch has fallen silent") from None

    async def close(self) -> None:
        """Close all connections."""
        await self._clients.close()

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx2.AsyncClient]:
        """Lend an HTTP client that has the credentials as they are now; a watch goes on with those it began with."""
        await asyncio.sleep(max(self._not_before_s - time.monotonic(), 0.0))
        replaced = await asyncio.to_thread(self._files.replaced)
        if replaced is not None:
            self._clients.replace(replaced)
        with self._clients.use() as http:
            yield http

    def _heed(self, response: httpx2.Response) -> None:
        """Ask nothing for as long as the server asks for (RFC 9110 section 10.2.3; a date is none of its answers)."""
        text = response.headers.get("Retry-After", "")
        if text.isdecimal():
            self._not_before_s = time.monotonic() + min(float(text), RETRY_AFTER_MAX_S)

    def _event(self, line: bytes) -> WatchEvent:
        try:
            event = json.loads(line)
            kind, thing = event["type"], event["object"]
            if kind == "ERROR":
                raise self._refusal("watch nodes", int(thing.get("code", 0)), json.dumps(thing).encode())
            if kind == "BOOKMARK":
                return WatchEvent(str(thing["metadata"]["resourceVersion"]), None)
            node = parse_node(thing)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            raise RegistryError(f"{self.name}: the watch was cut off or sent something that is no event") from None
        return WatchEvent(node.resource_version, node, kind == "DELETED")

    async def _ask(self, method: str, path: str, parameters: Mapping[str, str] | None = None, body: bytes = b"") -> Any:
        what = f"{method} {path}"
        async with self._translated(what):
            headers = {"Content-Type": STRATEGIC} if body else {}
            # Not wait_for, which loses a cancellation before Python 3.12.
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._client() as http:
                response = await http.request(method, path, params=parameters, content=body or None, headers=headers)
            if response.is_error:
                self._heed(response)
                raise self._refusal(what, response.status_code, response.content)
            try:
                return response.json()
            except (ValueError, RecursionError):
                raise RegistryError(f"{self.name}: {what}: the answer is no JSON") from None

    @asynccontextmanager
    async def _translated(self, what: str) -> AsyncIterator[None]:
        """Turn what the libraries raise into our errors."""
        try:
            yield
        except ConfigError as error:  # the token's file is gone, or a login command failed
            raise RegistryDenied(f"{self.name}: no credentials to {what}: {_one_line(str(error))}") from None
        except httpx2.TimeoutException as error:
            hint = self._unreached if isinstance(error, httpx2.ConnectTimeout) else ""
            raise RegistryError(f"{self.name}: {what}: no answer in time{hint}") from None
        except TimeoutError:
            raise RegistryError(f"{self.name}: {what}: no complete answer within {ANSWER_TIMEOUT_S:g} s") from None
        except httpx2.LocalProtocolError as error:  # its text quotes what we wanted to send, a token perhaps
            raise RegistryError(f"{self.name}: {what}: {type(error).__name__}") from None
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            hint = self._unreached if isinstance(error, httpx2.ConnectError) and not _is_of_tls(error) else ""
            text = _one_line(str(error)) or type(error).__name__
            raise RegistryError(f"{self.name}: {what}: {text}{hint}") from None

    def _refusal(self, what: str, code: int, body: bytes) -> RegistryError:
        """Return what an HTTP status, or the same in a watch's ERROR event, means."""
        said = _message(body)
        match code:
            case 401:
                return RegistryDenied(
                    f"{self.name}: {what}: not logged in ({said}): check the token or the kubeconfig's user"
                )
            case 403:
                return RegistryDenied(f"{self.name}: forbidden ({said}): let RBAC grant it to us")
            case 404:
                return NotFound(f"{self.name}: {said}")
            case 400 | 405 | 413 | 422:
                return Unsuitable(f"{self.name}: {what}: {said} (status {code})")
            case 410:
                return Expired(f"{self.name}: {said}")
            case _:
                return RegistryError(f"{self.name}: {what}: {said} (status {code})")


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut a stream at line feeds only: a string in JSON may hold other characters that count as line ends in text."""
    rest = b""
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
        if len(rest) > MAX_LINE_BYTES:
            raise RegistryError(f"the watch sent a line of more than {MAX_LINE_BYTES} bytes")
    if rest:
        yield rest


def _by_proxy(url: httpx2.URL) -> str:
    """Return a clause about the proxy that the environment names, if it may be used.

    The HTTP library has its own reading of no_proxy, which knows networks: not to be had from it, nor worth a copy.
    """
    proxies = getproxies()
    variable = next((name for name in (url.scheme, "all") if name in proxies), None)
    if variable is None or proxy_bypass(url.host):
        return ""
    exceptions = ", unless no_proxy says otherwise" if "no" in proxies else ""
    return f" (by the proxy that {variable}_proxy names{exceptions})"


def _is_of_tls(error: BaseException | None) -> bool:
    """Tell whether somebody answered, who was not to our taste or we not to his."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None


def _path(name: str) -> str:
    """Return the path of a node; the name came from the environment and must not lead elsewhere."""
    return f"{NODES}/{quote(name, safe='')}"


def _node(document: Any, server: str) -> KubeNode:
    try:
        return parse_node(document)
    except ValueError as error:
        raise RegistryError(f"{server}: the answer is {error}") from None


def _message(body: bytes) -> str:
    """Return what a Status object says, or the beginning of whatever else came."""
    try:
        message = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        message = body.decode(errors="replace") or "no reason given"
    return _one_line(str(message))


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text[:300]).split())
