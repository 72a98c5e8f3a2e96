"""What this host asks Alibaba with: keys of the configuration or the environment, else the instance's RAM role.

The SDK can do that too, but its own way to a role has a thread for each that was ever made, asks the metadata service
through a proxy, and looks into files of whoever runs the agent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from alibabacloud_credentials.models import CredentialModel

from flannel_udp.backend.cloud.ali.identity import ROLE, conversation
from flannel_udp.backend.cloud.keys import FLANNEL, Variables, given_keys
from flannel_udp.backend.cloud.provider import CloudError

RENEW_BEFORE_S = 300.0
"""A role's keys last for hours; the next ones are there long before these end."""
POLICY = "see examples/cloud/ali-policy.json"
_VARIABLES = (
    FLANNEL,
    Variables("ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN"),
)


class Credentials:
    """What the SDK asks for keys before each call."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Look where keys are. Raises `CloudError`."""
        given = given_keys(options, _VARIABLES)
        self._model = None if given is None else CredentialModel(*given)
        self._lasts_s: float | None = None  # as time.time() counts; ``None``: for ever
        if self._model is None:
            self._renew()

    def get_credential(self) -> CredentialModel:
        """Return keys that last for another while. Raises `CloudError`."""
        if self._lasts_s is not None and time.time() > self._lasts_s - RENEW_BEFORE_S:
            self._renew()
        return self._model

    def _renew(self) -> None:
        asking = conversation()
        role = asking.find(ROLE)
        if not role:
            raise CloudError(
                f"no credentials for Alibaba Cloud: give the instance a RAM role, {POLICY}; or ACCESS_KEY_ID and "
                "ACCESS_KEY_SECRET"
            )
        try:
            said = json.loads(asking.get(ROLE + role))
            self._lasts_s = datetime.fromisoformat(said["Expiration"]).timestamp()
            self._model = CredentialModel(said["AccessKeyId"], said["AccessKeySecret"], said["SecurityToken"])
        except (ValueError, KeyError, TypeError):
            raise CloudError(f"the metadata service at {asking.url} gives no keys of the RAM role {role}") from None
