"""A VPC of AWS for tests: EC2's API by moto's server and the hosts' metadata services, each a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import boto3
from botocore.config import Config

from tests.support.served import Served, at_once, metadata_served, served

REGION = "eu-central-1"
SUBNET = "192.0.2.0/24"
_PATIENT = Config(connect_timeout=60, read_timeout=60, retries={"total_max_attempts": 1})


class Vpc(Served):
    """One VPC of one subnet, with its main route table."""

    def __init__(self, address: str, port: int, inside: Callable[[Callable[[], Any]], Any] = at_once) -> None:
        super().__init__(address, port, inside)
        self._clients: dict[str, Any] = {}
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

        return self.inside(call)

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()

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


@contextmanager
def vpc_on_loopback() -> Iterator[Vpc]:
    """Have a VPC for the block, by a server of its own."""
    with served("ec2_server", "127.0.0.1") as port, closing(Vpc("127.0.0.1", port)) as vpc:
        yield vpc


metadata_on_loopback = partial(metadata_served, "metadata_server")
"""Have a metadata service for the block that knows this of its instance; yields its URL."""
