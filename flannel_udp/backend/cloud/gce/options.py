"""The options of gce in the network configuration. flannel has none; these two are our own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flannel_udp.netconf.reader import ObjectReader

OPTION_KEYS = ("Project", "VpcNetwork")

_PROJECT = re.compile(r"([a-z][a-z0-9.-]*:)?[a-z][a-z0-9-]{4,28}[a-z0-9]|[0-9]+")
_NETWORK = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


def read_options(reader: ObjectReader) -> Mapping[str, Any]:
    """Return those that are there. Faults go to `reader`."""
    options: dict[str, Any] = {}
    for key, pattern, example in (
        ("Project", _PROJECT, 'the id or number of a project, such as "my-host-project"'),
        ("VpcNetwork", _NETWORK, 'the name of a VPC network, such as "default"'),
    ):
        value = reader.string(key)
        if value is not None:
            if not pattern.fullmatch(value):
                reader.wrong(key, example)
            options[key] = value
    return options
