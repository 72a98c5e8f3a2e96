"""The options of ali-vpc in the network configuration: flannel's two keys, and two more, as aws-vpc has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flannel_udp.backend.cloud import options
from flannel_udp.netconf.reader import ObjectReader

_TABLE = re.compile(r"vtb-[0-9a-z]+")
_REGION = re.compile(r"[a-z]{2,}(-[a-z0-9]+)+")


def read_options(reader: ObjectReader) -> Mapping[str, Any]:
    """Return those that are there: RouteTableID as a list. Faults go to `reader`."""
    return options.read_options(reader, table=_TABLE, table_like="vtb-...", region=_REGION, region_like="cn-hangzhou")
