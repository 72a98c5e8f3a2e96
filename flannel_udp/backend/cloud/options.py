"""Options that providers with route tables and access keys have alike: flannel's, and Region, which is our own."""

from __future__ import annotations

from collections.abc import Mapping
from re import Pattern
from typing import Any

from flannel_udp.netconf.reader import ObjectReader

OPTION_KEYS = ("RouteTableID", "Region", "AccessKeyID", "AccessKeySecret")


def read_options(
    reader: ObjectReader, *, table: Pattern[str], table_like: str, region: Pattern[str], region_like: str
) -> Mapping[str, Any]:
    """Return those that are there: RouteTableID as a list. Faults go to `reader`.

    `table` and `region` are what a provider's names of these match, the others examples of such for people.
    """
    options: dict[str, Any] = {}
    tables = reader.value("RouteTableID")
    if tables is not None:
        listed = tables if isinstance(tables, list) else [tables]
        if not listed or not all(isinstance(each, str) and table.fullmatch(each) for each in listed):
            reader.wrong("RouteTableID", f'"{table_like}" or a list of such')
        elif len(set(listed)) < len(listed):
            reader.wrong("RouteTableID", "each table once")
        options["RouteTableID"] = listed
    at = reader.string("Region")
    if at is not None:
        if not region.fullmatch(at):
            reader.wrong("Region", f'a region such as "{region_like}"')
        options["Region"] = at
    keys = {key: value for key in OPTION_KEYS[2:] if (value := reader.string(key))}
    if len(keys) == 1:
        (given,) = keys
        (other,) = set(OPTION_KEYS[2:]) - {given}
        reader.fault(given, f"Backend.{given} without Backend.{other}: give both, or neither for the instance's role")
    return options | keys
