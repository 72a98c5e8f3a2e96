"""The test server itself: what the other tests rely on is as Kubernetes' documentation has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import httpx2
import pytest

from tests.kube_api.merge import strategic_merge
from tests.kube_api.server import ApiServer
from tests.support.patience import PATIENCE_S

NODES = "/api/v1/nodes"
STRATEGIC = {"Content-Type": "application/strategic-merge-patch+json"}


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as api:
        api.add_node("h1", "10.1.1.0/24", public_ip="192.0.2.1")
        yield api


@pytest.fixture
def http(api: ApiServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=api.url, timeout=PATIENCE_S) as http:
        yield http


def watched(http: httpx2.Client, version: str, **parameters: str) -> list[Any]:
    """Watch for a second at most."""
    query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "1", **parameters}
    return [json.loads(line) for line in http.get(NODES, params=query).text.splitlines()]


def patched(http: httpx2.Client, patch: object, **headers: str) -> httpx2.Response:
    return http.patch(f"{NODES}/h1/status", content=json.dumps(patch), headers=headers or STRATEGIC)


@pytest.mark.parametrize(
    ("original", "patch", "merged"),
    [
        ({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}, {"a": 1, "b": {"c": 2, "d": 3}}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"list": [1, 2]}, {"list": [3]}, {"list": [3]}),
        (
            {"conditions": [{"type": "A", "x": 1}, {"type": "B", "x": 1}]},
            {"conditions": [{"type": "B", "y": 2}, {"type": "C"}]},
            {"conditions": [{"type": "A", "x": 1}, {"type": "B", "x": 1, "y": 2}, {"type": "C"}]},
        ),
        (
            {"conditions": [{"type": "A"}, {"type": "B"}]},
            {"conditions": [{"$patch": "delete", "type": "A"}]},
            {"conditions": [{"type": "B"}]},
        ),
        ({}, {"metadata": {"annotations": {"a": None, "b": "c"}}}, {"metadata": {"annotations": {"b": "c"}}}),
    ],
)
def test_a_strategic_merge_patch(original: object, patch: object, merged: object) -> None:
    assert strategic_merge(original, patch) == merged


def test_the_status_subresource_takes_annotations_and_status_and_no_spec(api: ApiServer, http: httpx2.Client) -> None:
    patch = {"metadata": {"annotations": {"a/b": "c"}}, "spec": {"podCIDR": "10.9.0.0/24"}, "status": {"phase": "x"}}
    node = patched(http, patch).json()
    assert node["metadata"]["annotations"] == {"flannel.alpha.coreos.com/public-ip": "192.0.2.1", "a/b": "c"}
    assert node["spec"]["podCIDR"] == "10.1.1.0/24"
    assert node["status"]["phase"] == "x"


def test_a_patch_that_changes_nothing_is_no_new_version(http: httpx2.Client) -> None:
    version = http.get(f"{NODES}/h1").json()["metadata"]["resourceVersion"]
    patch = {"metadata": {"annotations": {"flannel.alpha.coreos.com/public-ip": "192.0.2.1"}}}
    assert patched(http, patch).json()["metadata"]["resourceVersion"] == version


@pytest.mark.parametrize(
    ("patch", "headers", "code", "reason"),
    [
        ({"metadata": {"resourceVersion": "1"}}, {}, 409, "Conflict"),
        ({"metadata": {"uid": "another"}}, {}, 422, "Invalid"),
        ({}, {"Content-Type": "application/json"}, 415, "UnsupportedMediaType"),
    ],
)
def test_a_patch_with_a_wrong_precondition_is_refused(
    patch: object, headers: dict[str, str], code: int, reason: str, http: httpx2.Client
) -> None:
    answer = patched(http, patch, **headers)
    assert (answer.status_code, answer.json()["code"], answer.json()["reason"]) == (code, code, reason)


def test_a_watch_tells_what_came_after_a_version_in_order_and_ends_in_time(api: ApiServer, http: httpx2.Client) -> None:
    version = http.get(NODES).json()["metadata"]["resourceVersion"]
    api.add_node("h2")
    api.do(lambda store: store.heartbeat("h1"))
    api.do(lambda store: store.delete_node("h2"))
    events = [(event["type"], event["object"]["metadata"]["name"]) for event in watched(http, version)]
    assert events == [("ADDED", "h2"), ("MODIFIED", "h1"), ("DELETED", "h2")]


def test_bookmarks_come_to_whoever_asks(api: ApiServer, http: httpx2.Client) -> None:
    api.bookmark_s = 0.2
    version = http.get(NODES).json()["metadata"]["resourceVersion"]
    api.do(lambda store: store.heartbeat("h1"))
    assert [event["type"] for event in watched(http, version)] == ["MODIFIED"]
    query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "90", "allowWatchBookmarks": "true"}
    with http.stream("GET", NODES, params=query) as answer:
        event, bookmark = (json.loads(line) for line in islice(answer.iter_lines(), 2))
    assert bookmark["type"] == "BOOKMARK"
    assert bookmark["object"]["metadata"] == {
        "resourceVersion": event["object"]["metadata"]["resourceVersion"],
        "creationTimestamp": None,
    }


def test_a_watch_tells_of_nothing_that_is_no_later_than_was_asked_for(api: ApiServer, http: httpx2.Client) -> None:
    api.bookmark_s = 0.2
    version = int(http.get(NODES).json()["metadata"]["resourceVersion"])
    assert watched(http, str(version), allowWatchBookmarks="true") == []
    api.add_node("h2")
    assert watched(http, str(version + 100), allowWatchBookmarks="true") == []  # nor is that refused


def test_what_was_compacted_is_gone(api: ApiServer, http: httpx2.Client) -> None:
    version = http.get(NODES).json()["metadata"]["resourceVersion"]
    part = http.get(NODES, params={"limit": "0"}).json()
    api.add_node("h2")
    more = http.get(NODES, params={"limit": "1"}).json()["metadata"]["continue"]
    api.do(lambda store: store.forget())
    assert part["kind"] == "NodeList"
    answer = http.get(NODES, params={"watch": "true", "resourceVersion": version})
    assert (answer.status_code, answer.json()["reason"]) == (410, "Expired")
    assert http.get(NODES, params={"limit": "1", "continue": more}).status_code == 410


def test_a_list_in_parts_is_of_one_version(api: ApiServer, http: httpx2.Client) -> None:
    api.add_node("h2")
    first = http.get(NODES, params={"limit": "1"}).json()
    api.add_node("h3")
    rest = http.get(NODES, params={"limit": "9", "continue": first["metadata"]["continue"]}).json()
    assert [node["metadata"]["name"] for node in rest["items"]] == ["h2"]
    assert rest["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
