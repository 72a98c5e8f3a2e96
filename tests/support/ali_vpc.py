"""A VPC of Alibaba Cloud for tests: its API by a server of our own, and hosts' metadata services."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

from tests.support.served import Served, at_once, metadata_served, served

REGION, VPC = "cn-hangzhou", "vpc-bp1test"
RANGE, VSWITCH = "192.0.2.0/24", "vsw-bp1test"
MAIN, OTHER_TABLE, FAR_TABLE = "vtb-bp1main", "vtb-bp1other", "vtb-bp1far"
KEY = {"key": "LTAIroot", "secret": "of-root"}
ROLE = {
    "Code": "Success",
    "AccessKeyId": "STS.hosts",
    "AccessKeySecret": "of-the-role",
    "SecurityToken": "token-of-a-role",
    "Expiration": "2099-01-01T00:00:00Z",
}
_USERS: Mapping[str, Mapping[str, Any]] = {
    KEY["key"]: {"secret": KEY["secret"]},
    ROLE["AccessKeyId"]: {"secret": ROLE["AccessKeySecret"], "token": ROLE["SecurityToken"]},
}
_TABLES: Mapping[str, Mapping[str, Any]] = {
    MAIN: {"vpc": VPC, "type": "System", "vswitches": [VSWITCH]},
    OTHER_TABLE: {"vpc": VPC, "type": "Custom", "vswitches": []},
    FAR_TABLE: {"vpc": "vpc-bp1far", "type": "System", "vswitches": []},
}
VARIABLES = (
    "ACCESS_KEY_ID", "ACCESS_KEY_SECRET",
    "ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN",
)  # fmt: skip


class AliVpc(Served):
    """One VPC of one vSwitch, with its system table, by an administrator's hand."""

    def __init__(self, address: str, port: int, inside: Callable[[Callable[[], Any]], Any] = at_once) -> None:
        super().__init__(address, port, inside)
        self._numbers = count(1)
        self.make_world()

    def make_world(self, users: Mapping[str, Any] = _USERS, tables: Mapping[str, Any] = _TABLES) -> None:
        """Have these users and tables, and of routes only those that every table has."""
        self.order("/test/world", {"users": users, "tables": tables})
        for table in tables:
            self.lead(RANGE, VSWITCH, table, kind="local", type="System")

    def settle_after(self, reads: int) -> None:
        """Have changes be under way until an entry was read so often."""
        self.order("/test/settle", reads)

    def add_host(self, address: str) -> dict[str, Any]:
        """Start an instance with that address, and return what its metadata service knows."""
        number = next(self._numbers)
        interface = {
            "mac": f"00:16:3e:00:00:{number:02x}",
            "id": f"eni-bp1test{number:03}",
            "vswitch": VSWITCH,
            "vswitch_cidr": RANGE,
            "addresses": [address],
        }
        instance = f"i-bp1test{number:03}"
        return {"region": REGION, "instance": instance, "vpc": VPC, "cidr": RANGE, "interfaces": [interface]}

    def entries(self, table: str = MAIN) -> list[dict[str, Any]]:
        """Return a table's entries, but for the VPC's own."""
        return [
            entry
            for entry in self.call("GET", "/test/entries")
            if entry["RouteTableId"] == table and entry["Type"] != "System"
        ]

    def routes(self, table: str = MAIN) -> dict[str, str]:
        """Return where these lead."""
        return {
            entry["DestinationCidrBlock"]: entry["NextHops"]["NextHop"][0]["NextHopId"]
            for entry in self.entries(table)
            if entry["Status"] == "Available"
        }

    def lead(self, destination: str, target: str, table: str = MAIN, *, kind: str = "Instance", **more: Any) -> None:
        """Make a route by hand; ``name``, ``type``, ``status`` and ``service`` are what the API calls so."""
        entry = {"table": table, "destination": destination, "hops": [[kind, target]], **more}
        self.order("/test/entry", entry)

    def unlead(self, destination: str, table: str = MAIN) -> None:
        """Delete a route by hand."""
        self.order("/test/gone", {"DestinationCidrBlock": destination, "RouteTableId": table})


@contextmanager
def vpc_on_loopback() -> Iterator[AliVpc]:
    """Have a VPC for the block, by a server of its own."""
    with served("ali_server", "127.0.0.1") as port:
        yield AliVpc("127.0.0.1", port)


metadata_on_loopback = partial(metadata_served, "ali_metadata_server")
"""Have a metadata service for the block that knows this of its instance; yields its URL."""
