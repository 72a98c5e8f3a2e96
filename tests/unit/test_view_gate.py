"""Who may ask the page's server."""

from __future__ import annotations

import pytest

from flannel_udp.view.gate import HEADERS, Gate

GATE = Gate(8000, "secret")
HERE = "127.0.0.1:8000"


@pytest.mark.parametrize(
    ("method", "path", "host", "origin"),
    [
        ("GET", "/secret/", HERE, None),
        ("GET", "/secret/live", "localhost:8000", None),
        ("GET", "/secret/main.js", HERE, f"http://{HERE}"),
        ("POST", "/secret/change", HERE, f"http://{HERE}"),
        ("POST", "/secret/change", "localhost:8000", "http://localhost:8000"),
    ],
)
def test_who_has_the_token_and_comes_from_our_page_may_ask(
    method: str, path: str, host: str, origin: str | None
) -> None:
    assert GATE.refusal(method, path, host, origin) is None


@pytest.mark.parametrize(
    ("method", "path", "host", "origin", "why"),
    [
        ("GET", "/", HERE, None, "the token in the address is wrong"),
        ("GET", "/secreT/", HERE, None, "the token in the address is wrong"),
        ("GET", "/x/secret/", HERE, None, "the token in the address is wrong"),
        ("OPTIONS", "*", HERE, None, "the token in the address is wrong"),
        ("CONNECT", "", HERE, None, "the token in the address is wrong"),
        ("GET", "/s\u00e9cret/", HERE, None, "the token in the address is wrong"),
        ("GET", "/secret/", "lab.example:8000", None, "asked for by another name"),
        ("GET", "/secret/", "127.0.0.1:8001", None, "asked for by another name"),
        ("GET", "/secret/", None, None, "asked for by another name"),
        ("GET", "/secret/live", HERE, "http://lab.example", "a page of http://lab.example asks"),
        ("POST", "/secret/change", HERE, None, "asked for by the page only"),
        ("POST", "/secret/change", HERE, "null", "a page of null asks"),
        ("POST", "/secret/change", HERE, "http://127.0.0.1:8001", "a page of http://127.0.0.1:8001 asks"),
        ("POST", "/secret/change", HERE, "http://localhost:8000", "a page of http://localhost:8000 asks"),
    ],
)
def test_everybody_else_is_refused_in_a_line(
    method: str, path: str, host: str | None, origin: str | None, why: str
) -> None:
    refusal = GATE.refusal(method, path, host, origin)
    assert refusal is not None
    assert why in refusal
    assert "\n" not in refusal


def test_a_browser_names_no_port_where_it_is_that_of_http() -> None:
    gate = Gate(80, "secret")
    assert gate.refusal("POST", "/secret/change", "127.0.0.1", "http://127.0.0.1") is None
    assert gate.refusal("GET", "/secret/", "lab.example", None) is not None
    assert GATE.refusal("GET", "/secret/", "127.0.0.1", None) is not None


def test_no_two_pages_have_the_same_token() -> None:
    urls = {Gate(8000).url for _ in range(20)}
    assert len(urls) == 20
    assert all(url.startswith("http://127.0.0.1:8000/") and len(url) > 50 for url in urls)


def test_nothing_is_loaded_from_elsewhere_and_no_script_from_the_page_itself() -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
