"""The few calls of the Kubernetes API that the agent makes, and what their failures mean.

Paths, parameters and events are those of "Kubernetes API Concepts". lightkube brings the connection (kubeconfig, TLS,
tokens that are rotated); why its own watch is not used: docs/decisions/0013-kubernetes.md.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
from lightkube.core.exceptions import ConfigError

from flannel_udp.errors import RegistryDenied, RegistryError
from flannel_udp.registry.kube.nodes import KubeNode, parse_node
from flannel_udp.registry.kube.options import REQUEST_TIMEOUT_S

NODES = "/api/v1/nodes"
PAGE_NODES = 500
"""Nodes in one part of a list: a node object has 10 to 20 kB."""
ANSWER_TIMEOUT_S = 30.0
"""For a whole answer, however slowly it comes."""
IDLE_S = 90.0
"""A watch that says nothing for longer is opened again: the server sends a bookmark about every minute."""
WATCH_S = (300, 600)
"""How long a watch stays open, at random so that a cluster's agents do not come back all at once (as client-go)."""
MAX_LINE_BYTES = 4 * 1024 * 1024
"""An object in etcd has at most 1.5 MB."""

STRATEGIC = "application/strategic-merge-patch+json"


class NotFound(RegistryError):
    """The object does not exist."""


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

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self.name = f"Kubernetes at {http.base_url.scheme}://{http.base_url.netloc.decode()}"

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

    async def list_nodes(self) -> tuple[list[KubeNode], str]:
        """Return all nodes, and the resourceVersion from which a watch goes on. Raises `Expired` when it took long."""
        nodes: list[KubeNode] = []
        more = ""
        while True:
            answer = await self._ask("GET", NODES, {"limit": str(PAGE_NODES)} | ({"continue": more} if more else {}))
            try:
                nodes += map(parse_node, answer["items"])
                version, more = answer["metadata"]["resourceVersion"], answer["metadata"].get("continue", "")
            except (AttributeError, KeyError, TypeError, ValueError):
                raise RegistryError(f"{self.name}: the answer is no list of nodes") from None
            if not more:
                return nodes, str(version)

    async def watch_nodes(self, resource_version: str) -> AsyncGenerator[WatchEvent]:
        """Yield what happens to nodes after `resource_version`, until the server ends the watch.

        A bookmark of our own comes first, as soon as the watch stands. Raises `Expired` when the server does not go
        back that far.
        """
        parameters = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(random.randint(*WATCH_S)),  # noqa: S311 - no secret
        }
        timeout = httpx2.Timeout(REQUEST_TIMEOUT_S, read=IDLE_S)
        async with (
            self._translated("watch nodes"),
            self._http.stream("GET", NODES, params=parameters, timeout=timeout) as response,
        ):
            if response.is_error:
                raise self._refusal("watch nodes", response.status_code, await response.aread())
            yield WatchEvent(resource_version, None)
            async for line in _lines(response.aiter_bytes()):
                yield self._event(line)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

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
            async with asyncio.timeout(ANSWER_TIMEOUT_S):  # wait_for loses a cancellation before Python 3.12
                response = await self._http.request(
                    method, path, params=parameters, content=body or None, headers=headers
                )
            if response.is_error:
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
        except httpx2.TimeoutException:
            raise RegistryError(f"{self.name}: {what}: no answer in time") from None
        except TimeoutError:
            raise RegistryError(f"{self.name}: {what}: no complete answer within {ANSWER_TIMEOUT_S:g} s") from None
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            raise RegistryError(f"{self.name}: {what}: {_one_line(str(error)) or type(error).__name__}") from None

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
