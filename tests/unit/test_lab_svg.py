"""A lab as SVG: whole XML, everybody in it, nothing outside the picture, faults also in words."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from flannel_udp.lab.svg import draw_svg
from flannel_udp.lab.tunnel import Tunnel
from tests.support.lab_status import status

SVG = "{http://www.w3.org/2000/svg}"


def drawn(hosts: int, pods: int, faults: dict[str, list[str]]) -> ET.Element:
    text = draw_svg(
        status(hosts, pods),
        underlay="192.0.2.0/24",
        overlay="10.244.0.0/16, backend udp",
        tunnels={4: Tunnel("udp", "flannel0", 8285)},
        faults=faults,
    )
    return ET.fromstring(text)  # noqa: S314 - our own


def texts(picture: ET.Element) -> list[str]:
    return [text.text or "" for text in picture.iter(f"{SVG}text")]


@pytest.mark.parametrize(("hosts", "pods"), [(1, 0), (2, 2), (5, 1), (12, 4)])
def test_everybody_is_in_the_picture_and_nothing_outside(hosts: int, pods: int) -> None:
    picture = drawn(hosts, pods, {})
    width, height = int(picture.attrib["width"]), int(picture.attrib["height"])
    for box in picture.iter(f"{SVG}rect"):
        assert int(box.attrib["x"]) >= 0
        assert int(box.attrib["x"]) + int(box.attrib["width"]) <= width
        assert int(box.attrib["y"]) + int(box.attrib["height"]) <= height
    said = texts(picture)
    for host in status(hosts, pods)["hosts"]:
        assert host["name"] in said
        assert f"eth0  {host['underlay']}" in said
        assert f"flannel0  {host['subnet'].replace('/24', '/32')}" in said
        assert all(f"{pod['name']}  {pod['ip']}" in said for pod in host["pods"])


def test_faults_are_red_where_they_are_and_told_in_words() -> None:
    picture = drawn(
        2, 1, {"h2": ["the link h2 is <cut>"], "h1/p1": ["the link h1/p1 is cut"], "net": ["etcd does not run"]}
    )
    red = [text.text for text in picture.iter(f"{SVG}text") if text.get("class") == "f"]
    assert sorted(filter(None, red)) == ["etcd does not run", "the link h1/p1 is cut", "the link h2 is <cut>"]
    assert picture.findtext(f"{SVG}desc") == "the link h2 is <cut>; the link h1/p1 is cut; etcd does not run"
    assert len([group for group in picture.iter(f"{SVG}g") if group.get("class") == "f"]) == 4


def test_a_picture_for_who_cannot_see_it_has_a_title_and_what_is_wrong() -> None:
    picture = drawn(3, 1, {})
    assert picture.get("role") == "img"
    assert picture.findtext(f"{SVG}title") == "lab demo: 3 hosts"
    assert picture.findtext(f"{SVG}desc") == "all is as it was built"
