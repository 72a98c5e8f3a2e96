"""docs/troubleshooting.md has every text that says why an agent is not ready or degraded, or warns in its log.

The texts are taken from the code itself: what is longest in each between what is filled in has to be in there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

from flannel_udp.dataplane.drops import DROP_REASONS
from flannel_udp.model import DEGRADATIONS, KERNEL_DROPS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "flannel_udp"
TEXT = " ".join((ROOT / "docs" / "troubleshooting.md").read_text().replace("`", "").split())

TELLS = re.compile(r"\bDegradation\(|\bStanding\(|\.hinder\(|_state\.enter\(")
"""What a module calls that says why an agent is not ready, or degraded."""
WRITES = (
    *(
        "backend/lease_end.py",
        "backend/routes.py",
        "dataplane/kernel_faults.py",
        "host/repair.py",
        "host/subnet_file.py",
    ),
    *("files/claim.py",),
)
"""Modules that write the words for those."""
NO_CONDITION = ("doctor", "model.py")

NAMES_A_TASK = ("create_task", "retry", "attempt", "open_rtnetlink", "refused")
"""Calls whose texts begin an error's line, or name what runs."""
LOUD = ("warning", "error")
"""Methods of loggers."""
SENTENCE = 3
"""Words: what is shorter is a name, or a clause of something longer."""


def texts_that_stand_in_the_way() -> Iterator[tuple[str, str]]:
    """Yield a module and a text of it, for every sentence in modules that tell of conditions."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        source = path.read_text()
        if name.startswith(NO_CONDITION) or not (TELLS.search(source) or name in WRITES):
            continue
        for node in sentences(ast.parse(source)):
            yield name, node


def sentences(tree: ast.Module) -> Iterator[str]:
    """Yield what is fixed in each text but docstrings, arguments of loggers, and of errors of wrong usage."""
    for node in walk(tree):
        if isinstance(node, ast.JoinedStr | ast.Constant) and (text := longest(node)):
            yield text


def walk(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        if isinstance(child, ast.Call) and ast.unparse(child.func).startswith("logger."):
            continue
        if isinstance(child, ast.Call) and ast.unparse(child.func).endswith(NAMES_A_TASK):
            continue
        yield child
        if not isinstance(child, ast.JoinedStr):
            yield from walk(child)


def longest(node: ast.AST) -> str | None:
    """Return the longest part of a text that is the same whatever is filled in; ``None`` if that is no sentence."""
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) for part in node.values if isinstance(part, ast.Constant)]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        parts = re.split(r"%(?:\.\d+)?[a-z0-9]+", node.value)
    else:
        return None
    parts = [" ".join(part.replace("`", "").split()) for part in parts]
    text = max(parts, key=len, default="").strip(" :;,(\"'")
    return text if len(text.split()) >= SENTENCE else None


def is_loud(node: ast.AST) -> TypeGuard[ast.Call]:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOUD):
        return False
    return isinstance(node.func.value, ast.Name) and node.func.value.id == "logger"


def warnings() -> Iterator[tuple[str, str]]:
    """Yield a module and a text of it, for every warning and error that it logs."""
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text()
        if not any(f"logger.{method}(" in source for method in LOUD):
            continue
        for node in ast.walk(ast.parse(source)):
            if is_loud(node) and (text := longest(node.args[0])):
                yield path.relative_to(PACKAGE).as_posix(), text


@pytest.mark.parametrize("reason", DROP_REASONS)
def test_every_reason_to_drop_a_packet_is_there(reason: str) -> None:
    assert re.search(rf"\| [^|]*\b{reason}\b", TEXT)


@pytest.mark.parametrize("place", KERNEL_DROPS)
def test_every_place_where_the_kernel_drops_is_there(place: str) -> None:
    assert re.search(rf"\| [^|]*\b{place}\b", TEXT)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_every_kind_of_degradation_is_there(kind: str) -> None:
    assert f"({kind})" in TEXT


def test_every_text_about_what_is_in_the_way_is_there() -> None:
    found = set(texts_that_stand_in_the_way())
    assert len(found) > 40
    assert sorted((module, text) for module, text in found if text not in TEXT) == []


def test_every_warning_of_the_log_is_there() -> None:
    found = set(warnings())
    assert len(found) > 30
    assert sorted((module, text) for module, text in found if text not in TEXT) == []
