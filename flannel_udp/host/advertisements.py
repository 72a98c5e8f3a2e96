"""Router advertisements on a device of ours: nobody's are taken (accept_ra 0), as flanneld's takes none.

What a peer, or a pod behind it, says there would become this host's default route, or an address (RFC 4861 section
6.3.4, RFC 4862 section 5.5.3). A program that may not write the setting, in a container, say, leaves it as it is.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_SETTINGS = Path("/proc/sys/net/ipv6/conf")


def may_refuse(name: str) -> bool:
    """Tell whether we may change what the device takes."""
    return os.access(_setting(name), os.W_OK)


def refuse(name: str) -> None:
    """Have the device take none, as far as we may say so."""
    with suppress(OSError):
        _setting(name).write_text("0\n")


def _setting(name: str) -> Path:
    return _SETTINGS / name / "accept_ra"
