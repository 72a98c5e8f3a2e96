"""What mkdocs does to the pages on their way to the site; in a clone the same files have links into the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
REPOSITORY = DOCS.parent
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: Any, **_: object) -> Any:
    """Put the decisions into the navigation, in their order."""
    config.nav.append({"Decisions": sorted(str(page.relative_to(DOCS)) for page in DOCS.glob("decisions/*.md"))})
    return config


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Let what leads out of docs/ be text: the code is not part of the site."""
    folder = (DOCS / page.file.src_uri).parent

    def leave_if_inside(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        leads_out = "://" not in target and not (folder / target).resolve().is_relative_to(DOCS)
        if not leads_out:
            return link[0]
        path = (folder / target).resolve().relative_to(REPOSITORY)
        return text if str(path) in text else f"{text} (`{path}` in the repository)"

    return _LINK.sub(leave_if_inside, markdown)
