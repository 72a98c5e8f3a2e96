r"""What the registry file says, without touching the file.

``{"config": {"Network": "10.1.0.0/16"}, "subnets": {"10.1.15.0-24": {"PublicIP": "192.0.2.1", "Expires": "…"}}}``

Configuration and values are as in etcd. A lease has ``Expires`` (RFC 3339, UTC); an entry without one is a reservation,
and so is one whose ``Expires`` cannot be read, because taking somebody's subnet away would be the worse mistake.
``Owner`` is what the lease's id is in etcd: the mark of the host whose agent wrote it, and a number that is new with
every lease. Fields that mean nothing to us stay where they are.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from flannel_udp.model import LEASE_TTL_S, NONCE_BITS, Entry, lease_id_of
from flannel_udp.registry.keys import kept_key, kept_value, parse_key

Document = dict[str, Any]

NOBODYS_LEASE = 1
"""The lease id of an entry that expires and names no owner: written by hand, say."""
_OWNER = re.compile(r"([0-9a-f]{8})-([0-7][0-9a-f]{7})")

MAX_DEPTH = 32
_TOO_DEEP = f"objects and arrays are nested more than {MAX_DEPTH} deep"
_NO_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_VALUE_FIELDS = {"publicip", "publicipv6", "backendtype", "backenddata", "backendv6data"}


def parse_document(raw: bytes) -> Document:
    """Return the document with ``subnets`` filled in. Raises `ValueError`, with line and column where there is one."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line, start = raw.count(b"\n", 0, error.start) + 1, raw.rfind(b"\n", 0, error.start)
        raise ValueError(f"line {line} column {error.start - start}: not UTF-8") from None
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno} column {error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if _is_too_deep(raw):
        raise ValueError(_TOO_DEEP)
    if not isinstance(document, dict):
        raise ValueError('must be a JSON object such as {"config": {"Network": "10.1.0.0/16"}, "subnets": {}}')
    if document.get("subnets") is None:
        document["subnets"] = {}
    if not isinstance(document["subnets"], dict):
        raise ValueError('"subnets" must be a JSON object: a key such as "10.1.15.0-24" for each host')
    return document


def _is_too_deep(raw: bytes) -> bool:
    """Tell whether writing this JSON could run into the recursion limit, by taking away the innermost pairs in turn."""
    brackets = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", raw).translate(None, delete=_NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"{}", b"").replace(b"[]", b"")
    return bool(brackets)


def format_document(document: Document) -> bytes:
    """Return the document for human readers."""
    return _dump(document, indent=2) + b"\n"


def format_config(document: Document) -> bytes | None:
    """Return the network configuration as JSON, ``None`` if there is none."""
    config = document.get("config")
    return None if config is None else _dump(config)


def parse_json(raw: bytes) -> object:
    """Return a value for the document. Raises `ValueError` if it is not JSON."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None


def entries_of(document: Document, now_s: float) -> dict[str, Entry]:
    """Return the entries that have not expired at `now_s` (seconds since 1970)."""
    living = (_entry(key, fields) for key, fields in document["subnets"].items() if _is_alive(fields, now_s))
    return {entry.key: entry for entry in living}


def entry_of(document: Document, key: str, now_s: float) -> Entry | None:
    """Return the entry of one key, ``None`` if there is none or it has expired at `now_s`."""
    subnets = document["subnets"]
    return _entry(key, subnets[key]) if key in subnets and _is_alive(subnets[key], now_s) else None


def next_expiry_s(document: Document, now_s: float) -> float:
    """Return when the next entry will expire, infinity if none will."""
    expiries = (expiry_s(fields) for fields in document["subnets"].values())
    return min((expiry for expiry in expiries if expiry is not None and expiry > now_s), default=math.inf)


def ended_of(document: Document, now_s: float) -> dict[str, Entry]:
    """Return the entries that have expired at `now_s`: by our clock, so they stay until their subnet is wanted."""
    return {key: _entry(key, fields) for key, fields in document["subnets"].items() if not _is_alive(fields, now_s)}


def remove_ended(document: Document, wanted: str, now_s: float) -> None:
    """Remove what has expired at `now_s` and is in the way of the subnet with the key `wanted`."""
    parts = parse_key(wanted).prefixes

    def in_the_way(key: str) -> bool:
        try:
            theirs = parse_key(key, {})
        except ValueError:
            return False
        return any(other is not None and part.overlaps(other) for part in parts for other in (theirs.of(part.version),))

    for key in [key for key in ended_of(document, now_s) if key == wanted or in_the_way(key)]:
        del document["subnets"][key]


def expiries_s(document: Document) -> Iterator[float]:
    """Yield when each lease ends."""
    for fields in document["subnets"].values():
        end_s = expiry_s(fields)
        if end_s is not None:
            yield end_s


def furthest_ahead(document: Document, now_s: float) -> tuple[str, float] | None:
    """Return whose clock is furthest ahead of ours, judged by when the lease ends that an agent wrote, and how far.

    ``None`` where no lease lasts longer than it can by our clock. What names no owner was written by hand, and may.
    """
    ahead = [
        (end_s - now_s - LEASE_TTL_S, str(fields.get("PublicIP")), key)
        for key, fields in document["subnets"].items()
        if (end_s := expiry_s(fields)) is not None and _lease_id(fields) != NOBODYS_LEASE
    ]
    ahead_s, holder, key = max(ahead, default=(0.0, "", ""))
    return (f"{holder} ({key})"[:100], ahead_s) if ahead_s > 0 else None


def expiry_s(fields: object) -> float | None:
    """Return when an entry expires in seconds since 1970; ``None`` for a reservation."""
    text = fields.get("Expires") if isinstance(fields, dict) else None
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()


def _is_alive(fields: object, now_s: float) -> bool:
    return (expiry_s(fields) or math.inf) > now_s


def put_entry(document: Document, key: str, value: bytes, expires_s: float | None, lease_id: int) -> Entry:
    """Write an entry, keeping unknown fields of the one it replaces. `ValueError`: `value` is no JSON object.

    With ``None`` for `expires_s` and 0 for `lease_id` it is a reservation.
    """
    fields = parse_json(value)
    if not isinstance(fields, dict):
        raise ValueError("is no JSON object")
    old = document["subnets"].get(key)
    if isinstance(old, dict):
        unknown = {name: field for name, field in old.items() if name.casefold() not in _VALUE_FIELDS}
        fields |= {name: field for name, field in unknown.items() if name not in fields}
    fields.pop("Expires", None)
    fields.pop("Owner", None)
    if lease_id > NOBODYS_LEASE:
        fields["Owner"] = f"{lease_id >> NONCE_BITS:08x}-{lease_id & (1 << NONCE_BITS) - 1:08x}"
    if expires_s is not None:  # whole seconds, rounded up: nobody loses a lease early
        fields["Expires"] = datetime.fromtimestamp(math.ceil(expires_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    document["subnets"][key] = fields
    return _entry(key, fields)


def _entry(key: str, fields: object) -> Entry:
    """Return an entry without the time it expires: a renewal is no change. Numbering revisions is the registry's."""
    lease_id = _lease_id(fields)
    if isinstance(fields, dict):
        ours = ("Expires", "Owner") if lease_id else ("Owner",)
        fields = {name: field for name, field in fields.items() if name not in ours}
    return Entry(kept_key(key), kept_value(_dump(fields)), 0, lease_id)


def _lease_id(fields: Any) -> int:
    if expiry_s(fields) is None:
        return 0
    owner = fields.get("Owner")
    if not isinstance(owner, str):
        return NOBODYS_LEASE
    match = _OWNER.fullmatch(owner)
    if match is not None:
        return lease_id_of(int(match[1], 16), int(match[2], 16))
    # Whatever else is written there is somebody's, and not ours.
    return int.from_bytes(hashlib.sha256(owner.encode(errors="replace")).digest()[:8], "big") >> 1 or NOBODYS_LEASE


def _dump(value: object, indent: int | None = None) -> bytes:
    separators = (",", ":") if indent is None else None
    # A lone surrogate cannot be encoded; written as \udXXX it is what JSON has for it.
    return json.dumps(value, indent=indent, separators=separators, ensure_ascii=False).encode(errors="backslashreplace")
