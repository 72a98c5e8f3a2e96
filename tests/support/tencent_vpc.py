"""A VPC of Tencent Cloud for tests: its API and the hosts' metadata services, each a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tests.support.served import Served, at_once, metadata_served, served
from tests.support.tencent_server import CIDR, REGION

SUBNET = "subnet-00000001"
ROLE = {
    "TmpSecretId": "AKIDrole",
    "TmpSecretKey": "of-the-role",
    "ExpiredTime": 4102444800,
    "Expiration": "2100-01-01T00:00:00Z",
    "Token": "token-of-the-role",
    "Code": "Success",
}
"""What the metadata service says of an instance's role."""
KEYS = {
    "AKIDroot": {"secret": "of-root"},
    ROLE["TmpSecretId"]: {"secret": ROLE["TmpSecretKey"], "token": ROLE["Token"]},
}


class TencentVpc(Served):
    """One VPC of one subnet, with its default route table."""

    def __init__(self, address: str, port: int, inside: Callable[[Callable[[], Any]], Any] = at_once) -> None:
        super().__init__(address, port, inside)
        self.order("/test/keys", KEYS)
        self.vpc = str(self.ask("CreateVpc", CidrBlock=CIDR)["Vpc"]["VpcId"])
        (main,) = self.tables()
        self.main = str(main["RouteTableId"])

    def ask(self, operation: str, **arguments: Any) -> Any:
        """Call the API as an administrator does."""
        answer = self.call("POST", f"/test/ask/{operation}", arguments)
        assert "Error" not in answer, answer
        return answer

    def tables(self) -> Any:
        """Return the VPC's tables, as the API has them."""
        which = [{"Name": "vpc-id", "Values": [self.vpc]}]
        return self.ask("DescribeRouteTables", Filters=which, Limit="100")["RouteTableSet"]

    def add_host(self, address: str) -> dict[str, Any]:
        """Start an instance with that address, and return what its metadata service knows."""
        return {
            "region": REGION,
            "instance": self.ask("RunInstances", PrivateIpAddress=address)["InstanceId"],
            "interfaces": [
                {"mac": "52:54:00:BF:B3:51", "vpc": self.vpc, "subnet": SUBNET, "addresses": [address]},
            ],
        }

    def found(self, table: str | None = None) -> Any:
        """Return a table's routes, as the API has them."""
        (found,) = self.ask("DescribeRouteTables", RouteTableIds=[table or self.main])["RouteTableSet"]
        return found["RouteSet"]

    def routes(self, table: str | None = None) -> dict[str, str]:
        """Return where a table's routes lead that are enabled."""
        return {each["DestinationCidrBlock"]: each["GatewayId"] for each in self.found(table) if each["Enabled"]}

    def lead(self, destination: str, target: str, **more: Any) -> None:
        """Make a route by hand."""
        route = {"DestinationCidrBlock": destination, "GatewayType": "NORMAL_CVM", "GatewayId": target, **more}
        self.ask("CreateRoutes", RouteTableId=self.main, Routes=[route])

    def unlead(self, destination: str) -> None:
        """Delete a destination's routes by hand."""
        gone = [{"RouteId": each} for each in self._ids(destination)]
        self.ask("DeleteRoutes", RouteTableId=self.main, Routes=gone)

    def disable(self, destination: str) -> None:
        """Disable a route by hand."""
        self.ask("DisableRoutes", RouteTableId=self.main, RouteIds=self._ids(destination))

    def _ids(self, destination: str) -> list[int]:
        return [each["RouteId"] for each in self.found() if each["DestinationCidrBlock"] == destination]


@contextmanager
def tencent_on_loopback() -> Iterator[TencentVpc]:
    """Have a VPC for the block, by a server of its own."""
    with served("tencent_server", "127.0.0.1") as port:
        yield TencentVpc("127.0.0.1", port)


tencent_metadata_on_loopback = partial(metadata_served, "tencent_metadata_server")
"""Have a metadata service for the block that knows this of its instance; yields its URL."""
