"""What this host asks Alibaba with: keys of the configuration or the environment, else the instance's RAM role.

The SDK can do that too, but its own way to a role has a thread for each that was ever made, asks the metadata service
through a proxy, and looks into files of whoever runs the agent.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from alibabacloud_credentials.models import CredentialModel

from flannel_udp.backend.cloud.ali.identity import ROLE, conversation
from flannel_udp.backend.cloud.provider import CloudError

RENEW_BEFORE_S = 300.0
"""A role's keys last for hours; the next ones are there long before these end."""
POLICY = "see examples/cloud/ali-policy.json"


class _Variables(NamedTuple):
    key: str
    secret: str
    token: str | None = None


_VARIABLES = (
    _Variables("ACCESS_KEY_ID", "ACCESS_KEY_SECRET"),  # flannel's
    _Variables("ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN"),
)


class Credentials:
    """What the SDK asks for keys before each call."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Look where keys are. Raises `CloudError`."""
        self._model = _given(options)
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


def _given(options: Mapping[str, Any]) -> CredentialModel | None:
    if "AccessKeyID" in options:
        return CredentialModel(options["AccessKeyID"], options["AccessKeySecret"])
    for names in _VARIABLES:
        key, secret = os.environ.get(names.key), os.environ.get(names.secret)
        if key and secret:
            return CredentialModel(key, secret, os.environ.get(names.token) if names.token else None)
        if key or secret:
            raise CloudError(f"{names.key} and {names.secret} belong together: set both, or neither for the RAM role")
    return None
