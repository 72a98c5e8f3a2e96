"""Alibaba Cloud's VPC API for tests, from its reference: RPC style, signatures version 3, and changes that take time.

    python -m tests.support.ali_server ADDRESS     writes the port that it listens on

Beside `cloud_server.Orders`: POST /test/world takes ``users`` (by access key: ``secret``, ``token`` of a role, and
``allowed``, the actions; without it, all) and ``tables`` (by name: ``vpc``, ``type``, ``vswitches``, ``quota``), and
replaces what was there; POST /test/entry makes an entry by hand, POST /test/gone removes one, GET /test/entries tells
of all; POST /test/settle says for how many reads a changed entry is under way.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Any
from urllib.parse import quote

from tests.support.cloud_server import CloudServer, Refusal, Request, run

VERSION, ALGORITHM = "2016-04-28", "ACS3-HMAC-SHA256"
_SIGNED = ("host", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-signature-nonce", "x-acs-version")
_CLOCK_S = 900.0
_UNDER_WAY = ("Pending", "Modifying", "Deleting")


class AliServer(CloudServer):
    """One region of one account."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._users: dict[str, dict[str, Any]] = {}
        self._tables: dict[str, dict[str, Any]] = {}
        self._entries: dict[str, dict[str, Any]] = {}
        self._nonces: set[str] = set()
        self._numbers = count(1)
        self._settle = 0

    def action(self, request: Request) -> str:
        return request.headers.get("x-acs-action", "?")

    def refusal(self, refusal: Refusal) -> Any:
        return {"RequestId": "0ED8D006", "Code": refusal.code, "Message": refusal.message}

    def obey(self, path: str, body: bytes) -> Any:
        with self.lock:
            if path == "/test/world":
                world = json.loads(body)
                self._users, self._tables, self._entries = world["users"], world["tables"], {}
            elif path == "/test/entry":
                entry = json.loads(body)
                return self._add(entry["table"], entry["destination"], entry["hops"], entry.get("name"), entry)
            elif path == "/test/gone":
                gone = json.loads(body)
                self._entries = {key: each for key, each in self._entries.items() if not gone.items() <= each.items()}
            elif path == "/test/settle":
                self._settle = json.loads(body)
            elif path == "/test/entries":
                return list(self._entries.values())
        return super().obey(path, body)

    # Who asks

    def answer(self, request: Request) -> Any:
        """Check signature and right, and do what is asked for."""
        user = self._authenticate(request)
        action = self.action(request)
        if action not in user.get("allowed", (action,)):
            raise Refusal(403, "Forbidden.RAM", "User not authorized to operate on the specified resource.")
        handlers = {
            "DescribeRouteTableList": self._describe_tables,
            "DescribeRouteEntryList": self._describe_entries,
            "CreateRouteEntry": self._create,
            "ModifyRouteEntry": self._modify,
            "DeleteRouteEntry": self._delete,
        }
        if request.headers.get("x-acs-version") != VERSION or action not in handlers:
            raise Refusal(404, "InvalidAction.NotFound", "Specified api is not found.")
        return {"RequestId": "57828ADD", **handlers[action](request.query)}

    def _authenticate(self, request: Request) -> dict[str, Any]:
        algorithm, _, rest = request.headers.get("authorization", "").partition(" ")
        fields = dict(part.split("=", 1) for part in rest.split(",")) if rest else {}
        names = fields.get("SignedHeaders", "").split(";")
        if algorithm != ALGORITHM or not set(_SIGNED) <= set(names):
            raise Refusal(400, "IncompleteSignature", "The request signature does not conform to the standards.")
        user = self._users.get(fields["Credential"])
        if user is None:
            raise Refusal(404, "InvalidAccessKeyId.NotFound", "Specified access key is not found.")
        if request.headers.get("x-acs-security-token") != user.get("token"):
            raise Refusal(403, "InvalidSecurityToken.Expired", "Specified SecurityToken is expired.")
        if hashlib.sha256(request.body).hexdigest() != request.headers["x-acs-content-sha256"]:
            raise Refusal(400, "SignatureDoesNotMatch", "The body is another one.")
        if not hmac.compare_digest(signature(request, names, user["secret"]), fields["Signature"]):
            raise Refusal(400, "SignatureDoesNotMatch", "Specified signature is not matched with our calculation.")
        date = datetime.strptime(request.headers["x-acs-date"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        if abs(date.timestamp() - time.time()) > _CLOCK_S:
            raise Refusal(400, "InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")
        nonce = request.headers["x-acs-signature-nonce"]
        if nonce in self._nonces:
            raise Refusal(400, "SignatureNonceUsed", "Specified signature nonce was used already.")
        self._nonces.add(nonce)
        return user

    # What is there

    def _describe_tables(self, query: Mapping[str, str]) -> dict[str, Any]:
        found = [
            {
                "RouteTableId": name,
                "VpcId": table["vpc"],
                "RouteTableType": table["type"],
                "RouterType": "VRouter",
                "AssociateType": table.get("associate", "VSwitch"),
                "Status": "Available",
                "VSwitchIds": {"VSwitchId": table["vswitches"]},
            }
            for name, table in self._tables.items()
            if query.get("RouteTableId", name) == name and query.get("VpcId", table["vpc"]) == table["vpc"]
        ]
        size, number = int(query.get("PageSize", "10")), int(query.get("PageNumber", "1"))
        if size > 50:
            raise Refusal(400, "InvalidPageSize", "Specified PageSize is not valid.")
        page = found[size * (number - 1) : size * number]
        return {
            "RouterTableList": {"RouterTableListType": page},
            "TotalCount": len(found),
            "PageSize": size,
            "PageNumber": number,
        }

    def _describe_entries(self, query: Mapping[str, str]) -> dict[str, Any]:
        table = self._table(query)
        self._settle_down(table)
        found = [entry for entry in self._entries.values() if entry["RouteTableId"] == table]
        size, start = int(query.get("MaxResult", "10")), int(query.get("NextToken") or 0)
        if size > 100:
            raise Refusal(400, "InvalidMaxResult", "Specified MaxResult is not valid.")
        page = [{key: value for key, value in entry.items() if key != "reads"} for entry in found[start : start + size]]
        token = str(start + size) if start + size < len(found) else ""
        return {"RouteEntrys": {"RouteEntry": page}, "NextToken": token, "TotalCount": len(found)}

    def _settle_down(self, table: str) -> None:
        """Have what is under way take its time: so many reads."""
        for key, entry in list(self._entries.items()):
            if entry["RouteTableId"] == table and entry["Status"] in _UNDER_WAY:
                entry["reads"] -= 1
                if entry["reads"] < 0 and entry["Status"] == "Deleting":
                    del self._entries[key]
                elif entry["reads"] < 0:
                    entry["Status"] = "Available"

    # What is changed

    def _create(self, query: Mapping[str, str]) -> dict[str, Any]:
        table = self._table(query)
        entries = [entry for entry in self._entries.values() if entry["RouteTableId"] == table]
        if any(entry["Status"] in _UNDER_WAY for entry in entries):
            raise Refusal(400, "IncorrectRouteEntryStatus", "Some route entry status blocked this operation.")
        if any(entry["DestinationCidrBlock"] == query["DestinationCidrBlock"] for entry in entries):
            raise Refusal(400, "RouterEntryConflict.Duplicated", "The specified route entry already exists.")
        if sum(entry["Type"] == "Custom" for entry in entries) >= self._tables[table].get("quota", 200):
            raise Refusal(400, "QuotaExceeded", "Route entry quota exceeded in this route table")
        hops = [[query["NextHopType"], query["NextHopId"]]]
        made = self._add(table, query["DestinationCidrBlock"], hops, query.get("RouteEntryName"), {})
        self._begin(made, "Pending")
        return {"RouteEntryId": made["RouteEntryId"]}

    def _modify(self, query: Mapping[str, str]) -> dict[str, Any]:
        entry = self._steady(query)
        entry["NextHops"] = _hops([[query["NewNextHopType"], query["NewNextHopId"]]])
        entry["RouteEntryName"] = query.get("RouteEntryName", entry.get("RouteEntryName"))
        self._begin(entry, "Modifying")
        return {}

    def _delete(self, query: Mapping[str, str]) -> dict[str, Any]:
        self._begin(self._steady(query), "Deleting")
        return {}

    def _begin(self, entry: dict[str, Any], status: str) -> None:
        entry["reads"] = self._settle
        entry["Status"] = status
        if not self._settle and status == "Deleting":
            del self._entries[entry["RouteEntryId"]]
        elif not self._settle:
            entry["Status"] = "Available"

    def _steady(self, query: Mapping[str, str]) -> dict[str, Any]:
        entry = self._entries.get(query["RouteEntryId"])
        if entry is None:
            raise Refusal(400, "InvalidRouteEntryId.NotFound", "Specified RouteEntryId does not exist.")
        if entry["Type"] != "Custom":
            raise Refusal(400, "OperationDenied", "Specified operation is denied as route entry type is system.")
        if entry["Status"] in _UNDER_WAY:
            raise Refusal(400, "IncorrectRouteEntryStatus", "Specified routeEntry status error.")
        return entry

    def _table(self, query: Mapping[str, str]) -> str:
        if query["RouteTableId"] not in self._tables:
            raise Refusal(404, "InvalidRouteTableId.NotFound", "Specified route table does not exist.")
        return query["RouteTableId"]

    def _add(
        self, table: str, destination: str, hops: list[list[str]], name: str | None, more: Mapping[str, Any]
    ) -> dict[str, Any]:
        number = f"rte-{next(self._numbers):04}"
        self._entries[number] = {
            "RouteEntryId": number,
            "RouteTableId": table,
            "DestinationCidrBlock": destination,
            "IpVersion": "ipv6" if ":" in destination else "ipv4",
            "Type": more.get("type", "Custom"),
            "Status": more.get("status", "Available"),
            "NextHops": _hops(hops),
            "reads": self._settle,
            **({} if name is None else {"RouteEntryName": name}),
            **({"ServiceType": more["service"]} if "service" in more else {}),
        }
        return self._entries[number]


def _hops(hops: list[list[str]]) -> dict[str, Any]:
    return {"NextHop": [{"NextHopType": kind, "NextHopId": name, "NextHopRelatedInfo": {}} for kind, name in hops]}


def signature(request: Request, names: list[str], secret: str) -> str:
    """Return what the request's signature is, of those of its headers."""

    def escaped(text: str) -> str:
        return quote(text, safe="~")

    query = "&".join(f"{escaped(key)}={escaped(value)}" for key, value in sorted(request.query.items()))
    headers = "".join(f"{name}:{request.headers[name].strip()}\n" for name in sorted(names))
    body = request.headers["x-acs-content-sha256"]
    canonical = "\n".join((request.method, request.path, query, headers, ";".join(sorted(names)), body))
    text = f"{ALGORITHM}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


if __name__ == "__main__":
    run(AliServer(sys.argv[1]))
