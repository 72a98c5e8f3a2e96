"""Access keys that somebody gave the agent, in the configuration or its environment, for providers that have such."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flannel_udp.backend.cloud.provider import CloudError


class Keys(NamedTuple):
    """What a request is signed with; `token` belongs to keys that end."""

    id: str
    secret: str
    token: str | None = None


class Variables(NamedTuple):
    """The names of the environment's variables for these."""

    id: str
    secret: str
    token: str | None = None


FLANNEL = Variables("ACCESS_KEY_ID", "ACCESS_KEY_SECRET")
"""Those that flannel reads, whatever the provider."""


def given_keys(options: Mapping[str, Any], variables: Sequence[Variables]) -> Keys | None:
    """Return those of the configuration, else the first ones of the environment, if any.

    Raises `CloudError` for one that lacks its other half.
    """
    if "AccessKeyID" in options:
        return Keys(options["AccessKeyID"], options["AccessKeySecret"])
    for names in variables:
        key_id, secret = _variable(names.id), _variable(names.secret)
        if key_id and secret:
            return Keys(key_id, secret, (_variable(names.token) if names.token else "") or None)
        if key_id or secret:
            raise CloudError(
                f"{names.id} and {names.secret} belong together: set both, or neither for the instance's role"
            )
    return None


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()
