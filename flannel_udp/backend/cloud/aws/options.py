"""The options of aws-vpc in the network configuration: flannel's RouteTableID, and three of our own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flannel_udp.netconf.reader import ObjectReader

OPTION_KEYS = ("RouteTableID", "Region", "AccessKeyID", "AccessKeySecret")

_TABLE = re.compile(r"rtb-[0-9a-f]{8,17}")
_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-[0-9]+")


def read_options(reader: ObjectReader) -> Mapping[str, Any]:
    """Return those that are there: RouteTableID as a list. Faults go to `reader`."""
    options: dict[str, Any] = {}
    tables = reader.value("RouteTableID")
    if tables is not None:
        listed = tables if isinstance(tables, list) else [tables]
        if not listed or not all(isinstance(each, str) and _TABLE.fullmatch(each) for each in listed):
            reader.wrong("RouteTableID", '"rtb-..." or a list of such')
        elif len(set(listed)) < len(listed):
            reader.wrong("RouteTableID", "each table once")
        options["RouteTableID"] = listed
    region = reader.string("Region")
    if region is not None:
        if not _REGION.fullmatch(region):
            reader.wrong("Region", 'a region such as "eu-central-1"')
        options["Region"] = region
    keys = {key: value for key in OPTION_KEYS[2:] if (value := reader.string(key))}
    if len(keys) == 1:
        (given,) = keys
        (other,) = set(OPTION_KEYS[2:]) - {given}
        reader.fault(given, f"Backend.{given} without Backend.{other}: give both, or neither for the instance's role")
    return options | keys
