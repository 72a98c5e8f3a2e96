"""Who may import whom: the drawing in docs/architecture.md, checked on every import statement, lazy ones too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "flannel_udp"

VALUES = ["errors", "interrupts", "levels", "model", "options"]
SHARED = [*VALUES, "netconf*", "backoff*"]
NO_FIREWALL = ["host", "host.[!f]*", "host.family"]
PLAIN_ROOMS = ("admin", "backend", "cni", "control", "dataplane", "files", "host", "lab", "registry")
ROOMS = [f"{room}*" for room in PLAIN_ROOMS]

# Module (below flannel_udp) → what it may import of ours; the first line that fits counts. * stands for anything.
# Everyone may import the package itself, which holds the version.
RULES: Mapping[str, list[str]] = {
    "errors": [],
    "interrupts": [],
    "levels": [],
    "model": ["errors"],
    "options": ["errors", "model"],
    "netconf*": [*VALUES, "netconf*"],
    "backoff*": ["backoff*"],
    "files*": [*VALUES, "files*"],
    "registry.keys": [*VALUES],
    "registry.urls": [],
    "_fastpath*": ["errors", "model", "_fastpath*"],
    # `registry` alone is the protocol, without any store.
    "control*": [*SHARED, "control*", "registry", "registry.keys"],
    "dataplane*": [*SHARED, "dataplane*", "_fastpath*"],
    "backend*": [*SHARED, "backend*", "dataplane*", *NO_FIREWALL],
    "admin*": [*SHARED, "admin*"],
    **{f"{room}*": [*SHARED, "files*", f"{room}*"] for room in ("cni", "host", "lab", "registry")},
    "view*": [*SHARED, "admin*", "files*", "lab*", "view*"],
    "bench*": [*SHARED, "files*", "lab*", "bench*"],
    "handover*": [*SHARED, *ROOMS, "handover*"],
    "agent*": [*SHARED, *ROOMS, "handover*", "agent*"],
    "doctor*": [*SHARED, *ROOMS, "agent.asking", "doctor*"],
    "cli.parsers": ["errors", "options", "netconf.addresses", "registry.urls", "files.secret"],
    "cli.flags": ["options", "cli.parsers"],
    "cli.arguments": ["errors", "options", "cli.flags", "cli.parsers"],
    "cli*": [*SHARED, *ROOMS, "agent*", "bench*", "doctor*", "view*", "cli*"],
    "__main__": ["cli.main", "interrupts"],
}
# What the command line may import before it knows the command: --help and --version answer at once.
EAGER = ["cli", "cli.*", "backend.table", "bench.names", "errors", "options"]
# Modules of the command line that are themselves imported when they are needed.
LATE = [
    "cli.completion",
    "cli.config_put",
    "cli.lab_plan",
    "cli.lab_rootless",
    "cli.lab_trace",
    "cli.lease_rows",
    "cli.man",
]
# Of the tests and benches, and scapy's licence is the GPL.
NEVER = {"scapy", "pytest", "hypothesis", "tests", "bench", "examples"}


@dataclass(frozen=True)
class Import:
    """One import statement: the module that is meant, and whether it runs as soon as the importer is imported."""

    line: int
    module: str
    eager: bool
    runs: bool = True  # not below `if TYPE_CHECKING`


def sources() -> dict[str, str]:
    """Return the text of every module by its full name; a .pyx and its .pxd are one."""
    found: dict[str, str] = {}
    for folder, package in ((ROOT / PACKAGE, PACKAGE), (ROOT / "_fastpath", f"{PACKAGE}._fastpath")):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".pyx", ".pxd"):
                name = ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
                found[name] = found.get(name, "") + path.read_text()
    return found


def imports(source: str, known: set[str]) -> Iterator[Import]:
    """Yield every import of a module's text. `from package import module` means the module."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        yield from cython_imports(source)
    else:
        yield from python_imports(tree, known, eager=True, runs=True)


def python_imports(tree: ast.AST, known: set[str], *, eager: bool, runs: bool) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, eager, runs) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(node.lineno, full if full in known else base, eager, runs)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from python_imports(node, known, eager=False, runs=False)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from python_imports(node, known, eager=eager and not inside, runs=runs)


def cython_imports(source: str) -> Iterator[Import]:
    for number, line in enumerate(source.splitlines(), start=1):
        found = re.match(r"\s*(?:from|c?import)\s+([\w.]+)", line)
        if found:
            yield Import(number, found[1], eager=True)


def rule_of(module: str) -> list[str] | None:
    """Return what the module may import, None when no rule speaks of it."""
    return next((allowed for pattern, allowed in RULES.items() if fnmatchcase(module, pattern)), None)


def one_of(module: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def on_the_way_to_help(module: str) -> bool:
    """Tell whether it is imported before the command is known."""
    return one_of(module, ["cli", "cli.*"]) and module not in LATE


def faults(name: str, source: str, known: set[str]) -> list[str]:
    """Return one line for every import of a module that breaks a rule."""
    module = name.removeprefix(f"{PACKAGE}.")
    allowed = [] if name == PACKAGE else rule_of(module)
    if allowed is None:
        return [f"{name}: say in RULES what it may import"]
    found = []
    for item in imports(source, known):
        top, _, target = item.module.partition(".")
        if item.module.startswith("."):
            found.append(f"{name}:{item.line}: relative import")
        elif top in NEVER:
            found.append(f"{name}:{item.line}: imports {item.module}")
        elif top == PACKAGE and target:
            if not one_of(target, allowed):
                found.append(f"{name}:{item.line}: imports {item.module}")
            elif on_the_way_to_help(module) and item.eager and (target in LATE or not one_of(target, EAGER)):
                found.append(f"{name}:{item.line}: imports {item.module} before it is needed")
    return found


def circle(texts: Mapping[str, str]) -> list[str] | None:
    """Return modules that import each other in a circle, None when there is none."""
    known = set(texts)
    graph = {
        name: {item.module for item in imports(source, known) if item.runs and item.module in known} - {name}
        for name, source in texts.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


SOURCES = sources()


def test_a_module_imports_only_what_its_room_may() -> None:
    assert [fault for name, source in SOURCES.items() for fault in faults(name, source, set(SOURCES))] == []


def test_no_module_imports_itself_through_others() -> None:
    assert circle({name: text for name, text in SOURCES.items() if "_fastpath" not in name}) is None


def test_every_rule_speaks_of_a_module_that_exists() -> None:
    modules = [name.removeprefix(f"{PACKAGE}.") for name in SOURCES]
    assert [pattern for pattern in RULES if not any(fnmatchcase(module, pattern) for module in modules)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model", "import flannel_udp.netconf.config"),
        ("netconf.config", "from flannel_udp.registry import Registry"),
        ("registry.keys", "from flannel_udp.registry import file"),
        ("backoff.delay", "from flannel_udp.control import retry"),
        ("control.retry", "from flannel_udp.files.atomic import replace_file"),
        ("control.lease", "from flannel_udp.registry.etcd.registry import EtcdRegistry"),
        ("control.lease", "from flannel_udp import dataplane"),
        ("host.netlink", "def late():\n    from flannel_udp.control import lease"),
        ("lab.lab", "async def late():\n    from flannel_udp.agent.agent import run"),
        ("lab.lab", "class Lab:\n    from flannel_udp.host import netlink"),
        ("admin.show", "if TYPE_CHECKING:\n    from flannel_udp.control.lease import LeaseKeeper"),
        ("admin.show", "try:\n    from . import client\nexcept ImportError:\n    pass"),
        ("backend.udp", "from flannel_udp.host.firewall.keeper import Firewall"),
        ("control.peers", "from flannel_udp.backend.table import BACKENDS"),
        ("agent.agent", "from flannel_udp.cli.main import main"),
        ("cli.main", "from flannel_udp.agent.agent import run"),
        ("cli.commands", "import flannel_udp.registry.open"),
        ("cli.main", "from flannel_udp.cli import config_put"),
        ("backend.routes", "from flannel_udp.host.firewall import rules"),
        ("backend.routes", "from flannel_udp.control import peers"),
        ("doctor.kernel", "from flannel_udp.agent import agent"),
        ("dataplane.reference", "def oracle():\n    from scapy.all import IP"),
        ("_fastpath.engine", "cdef class Engine:\n    pass\nfrom flannel_udp.dataplane cimport tunnel"),
        ("_fastpath.engine", "cdef void f():\n    import flannel_udp.agent.agent"),
        ("new_room.thing", "import os"),
    ],
)
def test_a_broken_rule_is_found(module: str, source: str) -> None:
    assert len(faults(f"{PACKAGE}.{module}", source, set(SOURCES))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("control.lease", "from flannel_udp.registry import Registry, keys"),
        ("host.upkeep", "from flannel_udp.backoff.said_once import SaidOnce"),
        ("cli.main", "def run():\n    from flannel_udp.agent.agent import run"),
        ("cli.commands", "if TYPE_CHECKING:\n    from flannel_udp.registry import Registry"),
        ("backend.routes", "from flannel_udp.host import netlink, rtnetlink"),
        ("agent.view", "from flannel_udp import __version__\nimport asyncio"),
    ],
)
def test_what_is_allowed_is_not_reported(module: str, source: str) -> None:
    assert faults(f"{PACKAGE}.{module}", source, set(SOURCES)) == []


def test_a_circle_is_found_also_through_a_function() -> None:
    circular = {"flannel_udp.a": "import flannel_udp.b", "flannel_udp.b": "def f():\n    from flannel_udp import a"}
    assert circle(circular) is not None
    assert circle({"flannel_udp.a": "import flannel_udp.b", "flannel_udp.b": "import os"}) is None
