"""The page's server, asked over HTTP: who is let in, by which method, and what every answer bears."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession

from flannel_udp.view.child import LabGone
from flannel_udp.view.gate import HEADERS, Gate
from flannel_udp.view.server import PAGE, Page
from tests.support.patience import PATIENCE_S


class Asked:
    """Stands for the process that looks at a lab, where there is none: what is said of it is always the same."""

    def __init__(self) -> None:
        self.questions: list[Mapping[str, Any]] = []
        self.gone = False

    async def __call__(self, **question: Any) -> Mapping[str, Any]:
        self.questions.append(question)
        if self.gone:
            raise LabGone("the lab demo is gone")
        return {"svg": "<svg/>"} if question["ask"] == "drawing" else {"hosts": [], "drawing": 1}


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def gate(listening: socket.socket) -> Gate:
    return Gate(listening.getsockname()[1])


@pytest.fixture
def page(gate: Gate, asked: Asked) -> Page:
    return Page("demo", gate, asked)


@pytest.fixture
async def client(listening: socket.socket, gate: Gate, page: Page) -> AsyncIterator[ClientSession]:
    server = page.server()
    listener = await server.listen(listening)
    try:
        async with ClientSession(f"http://127.0.0.1:{gate.port}") as client:
            yield client
    finally:
        listener.close()
        await server.close()


def path(gate: Gate, name: str = "") -> str:
    return f"/{gate.token}/{name}"


async def post(client: ClientSession, gate: Gate, name: str, body: object, **headers: str) -> ClientResponse:
    told = {"Origin": f"http://127.0.0.1:{gate.port}", **headers}
    return await client.post(path(gate, name), json=body, headers=told)


def assert_it_has_the_headers(answer: ClientResponse) -> None:
    assert {key: answer.headers[key] for key in HEADERS} == HEADERS


async def test_the_page_and_all_that_it_names_bear_the_headers(client: ClientSession, gate: Gate) -> None:
    for name in ["", *(file.name for file in PAGE.iterdir()), "drawing?width=800"]:
        async with client.get(path(gate, name)) as answer:
            assert answer.status == 200, name
            assert_it_has_the_headers(answer)
    async with client.get(path(gate, "main.js")) as answer:
        assert answer.content_type == "text/javascript"


async def test_a_wrong_token_is_refused_in_a_line_and_learns_nothing(client: ClientSession, asked: Asked) -> None:
    for wrong in ("/", "/wrong/", "/wrong/live", "/wrong/main.js", "/favicon.ico"):
        async with client.get(wrong) as answer:
            assert answer.status == 403
            assert_it_has_the_headers(answer)
            assert "the token in the address is wrong" in (await answer.json())["error"]
    assert asked.questions == []


async def test_a_page_of_somebody_else_is_refused(client: ClientSession, gate: Gate) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        async with client.get(path(gate), headers=headers) as answer:
            assert answer.status == 403
        async with await post(client, gate, "change", {"command": "heal"}, **headers) as answer:
            assert answer.status == 403


@pytest.mark.parametrize("name", ["change", "learn", "follow", "foretell"])
async def test_nothing_is_changed_by_get(client: ClientSession, gate: Gate, name: str) -> None:
    async with client.get(path(gate, name)) as answer:
        assert answer.status == 405
        assert_it_has_the_headers(answer)
        assert await answer.json() == {"error": "GET: Method Not Allowed"}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"command": "down"}, "there is no button for 'down'"),
        ({"command": "exec", "words": ["h1", "reboot"]}, "there is no button for 'exec'"),
        ({}, "there is no button for None"),
        ({"command": "cut", "words": ["--name=other"]}, "'--name=other' is no name, address or number"),
        ({"command": "cut", "words": ["h1; reboot"]}, "'h1; reboot' is no name, address or number"),
        ({"command": "cut", "words": [7]}, "'7' is no name, address or number"),
        ({"command": "cut", "words": "h1"}, "the words of a command are a list of two at most"),
        ({"command": "mtu", "words": ["h1", "1400", "x"]}, "the words of a command are a list of two at most"),
        (["cut"], "ask with an object of JSON"),
    ],
)
async def test_what_no_button_asks_for_is_not_done(client: ClientSession, gate: Gate, body: object, why: str) -> None:
    async with await post(client, gate, "change", body) as answer:
        assert answer.status == 400
        assert why in (await answer.json())["error"]


async def test_a_form_of_another_page_is_no_question(client: ClientSession, gate: Gate) -> None:
    headers = {"Origin": f"http://127.0.0.1:{gate.port}", "Content-Type": "text/plain"}
    async with client.post(path(gate, "change"), data=b'{"command": "heal"}', headers=headers) as answer:
        assert answer.status == 400
    async with client.post(path(gate, "change"), data=b"x" * 100_000, headers=headers) as answer:
        assert answer.status == 413
        assert_it_has_the_headers(answer)


@pytest.mark.parametrize(
    ("width", "taken"),
    [("800", 800), ("1", 200), ("99999", 10_000), ("", 200), ("-5", 200), ("\u0663\u0663\u0663", 200)],
)
async def test_a_drawing_has_a_width_that_can_be(
    client: ClientSession, gate: Gate, asked: Asked, width: str, taken: int
) -> None:
    async with client.get(path(gate, "drawing"), params={"width": width}) as answer:
        assert (answer.status, await answer.text()) == (200, "<svg/>")
    assert asked.questions == [{"ask": "drawing", "width": taken}]


async def test_a_lab_that_is_gone_is_told(client: ClientSession, gate: Gate, asked: Asked) -> None:
    asked.gone = True
    async with client.get(path(gate, "drawing")) as answer:
        assert (answer.status, await answer.json()) == (410, {"error": "the lab demo is gone"})


async def test_a_fault_of_ours_is_told_and_written_without_the_token(
    client: ClientSession, gate: Gate, asked: Asked, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(**_question: Any) -> Mapping[str, Any]:
        raise ValueError("a fault")

    monkeypatch.setattr(Asked, "__call__", lambda _self, **question: fail(**question))
    async with client.get(path(gate, "drawing")) as answer:
        assert answer.status == 500
        assert "failed" in (await answer.json())["error"]
        assert_it_has_the_headers(answer)
    assert "a fault" in caplog.text
    assert gate.token not in caplog.text


async def test_live_figures_come_as_events_until_the_end(
    client: ClientSession, gate: Gate, page: Page, asked: Asked
) -> None:
    async with client.get(path(gate, "live")) as answer:
        assert answer.content_type == "text/event-stream"
        assert_it_has_the_headers(answer)
        first = await asyncio.wait_for(answer.content.readuntil(b"\n\n"), PATIENCE_S)
        assert first.startswith(b"event: look\ndata: ")
        assert json.loads(first.partition(b"data: ")[2]) == {"hosts": [], "drawing": 1}
        await page.looks.end("the lab demo is gone")
        rest = await asyncio.wait_for(answer.content.read(), PATIENCE_S)
        assert rest.endswith(b'event: end\ndata: "the lab demo is gone"\n\n')
    assert {question["ask"] for question in asked.questions} == {"look"}
