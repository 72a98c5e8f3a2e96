"""What the browser gets: nothing from elsewhere, what belongs together fits, and everybody can read it."""

from __future__ import annotations

import re
from itertools import product

import pytest

from flannel_udp.view.commands import CHANGING, OF_LESSON
from flannel_udp.view.server import PAGE

HTML = (PAGE / "index.html").read_text()
CSS = (PAGE / "page.css").read_text()
SCRIPTS = {path.name: path.read_text() for path in PAGE.glob("*.js")}
IDS = re.findall(r'\bid="([\w-]+)"', HTML)
SMALLEST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3


def colours(scheme: str) -> dict[str, tuple[int, ...]]:
    """Return the colours of a scheme, light or dark, by their names, as red, green and blue."""
    light, dark = CSS.split("prefers-color-scheme: dark", 1)
    found = re.findall(r"--([\w-]+): #([0-9a-f]{6})", light if scheme == "light" else dark)
    return {name: tuple(bytes.fromhex(value)) for name, value in found}


def luminance(colour: tuple[int, ...]) -> float:
    """Return the relative luminance, as WCAG defines it."""
    parts = [c / 255 for c in colour]
    red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_computed_as_the_rules_say() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((0x77, 0x77, 0x77), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(scheme: str) -> None:
    named = colours(scheme)
    pairs = [*product(("text", "quiet", "accent", "good", "bad"), ("back", "panel")), ("on-accent", "accent")]
    assert [p for p in pairs if contrast(named[p[0]], named[p[1]]) < SMALLEST_CONTRAST] == []
    assert contrast(named["line"], named["back"]) >= 3  # 1.4.11: borders of what is to be used
    used = set(re.findall(r"var\(--([\w-]+)\)", CSS))
    assert used == set(named)


def test_nothing_comes_from_elsewhere_and_no_script_stands_in_the_page() -> None:
    for name, text in {"index.html": HTML, "page.css": CSS, **SCRIPTS}.items():
        assert "//" not in re.sub(r"(?m)//? .*$", "", text.replace("http://www.w3.org/2000/svg", "")), name
    assert re.findall(r"<script[^>]*>[^<]", HTML) == []
    assert re.findall(r'\s(?:style|on\w+)="', HTML) == []
    assert [
        word for text in SCRIPTS.values() for word in ("innerHTML", "eval(", "insertAdjacent") if word in text
    ] == []


def test_all_that_the_page_names_is_there() -> None:
    named = re.findall(r'(?:src|href)="([^"#]+)"', HTML)
    named += [name for text in SCRIPTS.values() for name in re.findall(r'from "\./([^"]+)"', text)]
    assert {name for name in named if not (PAGE / name).is_file()} == set()
    assert set(SCRIPTS) <= set(named)


def test_what_scripts_look_for_is_in_the_page() -> None:
    wanted = {name for text in SCRIPTS.values() for name in re.findall(r'find\("([\w-]+)"\)', text)}
    assert wanted - set(IDS) == set()
    assert len(IDS) == len(set(IDS))


def test_each_button_stands_for_a_command() -> None:
    asked = {words.split()[0] for words in re.findall(r'data-change="([^"]+)"', HTML)}
    assert asked == set(CHANGING)
    assert re.findall(r'data-learn="([^"]+)"', HTML) == list(OF_LESSON)


def test_who_has_a_keyboard_or_a_screen_reader_gets_all_of_it() -> None:
    assert len(re.findall(r"<button type=\"button\"", HTML)) == HTML.count("<button")
    assert set(re.findall(r'<label for="([\w-]+)"', HTML)) >= {
        *re.findall(r"<(?:input|select) id=\"([\w-]+)\"", HTML),
    }
    referred = re.findall(r'aria-labelledby="([\w-]+)"', HTML)
    assert set(referred) <= set(IDS)
    assert len(re.findall(r"<section ", HTML)) == len(re.findall(r"<section [^>]*aria-labelledby", HTML))
    assert HTML.count("<h1") == 1
    assert '<html lang="en">' in HTML
    assert ":focus-visible" in CSS
    assert "prefers-reduced-motion" in CSS
