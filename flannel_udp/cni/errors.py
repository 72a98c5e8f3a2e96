"""What goes wrong in CNI's terms: an error has a code, and leaves as JSON on standard output (CNI spec, section 2)."""

from __future__ import annotations

from typing import Any

from flannel_udp.errors import FlannelError

INCOMPATIBLE_VERSION = 1
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
"""STATUS: the plugin cannot serve ADD."""
DELEGATE_FAILED = 100
"""Ours (the spec leaves 100 and more to plugins): the delegate is missing, or ended without saying what went wrong."""
INTERNAL = 999


class CniError(FlannelError):
    """An error for the runtime: `code` as above, `msg` in one line, `details` for whoever looks closer."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details

    def document(self, cni_version: str) -> dict[str, Any]:
        """Return the JSON that the runtime reads."""
        error = {"cniVersion": cni_version, "code": self.code, "msg": self.msg}
        return {**error, "details": self.details} if self.details else error
