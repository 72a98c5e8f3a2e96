"""What this host sees and does in a VPC of Tencent Cloud, with its SDK. Blocks, see `Account`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from typing import Any
from urllib.parse import urlsplit

from tencentcloud.common.credential import Credential
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile
from tencentcloud.vpc.v20170312 import models
from tencentcloud.vpc.v20170312.vpc_client import VpcClient

from flannel_udp.backend.cloud.provider import CloudError, CloudRoute, CloudTable, Leads
from flannel_udp.backend.cloud.tencent.credentials import FindKeys
from flannel_udp.backend.cloud.tencent.faults import GoneError, explain
from flannel_udp.backend.cloud.tencent.identity import Identity
from flannel_udp.backend.cloud.tencent.retrying import Retryer
from flannel_udp.model import Address, Prefix

LIMITS = (50, None)
"""Routes of users that a table may have; who asks for more may get them."""
API = "https://vpc.tencentcloudapi.com"
_ENDPOINT_VARIABLE = "FLANNEL_UDP_TENCENT_ENDPOINT"
_PAGE = 100
"""The most that the API gives at once."""
_TIMEOUT_S = 10
_HOST = "NORMAL_CVM"
MARK = "flannel-udp"
"""The description of our routes: no table tells whether the host that a route leads to is still there."""

logging.getLogger("tencentcloud_sdk_common").setLevel(logging.INFO)
"""Below that it writes whole requests, and with them tokens."""


class TencentAccount:
    """See `Account`."""

    limits = LIMITS

    def __init__(self, identity: Identity, keys: FindKeys, tables: Sequence[str]) -> None:
        """Nothing is asked yet. `tables`: those that the configuration names. Raises `CloudError`."""
        self._identity = identity
        self._keys = keys
        self._table_ids = tables
        self._found: dict[tuple[str, Prefix], Any] = {}  # as the API has them, of the last look
        self.here = f"{identity.instance}, {identity.address} of {identity.vpc} in {identity.region}"
        self._url = os.environ.get(_ENDPOINT_VARIABLE) or API
        parts = urlsplit(self._url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise CloudError(f"{_ENDPOINT_VARIABLE} is {self._url!r}: expected a URL such as {API}")
        http = HttpProfile(protocol=parts.scheme, endpoint=parts.netloc, reqTimeout=_TIMEOUT_S)
        profile = ClientProfile(httpProfile=http, language="en-US", retryer=Retryer())
        self._vpc = VpcClient(None, identity.region, profile)

    def vpc_cidrs(self) -> Sequence[IPv4Network]:
        """Return the ranges that the VPC routes itself, those for containers too. Raises `CloudError`."""
        found = self._ask("DescribeVpcs", self._identity.vpc, VpcIds=[self._identity.vpc]).VpcSet
        return [
            IPv4Network(text)
            for vpc in found or ()
            for text in (vpc.CidrBlock, *(each.CidrBlock for each in vpc.AssistantCidrSet or ()))
            if text
        ]

    def tables(self) -> Sequence[CloudTable]:
        """See `Account.tables`: those that the configuration names, else our subnet's, else the VPC's default one."""
        found = self._named() if self._table_ids else self._of_subnet()
        self._found.clear()
        return [self._read(table) for table in found]

    def _named(self) -> list[Any]:
        found, vpc = self._describe(RouteTableIds=list(self._table_ids)), self._identity.vpc
        if lacking := set(self._table_ids) - {table.RouteTableId for table in found}:
            names = ", ".join(sorted(lacking))
            raise CloudError(f"there is no such route table: {names}: correct Backend.RouteTableID")
        for table in found:
            if table.VpcId != vpc:
                fault = f"{table.RouteTableId} is a table of {table.VpcId}, and this host is in {vpc}"
                raise CloudError(f"{fault}: correct Backend.RouteTableID")
        return found

    def _of_subnet(self) -> list[Any]:
        vpc, subnet = self._identity.vpc, self._identity.subnet
        every = self._describe(Filters=[{"Name": "vpc-id", "Values": [vpc]}])
        found = [table for table in every if subnet in {each.SubnetId for each in table.AssociationSet or ()}]
        found = found or [table for table in every if table.Main]
        if not found:
            raise CloudError(f"{vpc} has no default route table, and {subnet} none")
        if len(found) > 1:
            names = " and ".join(sorted(table.RouteTableId for table in found))
            raise CloudError(f"{names} are both of {subnet}: name one by Backend.RouteTableID")
        return found

    def _describe(self, **which: Any) -> list[Any]:
        found: list[Any] = []
        what = ", ".join(self._table_ids) or self._identity.vpc
        while True:
            page = self._ask("DescribeRouteTables", what, Offset=str(len(found)), Limit=str(_PAGE), **which)
            found += page.RouteTableSet or ()
            if not page.RouteTableSet or len(found) >= page.TotalCount:
                return found

    def _read(self, table: Any) -> CloudTable:
        by_destination: dict[IPv4Network, list[Any]] = {}
        every = table.RouteSet or ()
        for route in every:
            if (destination := _destination(route)) is not None:
                by_destination.setdefault(destination, []).append(route)
        n_counted = sum(route.RouteType == "USER" for route in every)
        routes = (self._read_routes(table.RouteTableId, *item) for item in by_destination.items())
        return CloudTable(table.RouteTableId, tuple(route for route in routes if route is not None), n_counted)

    def _read_routes(self, table: str, destination: IPv4Network, routes: Sequence[Any]) -> CloudRoute | None:
        """Return what a table does with that destination, ``None``: nothing, its routes being disabled.

        Several at once (ECMP) are nobody's of ours, though one of them may lead here.
        """
        enabled = [route for route in routes if route.Enabled is not False]
        if len(enabled) > 1:
            return CloudRoute(destination, " and ".join(sorted(map(_target, enabled))), Leads.ELSEWHERE)
        for route in enabled or routes:
            leads = self._leads(route)
            if enabled or leads is Leads.HERE:
                self._found[table, destination] = route
                marked = route.RouteDescription == MARK
                return CloudRoute(destination, _target(route), leads, blackhole=not enabled, marked=marked)
        return None

    def _leads(self, route: Any) -> Leads:
        if route.RouteType != "USER" or route.GatewayType != _HOST:
            return Leads.ELSEWHERE
        if route.GatewayId == str(self._identity.address):
            return Leads.HERE
        return Leads.HERE_BEFORE if route.GatewayId in map(str, self._identity.addresses) else Leads.TO_HOST

    def create(self, table: str, destination: Prefix) -> None:
        """See `Account.create`."""
        self._ask("CreateRoutes", table, RouteTableId=table, Routes=[self._route(destination)])

    def replace(self, table: str, destination: Prefix) -> None:
        """See `Account.replace`: there is a route at every moment, unless it was disabled."""
        former = self._found.get((table, destination))
        if former is None or former.Enabled is False:
            self.remove(table, destination)
            self.create(table, destination)
        else:
            route = {"RouteId": former.RouteId, **self._route(destination)}
            self._ask("ReplaceRoutes", table, RouteTableId=table, Routes=[route])

    def remove(self, table: str, destination: Prefix) -> None:
        """See `Account.remove`: that of the last look."""
        former = self._found.get((table, destination))
        if former is None:
            return
        with suppress(GoneError):
            self._ask("DeleteRoutes", table, RouteTableId=table, Routes=[{"RouteId": former.RouteId}])
        del self._found[table, destination]

    def _route(self, destination: Prefix) -> dict[str, Any]:
        return {
            "DestinationCidrBlock": str(destination),
            "GatewayType": _HOST,
            "GatewayId": str(self._identity.address),
            "RouteDescription": MARK,
            "Enabled": True,
        }

    def addresses_of(self, targets: Collection[str]) -> Mapping[str, frozenset[Address]]:
        """See `Account.addresses_of`: a route leads to a host's private address itself, so nobody is asked."""
        return {target: frozenset({IPv4Address(target)}) for target in targets}

    def permit(self) -> bool:
        """See `Account.permit`: Tencent Cloud has no check of sources and destinations to be switched off."""
        return False

    def close(self) -> None:
        """See `Account.close`: the SDK has no way to; connections end with it."""

    def _ask(self, operation: str, what: str, **parameters: Any) -> Any:
        """Return the API's answer. Raises `CloudError`."""
        request = getattr(models, f"{operation}Request")()
        request.from_json_string(json.dumps(parameters))
        keys = self._keys()
        try:
            self._vpc.credential = Credential(*keys)
            answer = getattr(self._vpc, operation)(request)
        except TencentCloudSDKException as error:
            raise explain(error, operation, what, self._url) from error
        if answer.RequestId is None:  # the API's every answer has one: this is none of the SDK's content types
            raise explain(TencentCloudSDKException("KeyError", "RequestId"), operation, what, self._url)
        return answer


def _destination(route: Any) -> IPv4Network | None:
    try:
        return IPv4Network(route.DestinationCidrBlock)
    except ValueError:  # an IPv6 route's is empty, and that of the VPC itself may be a word
        return None


def _target(route: Any) -> str:
    """Return a host's address, or the id of what else a route leads to: not all kinds have one."""
    return route.GatewayId or route.GatewayType or "?"
