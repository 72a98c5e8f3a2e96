"""With which keys this host asks Tencent Cloud: those of the configuration, of the environment, or of its CAM role.

The SDK can find a role's keys too, but asks the metadata service without a time-out, by whatever proxy the environment
names, and keeps to itself what went wrong.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from flannel_udp.backend.cloud.keys import FLANNEL, Keys, Variables, given_keys
from flannel_udp.backend.cloud.metadata import Metadata
from flannel_udp.backend.cloud.provider import CloudError
from flannel_udp.backend.cloud.tencent.identity import read

RENEW_S = 300.0
"""How old a role's keys may be, since the role may be another one by then; and how long before their end they are no
longer taken."""
_VARIABLES = (FLANNEL, Variables("TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY"))
_ROLES = "cam/security-credentials/"
_LACKING = (
    "no credentials for Tencent Cloud: give the instance a CAM role, see examples/cloud/tencent-policy.json; or "
    "ACCESS_KEY_ID and ACCESS_KEY_SECRET"
)

FindKeys = Callable[[], Keys]
"""Returns those that are valid now. Raises `CloudError`."""


def find_credentials(options: Mapping[str, Any], metadata: Metadata) -> FindKeys:
    """Return where to find the keys: nothing is asked yet. Raises `CloudError`."""
    given = given_keys(options, _VARIABLES)
    return _Role(metadata) if given is None else lambda: given


class _Role:
    """The instance's CAM role: its keys are valid for hours."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._keys: Keys | None = None
        self._until_s = 0.0

    def __call__(self) -> Keys:
        if self._keys is None or time.monotonic() > self._until_s:
            self._keys, ends_s = self._ask()
            self._until_s = time.monotonic() + min(RENEW_S, ends_s - time.time() - RENEW_S)
        return self._keys

    def _ask(self) -> tuple[Keys, float]:
        try:
            (role,) = read(self._metadata, _ROLES).split()
            answer = json.loads(read(self._metadata, _ROLES + role))
            if answer["Code"] != "Success":
                raise CloudError(f"the metadata service has no keys of the role {role}: {answer['Code']}")
            return Keys(answer["TmpSecretId"], answer["TmpSecretKey"], answer["Token"]), float(answer["ExpiredTime"])
        except (CloudError, ValueError, KeyError, TypeError) as error:
            why = f" ({error})" if isinstance(error, CloudError) else ""
            raise CloudError(_LACKING + why) from None
