"""The options of tencent-vpc in the network configuration: flannel's two of an access key, and two of our own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flannel_udp.backend.cloud import options
from flannel_udp.netconf.reader import ObjectReader

_TABLE = re.compile(r"rtb-[0-9a-z]{8,17}")
_REGION = re.compile(r"[a-z]{2,}(-[a-z0-9]+)+")


def read_options(reader: ObjectReader) -> Mapping[str, Any]:
    """Return those that are there: RouteTableID as a list. Faults go to `reader`."""
    return options.read_options(reader, table=_TABLE, table_like="rtb-...", region=_REGION, region_like="ap-guangzhou")
