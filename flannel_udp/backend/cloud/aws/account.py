"""What this host sees and does in EC2, with boto3. Blocks, see `Account`."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from flannel_udp.backend.cloud.aws.faults import GONE, explain
from flannel_udp.backend.cloud.aws.identity import Identity, metadata_url
from flannel_udp.backend.cloud.provider import CloudError, CloudRoute, CloudTable, Leads
from flannel_udp.model import Address, Prefix

LIMITS = (50, 500, 1000)
"""Routes a table: AWS's default until June 2025, its default since then, and the most that it ever grants."""

logging.getLogger("botocore").setLevel(logging.INFO)
"""Below that it writes whole requests, and with them session tokens."""

_MANNERS = Config(
    connect_timeout=3,
    read_timeout=10,
    # "standard" waits longer each time, by chance, where it is throttled or finds a fault of the server's.
    retries={"mode": "standard", "total_max_attempts": 4},
    max_pool_connections=1,
)


class AwsAccount:
    """See `Account`."""

    limits = LIMITS

    def __init__(self, identity: Identity, options: Mapping[str, Any]) -> None:
        """Nothing is asked yet but, where the instance's role is used, who we are."""
        self._identity = identity
        self._table_ids: Sequence[str] = options.get("RouteTableID", ())
        self.here = f"{identity.instance}, {identity.interface} in {identity.region}"
        session = boto3.session.Session(
            aws_access_key_id=options.get("AccessKeyID"),
            aws_secret_access_key=options.get("AccessKeySecret"),
            region_name=identity.region,
        )
        _keep_from_proxies(metadata_url())
        with self._asking("the credentials"):
            self._ec2 = session.client("ec2", config=_MANNERS)

    def tables(self) -> Sequence[CloudTable]:
        """See `Account.tables`: those that the configuration names, else our subnet's, else the VPC's main one."""
        if self._table_ids:
            found = self._describe(RouteTableIds=list(self._table_ids))
        else:
            found = self._describe(Filters=[_filter("association.subnet-id", self._identity.subnet)]) or self._describe(
                Filters=[_filter("vpc-id", self._identity.vpc), _filter("association.main", "true")]
            )
            if not found:
                raise CloudError(f"{self._identity.vpc} has no main route table, and {self._identity.subnet} none")
            if len(found) > 1:
                names = " and ".join(sorted(table["RouteTableId"] for table in found))
                raise CloudError(f"{names} are both of {self._identity.subnet}: name one by Backend.RouteTableID")
        for table in found:
            if table["VpcId"] != self._identity.vpc:
                raise CloudError(
                    f"{table['RouteTableId']} is a table of {table['VpcId']}, and this host is in "
                    f"{self._identity.vpc}: correct Backend.RouteTableID"
                )
        return [self._read(table) for table in found]

    def _describe(self, **which: Any) -> list[dict[str, Any]]:
        with self._asking("DescribeRouteTables"):
            pages = self._ec2.get_paginator("describe_route_tables").paginate(**which)
            return [table for page in pages for table in page["RouteTables"]]

    def _read(self, table: Mapping[str, Any]) -> CloudTable:
        routes = [route for route in table["Routes"] if "DestinationCidrBlock" in route]
        return CloudTable(
            table["RouteTableId"],
            tuple(self._read_route(route) for route in routes),
            sum(route.get("Origin") != "EnableVgwRoutePropagation" for route in routes),
        )

    def _read_route(self, route: Mapping[str, Any]) -> CloudRoute:
        interface = route.get("NetworkInterfaceId")
        if route.get("Origin") != "CreateRoute" or not (interface or route.get("InstanceId")):
            leads = Leads.ELSEWHERE
        elif interface == self._identity.interface:
            leads = Leads.HERE
        elif interface in self._identity.interfaces or route.get("InstanceId") == self._identity.instance:
            leads = Leads.HERE_BEFORE
        else:
            leads = Leads.TO_HOST
        destination = IPv4Network(route["DestinationCidrBlock"])
        return CloudRoute(destination, interface or _target(route), leads, route.get("State") == "blackhole")

    def create(self, table: str, destination: Prefix) -> None:
        """See `Account.create`."""
        with self._asking("CreateRoute", table):
            self._ec2.create_route(**self._route(table, destination), NetworkInterfaceId=self._identity.interface)

    def replace(self, table: str, destination: Prefix) -> None:
        """See `Account.replace`: there is a route at every moment."""
        with self._asking("ReplaceRoute", table):
            self._ec2.replace_route(**self._route(table, destination), NetworkInterfaceId=self._identity.interface)

    def remove(self, table: str, destination: Prefix) -> None:
        """See `Account.remove`."""
        with self._asking("DeleteRoute", table):
            try:
                self._ec2.delete_route(**self._route(table, destination))
            except ClientError as error:
                if error.response["Error"]["Code"] != GONE:
                    raise

    def _route(self, table: str, destination: Prefix) -> dict[str, str]:
        return {"RouteTableId": table, "DestinationCidrBlock": str(destination)}

    def addresses_of(self, targets: Collection[str]) -> Mapping[str, frozenset[Address]]:
        """See `Account.addresses_of`: an interface's private addresses, and the public ones that lead to them."""
        with self._asking("DescribeNetworkInterfaces"):
            pages = self._ec2.get_paginator("describe_network_interfaces").paginate(
                Filters=[_filter("network-interface-id", *sorted(targets))]
            )
            return {
                interface["NetworkInterfaceId"]: frozenset(_addresses(interface))
                for page in pages
                for interface in page["NetworkInterfaces"]
            }

    def permit(self) -> bool:
        """See `Account.permit`: the source/destination check of our interface has to be off."""
        interface = self._identity.interface
        with self._asking("DescribeNetworkInterfaceAttribute", interface):
            found = self._ec2.describe_network_interface_attribute(
                NetworkInterfaceId=interface, Attribute="sourceDestCheck"
            )
        if not found["SourceDestCheck"]["Value"]:
            return False
        with self._asking("ModifyNetworkInterfaceAttribute", interface):
            self._ec2.modify_network_interface_attribute(NetworkInterfaceId=interface, SourceDestCheck={"Value": False})
        return True

    def close(self) -> None:
        """See `Account.close`."""
        self._ec2.close()

    @contextmanager
    def _asking(self, operation: str, what: str = "") -> Iterator[None]:
        """Raise what goes wrong as `CloudError`."""
        try:
            yield
        except (BotoCoreError, ClientError, ResponseParserError) as error:
            raise explain(error, operation, what or self._identity.region) from error


def _keep_from_proxies(url: str) -> None:
    """Have the SDK ask there for the role's keys by no proxy, which would give those of its own host.

    It goes by the environment alone.
    """
    proxies, service = getproxies(), urlsplit(url).netloc
    if "http" in proxies and not proxy_bypass(service):
        os.environ["no_proxy"] = ",".join(filter(None, (proxies.get("no"), service)))


def _filter(name: str, *values: str) -> dict[str, Any]:
    return {"Name": name, "Values": list(values)}


def _target(route: Mapping[str, Any]) -> str:
    """Return the id of whatever a route leads to: there is one of many keys, and new ones come."""
    others = ("InstanceOwnerId", "DestinationPrefixListId")
    return next((str(value) for key, value in route.items() if key.endswith(("Id", "Arn")) and key not in others), "?")


def _addresses(interface: Mapping[str, Any]) -> Iterator[IPv4Address]:
    for each in interface["PrivateIpAddresses"]:
        yield IPv4Address(each["PrivateIpAddress"])
        if public := each.get("Association", {}).get("PublicIp"):
            yield IPv4Address(public)
