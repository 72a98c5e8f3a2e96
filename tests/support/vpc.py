"""A VPC for tests: EC2's API by moto's server and the hosts' metadata services, each a process of its own."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config

from flannel_udp.model import Ends, Interface
from tests.support import ec2_server, metadata_server

REGION = "eu-central-1"
SUBNET = "192.0.2.0/24"
_PATIENT = Config(connect_timeout=60, read_timeout=60, retries={"total_max_attempts": 1})
T = TypeVar("T")


def at_once(call: Callable[[], T]) -> T:
    """Return what it returns: the server is on this machine's own loopback."""
    return call()


class Vpc:
    """One VPC of one subnet, with its main route table; `inside` runs what speaks to the API, where that can be."""

    def __init__(self, address: str, port: int, inside: Callable[[Callable[[], Any]], Any] = at_once) -> None:
        self._address, self._port, self._inside = address, port, inside
        self._clients: dict[str, Any] = {}
        self.url = f"http://{address}:{port}"
        self.vpc = self.ask("create_vpc", CidrBlock=SUBNET)["Vpc"]["VpcId"]
        self.subnet = self.ask("create_subnet", VpcId=self.vpc, CidrBlock=SUBNET)["Subnet"]["SubnetId"]
        self.main = self.ask("describe_route_tables", Filters=[{"Name": "vpc-id", "Values": [self.vpc]}])
        self.main = self.main["RouteTables"][0]["RouteTableId"]

    def ask(self, operation: str, *, service: str = "ec2", **arguments: Any) -> Any:
        """Call the API as an administrator does."""

        def call() -> Any:
            if service not in self._clients:
                session = boto3.session.Session("root", "root", region_name=REGION)
                self._clients[service] = session.client(service, endpoint_url=self.url, config=_PATIENT)
            return getattr(self._clients[service], operation)(**arguments)

        return self._inside(call)

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()

    def order(self, what: str, body: object = None) -> Any:
        """Tell the server what goes wrong from now on, or ask it what it was asked: see `ec2_server`."""

        def call() -> Any:
            connection = http.client.HTTPConnection(self._address, self._port, timeout=30)
            try:
                connection.request("GET" if body is None else "POST", what, json.dumps(body).encode())
                return json.load(connection.getresponse())
            finally:
                connection.close()

        return self._inside(call)

    def fail(self, *orders: Mapping[str, Any]) -> None:
        """Have calls fail: these orders, and no former ones."""
        self.order("/test/faults", list(orders))

    def asked(self) -> list[str]:
        """Return the actions that were asked for so far."""
        actions: list[str] = self.order("/test/asked")
        return actions

    def add_host(self, address: str) -> dict[str, Any]:
        """Start an instance with that address, and return what its metadata service knows."""
        made = self.ask(
            "run_instances", ImageId="ami-12c6146b", MinCount=1, MaxCount=1, SubnetId=self.subnet,
            PrivateIpAddress=address,
        )["Instances"][0]  # fmt: skip
        interface = made["NetworkInterfaces"][0]
        return {
            "region": REGION,
            "instance": made["InstanceId"],
            "vpc": self.vpc,
            "cidrs": [SUBNET],
            "interfaces": [
                {
                    "mac": interface["MacAddress"],
                    "id": interface["NetworkInterfaceId"],
                    "subnet": self.subnet,
                    "addresses": [address],
                }
            ],
        }

    def routes(self, table: str | None = None) -> dict[str, str]:
        """Return where a table's routes lead, but for the VPC's own."""
        found = self.ask("describe_route_tables", RouteTableIds=[table or self.main])["RouteTables"][0]["Routes"]
        return {
            route["DestinationCidrBlock"]: route.get("NetworkInterfaceId") or route["GatewayId"]
            for route in found
            if route.get("GatewayId") != "local"
        }

    def lead(self, destination: str, interface: str, table: str | None = None) -> None:
        """Make a route by hand."""
        self.ask(
            "create_route", RouteTableId=table or self.main, DestinationCidrBlock=destination,
            NetworkInterfaceId=interface,
        )  # fmt: skip

    def unlead(self, destination: str, table: str | None = None) -> None:
        """Delete a route by hand."""
        self.ask("delete_route", RouteTableId=table or self.main, DestinationCidrBlock=destination)

    def may_forward(self, interface: str) -> bool:
        """Tell whether the source/destination check is off."""
        found = self.ask(
            "describe_network_interface_attribute", NetworkInterfaceId=interface, Attribute="sourceDestCheck"
        )
        return not found["SourceDestCheck"]["Value"]


def interface_of(host: Mapping[str, Any]) -> str:
    """Return the network interface of what `Vpc.add_host` returned."""
    return str(host["interfaces"][0]["id"])


def external(address: str = "192.0.2.1") -> Interface:
    """Return the external interface of a host with that address."""
    return Interface("eth0", 2, 9001, Ends(IPv4Address(address), IPv4Address(address)))


@contextmanager
def served(module: Any, *arguments: str, before: Sequence[str] = ()) -> Iterator[int]:
    """Run one of the servers for the block; yields its port."""
    command = [*before, sys.executable, "-P", str(Path(module.__file__)), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline()
            assert port, f"{command} ended before it listened"
            yield int(port)
        finally:
            process.kill()


@contextmanager
def vpc_on_loopback() -> Iterator[Vpc]:
    """Have a VPC for the block, by a server of its own."""
    with served(ec2_server, "127.0.0.1") as port, closing(Vpc("127.0.0.1", port)) as vpc:
        yield vpc


@contextmanager
def metadata_on_loopback(instance: Mapping[str, Any]) -> Iterator[str]:
    """Have a metadata service for the block; yields its URL."""
    with served(metadata_server, "127.0.0.1", "0", json.dumps(instance)) as port:
        yield f"http://127.0.0.1:{port}"
