"""The session that the documentation shows can be had by everybody: its script runs, and prints what the page has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from flannel_udp.lab import netns
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

ROOT = Path(__file__).parents[2]


def steps(text: str, name: str) -> list[str]:
    """Return what is told and the commands, without what is another one each time: the lab's name, addresses."""
    lines = [line for line in text.splitlines() if line.startswith(("$ ", "# "))]
    return [re.sub(r"10\.244\.\d+\.\d+", "POD", line).replace(name, "LAB") for line in lines]


def test_the_session_is_what_the_page_shows_and_leaves_nothing() -> None:
    name = fresh_name()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", str(ROOT / "examples" / "session.sh"), name],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path, "COLUMNS": "100", "NO_COLOR": "1"},
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-2000:]
    page = (ROOT / "docs" / "session.md").read_text()
    _, block, _ = page.split("```", 2)
    assert steps(done.stdout, name) == steps(block, "session")
    for what in ("0% packet loss", "forwarded", "delivered: ", "100% packet loss", "FAULT ", "--dport 8285"):
        assert what in done.stdout, what
    assert not [each for each in netns.names() if name in each]
