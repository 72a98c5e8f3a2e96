"""Our example manifest, as its tests and the test server see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

PATH = Path(__file__).parents[2] / "examples" / "kubernetes" / "kube-flannel-udp.yml"
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all(PATH.read_text()))


def find(kind: str) -> dict[str, Any]:
    """Return the one object of a kind."""
    (found,) = [thing for thing in OBJECTS if thing["kind"] == kind]
    return found


RULES: list[dict[str, Any]] = find("ClusterRole")["rules"]
