"""The VPC API of Tencent Cloud for tests, a process of its own, from its API reference (version 2017-03-12).

    python -m tests.support.tencent_server ADDRESS     writes the port that it listens on

What an administrator does is asked for below /test/ask/, without a signature: the API's own calls, and RunInstances of
an address. POST /test/keys has whose requests are taken: ``{ID: {"secret": ..., "token": ..., "allowed": [ACTION]}}``,
where who has no ``allowed`` may do all. POST /test/clock is by how many seconds the server's clock differs from ours,
POST /test/clear the table whose routes go, the provider's own too.

It has one region, and one VPC from the start. What the reference does not say is as simple as it may be.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import time
import uuid
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network
from itertools import count
from typing import Any

from tests.support.cloud_server import CloudServer, Refusal, Request, run

REGION = "ap-guangzhou"
CIDR = "192.0.2.0/24"
VERSION = "2017-03-12"
LIMIT = 50
PAGE_MAX = 100
SKEW_MAX_S = 300
SAME_KIND_MAX = 8
"""Routes to CVMs that one destination may have at once (ECMP)."""


def hmac_sha256(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def signature(secret: str, request: Request, signed: str, timestamp: int, scope: str) -> str:
    """Return what the reference calls signature version 3, TC3-HMAC-SHA256."""
    headers = "".join(f"{name}:{request.headers[name].strip().lower()}\n" for name in signed.split(";"))
    payload = hashlib.sha256(request.body).hexdigest()
    canonical = "\n".join((request.method, request.path, "", headers, signed, payload))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = f"TC3-HMAC-SHA256\n{timestamp}\n{scope}\n{digest}"
    key = f"TC3{secret}".encode()
    for part in scope.split("/"):
        key = hmac_sha256(key, part)
    return hmac_sha256(key, to_sign).hex()


class TencentServer(CloudServer):
    """See the module."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._keys: dict[str, dict[str, Any]] = {}
        self._clock_off_s = 0.0
        self._numbers = count(1)
        self._instances: dict[str, str] = {}
        self._vpcs: dict[str, dict[str, Any]] = {}
        self._tables: dict[str, dict[str, Any]] = {}
        self._calls = {
            "DescribeVpcs": self._describe_vpcs,
            "DescribeRouteTables": self._describe_route_tables,
            "CreateRoutes": self._create_routes,
            "ReplaceRoutes": self._replace_routes,
            "DeleteRoutes": self._delete_routes,
            "CreateVpc": self._create_vpc,
            "CreateAssistantCidr": self._create_assistant_cidr,
            "CreateRouteTable": self._create_route_table,
            "ReplaceRouteTableAssociation": self._replace_route_table_association,
            "DisableRoutes": self._disable_routes,
            "RunInstances": self._run_instances,
        }

    # Who asks

    def obey(self, path: str, body: bytes) -> Any:
        """See `CloudServer.obey`."""
        if path.startswith("/test/ask/"):
            try:
                return self._calls[path.rpartition("/")[2]](json.loads(body))
            except Refusal as refusal:
                return self.refusal(refusal)["Response"]
        if path == "/test/keys":
            self._keys = json.loads(body)
        elif path == "/test/clock":
            self._clock_off_s = json.loads(body)
        elif path == "/test/clear":
            self._table(json.loads(body))["RouteSet"] = []
        return super().obey(path, body)

    def action(self, request: Request) -> str:
        """See `CloudServer.action`."""
        return request.headers.get("x-tc-action", "?")

    def answer(self, request: Request) -> Any:
        """See `CloudServer.answer`."""
        if request.method != "POST" or request.path != "/":
            raise no("UnsupportedProtocol")
        key = self._authenticate(request)
        action = self.action(request)
        if request.headers.get("x-tc-version") != VERSION:
            raise no("NoSuchVersion")
        if request.headers.get("x-tc-region") != REGION:
            raise no("UnsupportedRegion")
        if action not in self._calls:
            raise no("InvalidAction")
        if action not in key.get("allowed", self._calls):
            raise no("UnauthorizedOperation", f"you are not authorized to perform operation (vpc:{action})")
        return {"Response": {**self._calls[action](request.json()), "RequestId": str(uuid.uuid4())}}

    def _authenticate(self, request: Request) -> dict[str, Any]:
        kind, _, rest = request.headers.get("authorization", "").partition(" ")
        parts = dict(part.split("=", 1) for part in rest.split(", ") if "=" in part)
        if kind != "TC3-HMAC-SHA256" or parts.keys() != {"Credential", "SignedHeaders", "Signature"}:
            raise no("AuthFailure.InvalidAuthorization")
        key_id, _, scope = parts["Credential"].partition("/")
        timestamp, signed = int(request.headers["x-tc-timestamp"]), parts["SignedHeaders"]
        date = f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d}"
        if scope != f"{date}/vpc/tc3_request" or not {"content-type", "host"} <= set(signed.split(";")):
            raise no("AuthFailure.InvalidAuthorization")
        if abs(time.time() + self._clock_off_s - timestamp) > SKEW_MAX_S:
            raise no("AuthFailure.SignatureExpire", "signature expired")
        if key_id not in self._keys:
            raise no("AuthFailure.SecretIdNotFound")
        key = self._keys[key_id]
        if request.headers.get("x-tc-token") != key.get("token"):
            raise no("AuthFailure.TokenFailure")
        if not hmac.compare_digest(parts["Signature"], signature(key["secret"], request, signed, timestamp, scope)):
            raise no("AuthFailure.SignatureFailure")
        return key

    def refusal(self, refusal: Refusal) -> Any:
        """See `CloudServer.refusal`."""
        error = {"Code": refusal.code, "Message": refusal.message}
        return {"Response": {"Error": error, "RequestId": str(uuid.uuid4())}}

    # VPCs and tables

    def _id(self, kind: str) -> str:
        return f"{kind}-{next(self._numbers):08d}"

    def _create_vpc(self, asked: Any) -> Any:
        vpc = {"VpcId": self._id("vpc"), "CidrBlock": asked["CidrBlock"], "AssistantCidrSet": []}
        self._vpcs[vpc["VpcId"]] = vpc
        self._create_route_table({"VpcId": vpc["VpcId"], "Main": True})
        return {"Vpc": vpc}

    def _create_assistant_cidr(self, asked: Any) -> Any:
        made = [{"VpcId": asked["VpcId"], "CidrBlock": text, "AssistantType": 0} for text in asked["CidrBlocks"]]
        self._vpcs[asked["VpcId"]]["AssistantCidrSet"] += made
        return {"AssistantCidrSet": made}

    def _describe_vpcs(self, asked: Any) -> Any:
        unknown = set(asked["VpcIds"]) - self._vpcs.keys()
        if unknown:
            raise no("InvalidVpcId.NotFound", f"{unknown} not found")
        found = [self._vpcs[each] for each in asked["VpcIds"]]
        return {"TotalCount": len(found), "VpcSet": found}

    def _create_route_table(self, asked: Any) -> Any:
        table = {
            "VpcId": asked["VpcId"],
            "RouteTableId": self._id("rtb"),
            "RouteTableName": asked.get("RouteTableName", "default"),
            "AssociationSet": [],
            "RouteSet": [],
            "Main": asked.get("Main", False),
            "CreatedTime": "2026-01-01 00:00:00",
        }
        self._tables[table["RouteTableId"]] = table
        return {"RouteTable": table}

    def _replace_route_table_association(self, asked: Any) -> Any:
        for table in self._tables.values():
            table["AssociationSet"] = [at for at in table["AssociationSet"] if at["SubnetId"] != asked["SubnetId"]]
        if asked["RouteTableId"]:  # without: as if the subnet had only the default one
            self._table(asked["RouteTableId"])["AssociationSet"].append(asked)
        return {}

    def _describe_route_tables(self, asked: Any) -> Any:
        filters = {each["Name"]: each["Values"] for each in asked.get("Filters", ())}
        if "RouteTableIds" in asked:
            if filters:
                raise no("InvalidParameter.Coexist")
            found = [self._table(each) for each in asked["RouteTableIds"]]
        else:
            found = [table for table in self._tables.values() if table["VpcId"] in filters["vpc-id"]]
        start, limit = int(asked.get("Offset", "0")), int(asked.get("Limit", "20"))
        if limit > PAGE_MAX:
            raise no("InvalidParameterValue.TooLarge")
        return {"TotalCount": len(found), "RouteTableSet": found[start : start + limit]}

    def _table(self, table: str) -> dict[str, Any]:
        if table not in self._tables:
            raise no("InvalidRouteTableId.NotFound", f"{table} not found")
        return self._tables[table]

    # Routes

    def _create_routes(self, asked: Any) -> Any:
        table = self._table(asked["RouteTableId"])
        for route in asked["Routes"]:
            self._accept(table, route)
            table["RouteSet"].append(self._completed(route, table["RouteTableId"]))
        return {"TotalCount": len(asked["Routes"]), "RouteTableSet": [table]}

    def _accept(self, table: dict[str, Any], route: dict[str, Any], instead: int | None = None) -> None:
        others = [each for each in table["RouteSet"] if each["RouteId"] != instead]
        if sum(each["RouteType"] == "USER" for each in others) >= LIMIT:
            raise no("LimitExceeded", f"the limit is {LIMIT}")
        vpc = self._vpcs[table["VpcId"]]
        destination = IPv4Network(route["DestinationCidrBlock"])
        for text in (vpc["CidrBlock"], *(each["CidrBlock"] for each in vpc["AssistantCidrSet"])):
            if destination.subnet_of(IPv4Network(text)):
                raise no("InvalidParameterValue.VpcCidrConflict")
        if route["GatewayType"] == "NORMAL_CVM" and route["GatewayId"] not in self._instances:
            raise no("InvalidParameterValue", f"no instance has {route['GatewayId']}")
        same = [
            each for each in others if each["DestinationCidrBlock"] == route["DestinationCidrBlock"] and each["Enabled"]
        ]
        kinds = {each["GatewayType"] for each in same}
        if route["GatewayId"] in {each["GatewayId"] for each in same}:
            raise no("InvalidParameterValue.Duplicate")
        if same and (kinds != {"NORMAL_CVM"} or route["GatewayType"] != "NORMAL_CVM" or len(same) >= SAME_KIND_MAX):
            raise no("UnsupportedOperation.Ecmp")

    def _completed(self, route: dict[str, Any], table: str) -> dict[str, Any]:
        return {
            "RouteDescription": "",
            "Enabled": True,
            "RouteType": "USER",
            "DestinationIpv6CidrBlock": "",
            "PublishedToVbc": False,
            "CreatedTime": "2026-01-01 00:00:00",
            **route,
            "RouteTableId": table,
            "RouteId": next(self._numbers),
            "RouteItemId": self._id("rti"),
        }

    def _own(self, table: dict[str, Any], route_id: int) -> dict[str, Any]:
        for route in table["RouteSet"]:
            if route["RouteId"] == route_id:
                if route["RouteType"] != "USER":
                    raise no("UnsupportedOperation.SystemRoute")
                found: dict[str, Any] = route
                return found
        raise no("InvalidRouteId.NotFound")

    def _replace_routes(self, asked: Any) -> Any:
        table = self._table(asked["RouteTableId"])
        for route in asked["Routes"]:
            former = self._own(table, route["RouteId"])
            self._accept(table, {**former, **route}, instead=route["RouteId"])
            former.update(route)
        return {"OldRouteSet": [], "NewRouteSet": []}

    def _delete_routes(self, asked: Any) -> Any:
        table = self._table(asked["RouteTableId"])
        gone = [self._own(table, route["RouteId"]) for route in asked["Routes"]]
        table["RouteSet"] = [route for route in table["RouteSet"] if route not in gone]
        return {"RouteSet": gone}

    def _disable_routes(self, asked: Any) -> Any:
        table = self._table(asked["RouteTableId"])
        for route_id in asked["RouteIds"]:
            self._own(table, route_id)["Enabled"] = False
        return {}

    def _run_instances(self, asked: Any) -> Any:
        address = str(IPv4Address(asked["PrivateIpAddress"]))
        self._instances[address] = self._instances.get(address) or self._id("ins")
        return {"InstanceId": self._instances[address]}


def no(code: str, message: str = "no") -> Refusal:
    """Return what the API says with status 200, as it does of all that it refuses."""
    return Refusal(200, code, message)


if __name__ == "__main__":
    run(TencentServer(sys.argv[1]))
