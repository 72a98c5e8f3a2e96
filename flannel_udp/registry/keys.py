"""Pure codecs between the values of `model` and what flannel writes below ``PREFIX/subnets/``.

Every ``parse_`` function raises `ValueError` with one line that says what is wrong; text that came from outside is
quoted with `repr`, so that it can neither break the line nor the log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from socket import AF_INET, inet_pton
from typing import Any, NoReturn, TypeVar

from flannel_udp.model import LeaseAttrs, Subnet

MAX_KEY_CHARS = 80
"""The longest key flannel can write, ``255.255.255.255-32&`` and a full IPv6 prefix, has 63 characters."""
MAX_VALUE_BYTES = 64 * 1024
MAX_CONTAINERS = 256
"""Objects and arrays a value may open: bounds the depth of nesting without a parser, and flannel needs three."""

# The lease of an IPv6-only flannel network has 0.0.0.0-0 in front of the "&".
_KEY = re.compile(r"(?P<v4>[0-9.]+)-(?P<v4_len>[0-9]{1,3})(?:&(?P<v6>[0-9a-f:]+)-(?P<v6_len>[0-9]{1,3}))?")

_Address = TypeVar("_Address", IPv4Address, IPv6Address)
_Network = TypeVar("_Network", IPv4Network, IPv6Network)


def format_key(subnet: Subnet) -> str:
    """Return the key of a subnet: ``10.1.15.0-24``, dual stack ``10.1.15.0-24&fd00:1:2::-64``."""
    v4 = f"{subnet.v4.network_address}-{subnet.v4.prefixlen}"
    if subnet.v6 is None:
        return v4
    return f"{v4}&{subnet.v6.network_address}-{subnet.v6.prefixlen}"


def parse_key(key: str) -> Subnet:
    """Return the subnet a key stands for. Raises `ValueError` for everything that cannot be one host's subnet."""
    if len(key) > MAX_KEY_CHARS:
        raise ValueError(f"subnet key {key[:MAX_KEY_CHARS]!r}… is longer than {MAX_KEY_CHARS} characters")
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"subnet key {key!r} does not look like 10.1.15.0-24 or 10.1.15.0-24&fd00:1:2::-64")
    v4 = _parse_network(IPv4Network, key, match["v4"], int(match["v4_len"]))
    if match["v6"] is None:
        return Subnet(v4)
    return Subnet(v4, _parse_network(IPv6Network, key, match["v6"], int(match["v6_len"])))


def _parse_network(kind: type[_Network], key: str, address: str, prefix_len: int) -> _Network:
    """Build the network from its two halves; `key` is only for the message."""
    try:
        host = int(_ipv4(address) if kind is IPv4Network else IPv6Address(address))
    except ValueError:
        raise ValueError(f"subnet key {key!r}: {address!r} is no {_version(kind)} address") from None
    bits = 32 if kind is IPv4Network else 128
    if not 1 <= prefix_len <= bits:
        raise ValueError(f"subnet key {key!r}: prefix length {prefix_len} is outside 1 to {bits} ({_version(kind)})")
    try:
        return kind((host, prefix_len))
    except ValueError:
        network = kind((host, prefix_len), strict=False)
        raise ValueError(f"subnet key {key!r}: host bits are set, the subnet would be {network}") from None


def _version(kind: type[IPv4Network | IPv6Network]) -> str:
    return "IPv4" if kind is IPv4Network else "IPv6"


def format_value(attrs: LeaseAttrs) -> bytes:
    """Return the value byte for byte as flannel writes it: no blanks, fields in its order, empty ones left out."""
    fields: dict[str, Any] = {
        "PublicIP": str(attrs.public_ip),
        "PublicIPv6": None if attrs.public_ipv6 is None else str(attrs.public_ipv6),
    }
    if attrs.backend_type:
        fields["BackendType"] = attrs.backend_type
    if attrs.backend_data is not None:
        fields["BackendData"] = attrs.backend_data
    if attrs.backend_v6_data is not None:
        fields["BackendV6Data"] = attrs.backend_v6_data
    # A lone surrogate cannot be encoded; written as \\udXXX it is what JSON has for it.
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode(errors="backslashreplace")


def parse_value(value: bytes) -> LeaseAttrs:
    """Return what a lease's value says.

    Accepts what flanneld's JSON reader (Go's encoding/json) accepts: any blanks, unknown fields, field names in any
    case, the last of several spellings wins. Raises `ValueError` for everything else.
    """
    fields = _parse_object(value)
    if "publicip" not in fields:
        raise ValueError("lease value has no PublicIP")
    public_ipv6 = fields.get("publicipv6")
    backend_type = fields.get("backendtype")
    if not isinstance(backend_type, str | None):
        raise ValueError(f"lease value: BackendType {_short(backend_type)} is no string")
    return LeaseAttrs(
        public_ip=_parse_address(_ipv4, "IPv4", "PublicIP", fields["publicip"]),
        public_ipv6=None if public_ipv6 is None else _parse_address(IPv6Address, "IPv6", "PublicIPv6", public_ipv6),
        backend_type=backend_type or "",
        backend_data=fields.get("backenddata"),
        backend_v6_data=fields.get("backendv6data"),
    )


def _parse_object(value: bytes) -> dict[str, Any]:
    """Return the fields of a JSON object by case-folded name, after bounding its size and nesting."""
    if len(value) > MAX_VALUE_BYTES:
        raise ValueError(f"lease value has {len(value)} bytes, more than {MAX_VALUE_BYTES}")
    if value.count(b"{") + value.count(b"[") > MAX_CONTAINERS:
        raise ValueError(f"lease value holds more than {MAX_CONTAINERS} objects and arrays")
    try:
        document = _JSON.decode(value.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"lease value is not JSON: byte {error.start} is not UTF-8") from None
    except ValueError as error:  # JSONDecodeError, a refused constant, an integer of thousands of digits
        raise ValueError(f"lease value is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"lease value is no JSON object: {_short(document)}")
    return {name.casefold(): field for name, field in document.items()}


def _parse_address(parse: Callable[[str], _Address], version: str, name: str, field: object) -> _Address:
    # ipaddress takes integers and, for IPv6, zones ("fe80::1%eth0"); Go's net.ParseIP takes neither.
    if isinstance(field, str) and "%" not in field:
        with suppress(ValueError):
            return parse(field)
    raise ValueError(f"lease value: {name} {_short(field)} is no {version} address")


def _ipv4(text: str) -> IPv4Address:
    """Return what `IPv4Address(text)` does, in a third of the time: a listing of 100,000 hosts has two of them each."""
    try:
        return IPv4Address(inet_pton(AF_INET, text))
    except OSError:
        raise ValueError(f"{text!r} is no IPv4 address") from None


def _refuse_constant(name: str) -> NoReturn:
    """Python's reader knows NaN and Infinity; JSON does not."""
    raise ValueError(f"{name} is no JSON value")


# Made once: json.loads makes one for every call that has an argument of its own.
_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


def _short(field: object) -> str:
    """Quote something from outside in at most 60 characters."""
    text = repr(field)
    return text if len(text) <= 60 else f"{text[:59]}…"
