"""What this host sees and does in a VPC of Alibaba Cloud, with the provider's SDK. Blocks, see `Account`."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Network
from typing import Any

from alibabacloud_tea_openapi.utils_models import Config
from alibabacloud_vpc20160428 import models
from alibabacloud_vpc20160428.client import Client
from darabonba.core import DaraCore
from darabonba.exceptions import ResponseException, UnretryableException
from darabonba.policy.retry import RetryOptions

from flannel_udp.backend.cloud.ali.credentials import Credentials
from flannel_udp.backend.cloud.ali.faults import BUSY, GONE, THROTTLED, explain
from flannel_udp.backend.cloud.ali.identity import Identity
from flannel_udp.backend.cloud.provider import CloudError, CloudRoute, CloudTable, Leads
from flannel_udp.model import Address, Prefix

LIMITS = (48, 200, None)
"""Custom entries a table: Alibaba's former default, today's, and nobody says how far that can be raised."""
MARK = "flannel-udp"
"""The name of entries that we make."""
ENDPOINT_VARIABLE = "FLANNEL_UDP_ALI_ENDPOINT"
"""Where the VPC's API is, for hosts that reach only a private one. The SDK has no variable for it."""
SETTLE_S, SETTLE_EVERY_S = 30.0, 1.0
"""How long an entry of ours may be under way, and how often that is looked at."""
CONNECT_MS, READ_MS = 3_000, 10_000
TRIES, RETRY_MS, RETRY_MAX_MS = 4, 500, 8_000
"""What is tried again after twice so long, doubling, less up to half of it by chance."""

_UNDER_WAY = ("Pending", "Creating", "Modifying")
_LEAVING = "Deleting"
_HOSTS = ("Instance", "NetworkInterface")
_TABLES_A_PAGE, _ENTRIES_A_PAGE = 50, 100
for _name in ("darabonba-core", "alibabacloud-tea", "credentials"):
    # They write to stderr past all settings, and on demand whole requests, with session tokens.
    _logger = logging.getLogger(_name)
    _logger.handlers.clear()
    _logger.setLevel(logging.INFO)


class AliAccount:
    """See `Account`."""

    limits = LIMITS

    def __init__(self, identity: Identity, options: Mapping[str, Any]) -> None:
        """Nothing is asked yet but, where the instance's role is used, for its keys."""
        self._identity = identity
        self._table_ids: Sequence[str] = options.get("RouteTableID", ())
        self.here = f"{identity.instance}, {identity.interface} in {identity.region}"
        self._entry_ids: dict[tuple[str, Prefix], str] = {}  # of the last look
        config = Config(
            credential=Credentials(options),
            region_id=identity.region,
            connect_timeout=CONNECT_MS,
            read_timeout=READ_MS,
            max_idle_conns=1,
            retry_options=_retries(),
        )
        endpoint = os.environ.get(ENDPOINT_VARIABLE)
        if endpoint:
            config.protocol, config.endpoint = _split(endpoint)
        self._api = endpoint or f"the VPC API of {identity.region}"
        self._vpc = Client(config)

    # What there is

    def tables(self) -> Sequence[CloudTable]:
        """See `Account.tables`: those that the configuration names, else our vSwitch's, else the VPC's system one.

        What we have made is waited for: an entry is there some seconds before it leads anywhere.
        """
        ids = [self._named(table) for table in self._table_ids] or [self._own_table()]
        self._entry_ids.clear()
        return [self._read(table) for table in ids]

    def _named(self, table: str) -> str:
        found = self._describe(table, route_table_id=table)
        if not found:
            raise CloudError(f"there is no such route table as {table}: correct Backend.RouteTableID")
        vpc = found[0].vpc_id
        if vpc != self._identity.vpc:
            raise CloudError(
                f"{table} is a table of {vpc}, and this host is in {self._identity.vpc}: correct Backend.RouteTableID"
            )
        return table

    def _own_table(self) -> str:
        vpc, vswitch = self._identity.vpc, self._identity.vswitch
        tables = [table for table in self._describe(vpc, vpc_id=vpc) if table.associate_type != "Gateway"]
        bound = [table for table in tables if table.v_switch_ids and vswitch in (table.v_switch_ids.v_switch_id or ())]
        ids = sorted(table.route_table_id for table in bound or tables if bound or table.route_table_type == "System")
        if not ids:
            raise CloudError(f"{vpc} has no system route table, and {vswitch} none")
        if len(ids) > 1:
            raise CloudError(f"{' and '.join(ids)} are both of {vswitch}: name one by Backend.RouteTableID")
        return str(ids[0])

    def _describe(self, what: str, **which: str) -> list[Any]:
        found: list[Any] = []
        while True:
            request = models.DescribeRouteTableListRequest(
                region_id=self._identity.region,
                page_number=len(found) // _TABLES_A_PAGE + 1,
                page_size=_TABLES_A_PAGE,
                **which,
            )
            with self._asking("DescribeRouteTableList", what):
                page = self._vpc.describe_route_table_list(request).body.router_table_list
            tables = (page and page.router_table_list_type) or []
            found += tables
            if len(tables) < _TABLES_A_PAGE:
                return found

    def _read(self, table: str) -> CloudTable:
        until_s = time.monotonic() + SETTLE_S
        while True:
            entries = self._entries(table)
            ours = [entry for entry in entries if entry.route_entry_name == MARK and self._is_here(entry)]
            under_way = [entry for entry in ours if entry.status in _UNDER_WAY]
            if not under_way:
                break
            if time.monotonic() > until_s:
                entry = under_way[0]
                raise CloudError(
                    f"our route to {entry.destination_cidr_block} in {table} is {entry.status} for {SETTLE_S:g} s now"
                )
            time.sleep(SETTLE_EVERY_S)
        routes = {}
        for entry in sorted(entries, key=lambda entry: bool(entry.type == "Custom")):  # none learnt hides one
            destination = _destination(entry)
            if destination is not None and entry.status != _LEAVING:
                routes[destination] = self._read_entry(destination, entry)
                self._entry_ids[table, destination] = entry.route_entry_id
        return CloudTable(table, tuple(routes.values()), sum(entry.type == "Custom" for entry in entries))

    def _entries(self, table: str) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            request = models.DescribeRouteEntryListRequest(
                region_id=self._identity.region, route_table_id=table, max_result=_ENTRIES_A_PAGE, next_token=token
            )
            with self._asking("DescribeRouteEntryList", table):
                body = self._vpc.describe_route_entry_list(request).body
            found += (body.route_entrys and body.route_entrys.route_entry) or []
            token = body.next_token
            if not token:
                return found

    def _read_entry(self, destination: Prefix, entry: Any) -> CloudRoute:
        hops = _hops(entry)
        target = " and ".join(str(hop.next_hop_id) for hop in hops) or "?"
        if entry.type != "Custom" or entry.service_type or len(hops) != 1 or hops[0].next_hop_type not in _HOSTS:
            leads = Leads.ELSEWHERE
        elif self._is_here(entry):
            leads = Leads.HERE
        elif target == self._identity.instance or target in self._identity.interfaces:
            leads = Leads.HERE_BEFORE
        else:
            leads = Leads.TO_HOST
        return CloudRoute(destination, target, leads, marked=entry.route_entry_name == MARK)

    def _is_here(self, entry: Any) -> bool:
        """Tell whether it leads to our interface: the first one is led to by the instance's name as well."""
        ours = {self._identity.interface, *((self._identity.instance,) if self._identity.primary else ())}
        return [hop.next_hop_id in ours for hop in _hops(entry)] == [True]

    # What is done

    def create(self, table: str, destination: Prefix) -> None:
        """See `Account.create`."""
        kind, hop = self._hop()
        request = models.CreateRouteEntryRequest(
            region_id=self._identity.region,
            route_table_id=table,
            destination_cidr_block=str(destination),
            next_hop_type=kind,
            next_hop_id=hop,
            route_entry_name=MARK,
        )
        with self._asking("CreateRouteEntry", table):
            self._vpc.create_route_entry(request)

    def replace(self, table: str, destination: Prefix) -> None:
        """See `Account.replace`: there is a route at every moment."""
        kind, hop = self._hop()
        request = models.ModifyRouteEntryRequest(
            region_id=self._identity.region,
            route_entry_id=self._entry_ids[table, destination],
            new_next_hop_type=kind,
            new_next_hop_id=hop,
            route_entry_name=MARK,
        )
        with self._asking("ModifyRouteEntry", table):
            self._vpc.modify_route_entry(request)

    def remove(self, table: str, destination: Prefix) -> None:
        """See `Account.remove`: the entry that was read, and no other one that may have come in its place."""
        request = models.DeleteRouteEntryRequest(
            region_id=self._identity.region, route_entry_id=self._entry_ids[table, destination]
        )
        with self._asking("DeleteRouteEntry", table):
            try:
                self._vpc.delete_route_entry(request)
            except ResponseException as error:
                if error.code not in GONE:
                    raise

    def _hop(self) -> tuple[str, str]:
        """Return kind and name of what leads to our interface, as flannel has it where that is the first one."""
        if self._identity.primary:
            return "Instance", self._identity.instance
        return "NetworkInterface", self._identity.interface

    def addresses_of(self, targets: Collection[str]) -> Mapping[str, frozenset[Address]]:  # noqa: ARG002 - the protocol's
        """See `Account.addresses_of`: not asked. What bears no mark is a person's, or flannel's own, and stays."""
        return {}

    def permit(self) -> bool:
        """See `Account.permit`: Alibaba lets them pass, unless somebody has switched a check on."""
        return False

    def close(self) -> None:
        """See `Account.close`. The SDK keeps connections for whoever asks next, and has no way to end them."""
        for session in list(DaraCore._sessions.values()):
            session.close()

    @contextmanager
    def _asking(self, operation: str, what: str) -> Iterator[None]:
        """Raise what goes wrong as `CloudError`."""
        try:
            yield
        except ResponseException as error:
            raise explain(error, operation, what, self._api) from error
        except UnretryableException as error:
            raise explain(error.inner_exception, operation, what, self._api) from error


def _split(endpoint: str) -> tuple[str, str]:
    """Return scheme and host of what the variable says. Raises `CloudError`."""
    scheme, _, host = (endpoint if "://" in endpoint else f"https://{endpoint}").partition("://")
    host = host.rstrip("/")
    if scheme not in ("http", "https") or not re.fullmatch(r"[\w.-]+(:[0-9]+)?", host):
        raise CloudError(f"{ENDPOINT_VARIABLE} is {endpoint!r}: expected a host name, or http://HOST:PORT")
    return scheme, host


def _retries() -> RetryOptions:
    often = {
        "exception": ["RetryError", "ServerException", "ThrottlingException"],  # the first one: there was no answer
        "errorCode": [*THROTTLED, *BUSY, "SignatureNonceUsed"],
        "maxAttempts": TRIES,
        "backoff": {"policy": "ExponentialWithEqualJitter", "period": RETRY_MS, "cap": RETRY_MAX_MS},
    }
    return RetryOptions({"retryCondition": [often]})


def _hops(entry: Any) -> Sequence[Any]:
    return (entry.next_hops and entry.next_hops.next_hop) or ()


def _destination(entry: Any) -> IPv4Network | None:
    """Return where it leads from; ``None`` for IPv6, and for a list of prefixes, which has a name."""
    try:
        return IPv4Network(entry.destination_cidr_block)
    except ValueError:
        return None
