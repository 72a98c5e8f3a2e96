"""ECS's instance metadata service for tests, in its hardened mode, from Alibaba Cloud's description of it.

    python -m tests.support.ali_metadata_server ADDRESS PORT INSTANCE     writes its port (given 0, one that is free)

INSTANCE is JSON: ``region``, ``instance``, ``vpc``, ``cidr`` and ``interfaces``, a list of ``mac``, ``id``,
``vswitch``, ``vswitch_cidr`` and ``addresses``, the first one first; with ``credentials`` the instance has the RAM role
"hosts". Who asks without a token is refused, everybody where it ``refuses``.
"""

from __future__ import annotations

import json
from typing import Any

from tests.support.metadata_server import Handler, serve

_DATA = "/latest/meta-data/"
_MACS = _DATA + "network/interfaces/macs/"
_ROLES = _DATA + "ram/security-credentials/"


def documents(instance: Any) -> dict[str, str]:
    """Return every path's text."""
    found = {
        _DATA + "region-id": instance["region"],
        _DATA + "instance-id": instance["instance"],
        _DATA + "mac": instance["interfaces"][0]["mac"],
        _MACS: "\n".join(f"{each['mac']}/" for each in instance["interfaces"]),
    }
    for each in instance["interfaces"]:
        of = f"{_MACS}{each['mac']}/"
        found |= {
            of + "network-interface-id": each["id"],
            **({of + "private-ipv4s": json.dumps(each["addresses"])} if each["addresses"] else {}),
            of + "vswitch-id": each["vswitch"],
            of + "vswitch-cidr-block": each["vswitch_cidr"],
            of + "vpc-id": instance["vpc"],
            of + "vpc-cidr-block": instance["cidr"],
        }
    if "credentials" in instance:
        found |= {_ROLES: "hosts", _ROLES + "hosts": json.dumps(instance["credentials"])}
    return found


class AliHandler(Handler):
    """Answers one request."""

    header = "X-aliyun-ecs-metadata-token"
    status_without_token = 403


if __name__ == "__main__":
    serve(AliHandler, documents)
