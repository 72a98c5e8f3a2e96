"""Pure codecs between the values of `model` and what flannel writes below ``PREFIX/subnets/``.

Every ``parse_`` function raises `ValueError` with one line that says what is wrong; text that came from outside is
quoted with `repr`, so that it can neither break the line nor the log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any, NoReturn, TypeVar

from flannel_udp.model import LeaseAttrs, Subnet

MAX_KEY_CHARS = 80
"""The longest key flannel can write, ``255.255.255.255-32&`` and a full IPv6 prefix, has 63 characters."""
MAX_VALUE_BYTES = 64 * 1024
SHORT_VALUE_BYTES = 1024
"""flannel's values have less than half of it."""
MAX_CONTAINERS = 256
"""Objects and arrays a value may open: bounds the depth of nesting without a parser, and flannel needs three."""

_NO_IPV4 = "0.0.0.0-0"
"""What stands in front of the "&" for a host without IPv4; its PublicIP is 0.0.0.0 (flannel's way)."""
_KEY = re.compile(r"(?P<v4>[0-9.]+)-(?P<v4_len>[0-9]{1,3})(?:&(?P<v6>[0-9a-f:]+)-(?P<v6_len>[0-9]{1,3}))?")

_NOWHERE = IPv4Address("0.0.0.0")  # noqa: S104 - nothing is bound to it

_Address = TypeVar("_Address", IPv4Address, IPv6Address)
_Network = TypeVar("_Network", IPv4Network, IPv6Network)


Faults = dict[int, str]
"""What is wrong with the part of one family, by IP version, one line each."""


def format_key(subnet: Subnet) -> str:
    """Return the key of a subnet: ``10.1.15.0-24``, ``10.1.15.0-24&fd00:1:2::-64``, ``0.0.0.0-0&fd00:1:2::-64``."""
    v4 = _NO_IPV4 if subnet.v4 is None else f"{subnet.v4.network_address}-{subnet.v4.prefixlen}"
    if subnet.v6 is None:
        return v4
    return f"{v4}&{subnet.v6.network_address}-{subnet.v6.prefixlen}"


def parse_key(key: str, faults: Faults | None = None) -> Subnet:
    """Return the subnet a key stands for. Raises `ValueError` for everything that cannot be one host's subnet.

    With `faults` a part of one family that cannot be is noted there and missing in the subnet, if the other one can.
    """
    if len(key) > MAX_KEY_CHARS:
        raise ValueError(f"subnet key {key[:MAX_KEY_CHARS]!r}… is longer than {MAX_KEY_CHARS} characters")
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"subnet key {key!r} does not look like 10.1.15.0-24 or 10.1.15.0-24&fd00:1:2::-64")
    if match["v6"] is None:
        return Subnet(_parse_network(IPv4Network, key, match["v4"], int(match["v4_len"])))
    v4: IPv4Network | None = None
    v6: IPv6Network | None = None
    found: Faults = {}
    if not key.startswith(f"{_NO_IPV4}&"):
        try:
            v4 = _parse_network(IPv4Network, key, match["v4"], int(match["v4_len"]))
        except ValueError as error:
            found[4] = str(error)
    try:
        v6 = _parse_network(IPv6Network, key, match["v6"], int(match["v6_len"]))
    except ValueError as error:
        found[6] = str(error)
    if found and (faults is None or (v4 is None and v6 is None)):
        raise ValueError(next(iter(found.values())))
    if faults is not None:
        faults.update(found)
    return Subnet(v4, v6)


def _parse_network(kind: type[_Network], key: str, address: str, prefix_len: int) -> _Network:
    """Build the network from its two halves; `key` is only for the message."""
    try:
        host = int(_ipv4(address) if kind is IPv4Network else _ipv6(address))
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
        "PublicIP": str(attrs.public_ip or _NOWHERE),
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


def parse_value(value: bytes, faults: Faults | None = None) -> LeaseAttrs:
    """Return what a lease's value says.

    Accepts what flanneld's JSON reader (Go's encoding/json) accepts: any blanks, unknown fields, field names in any
    case, the last of several spellings wins. Raises `ValueError` for everything else; with `faults` an address that is
    none is noted there and missing in what is returned.
    """
    fields = _parse_object(value)
    backend_type = fields.get("backendtype")
    if not isinstance(backend_type, str | None):
        raise ValueError(f"lease value: BackendType {_short(backend_type)} is no string")
    found: Faults = {}
    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None
    try:
        public_ip = _parse_public_ip(fields)
    except ValueError as error:
        found[4] = str(error)
    try:
        if (text := fields.get("publicipv6")) is not None:
            public_ipv6 = _parse_address(_ipv6, "IPv6", "PublicIPv6", text)
    except ValueError as error:
        found[6] = str(error)
    if found and faults is None:
        raise ValueError(next(iter(found.values())))
    if faults is not None:
        faults.update(found)
    return LeaseAttrs(
        public_ip=public_ip,
        public_ipv6=public_ipv6,
        backend_type=backend_type or "",
        backend_data=fields.get("backenddata"),
        backend_v6_data=fields.get("backendv6data"),
    )


def kept_key(key: str) -> str:
    """Return what a registry keeps of a key: itself, or if it is too long for any subnet's what tells it apart."""
    if len(key) <= 2 * MAX_KEY_CHARS:
        return key
    return f"{key[:MAX_KEY_CHARS]}...{sha256(key.encode(errors='surrogatepass')).hexdigest()}"


def kept_value(value: bytes) -> bytes:
    """Return what a registry keeps of a value: itself, or if it is long and no lease's what is wrong with it.

    Anybody may write 10,000 values of a megabyte there, and nobody has use for one that cannot be understood.
    """
    if len(value) <= SHORT_VALUE_BYTES:
        return value
    try:
        parse_value(value, faults={})
    except ValueError as error:
        return json.dumps(f"{error} ({sha256(value).hexdigest()})").encode()
    return value


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


def _parse_public_ip(fields: dict[str, Any]) -> IPv4Address | None:
    if "publicip" not in fields:
        raise ValueError("lease value has no PublicIP")
    address = _parse_address(_ipv4, "IPv4", "PublicIP", fields["publicip"])
    return None if address == _NOWHERE else address


def _parse_address(parse: Callable[[str], _Address], version: str, name: str, field: object) -> _Address:
    # Neither numbers nor, for IPv6, zones ("fe80::1%eth0"): Go's net.ParseIP takes none.
    if isinstance(field, str):
        with suppress(ValueError):
            return parse(field)
    raise ValueError(f"lease value: {name} {_short(field)} is no {version} address")


def _ipv4(text: str) -> IPv4Address:
    """Return what `IPv4Address(text)` does, in a third of the time: a listing of 100,000 hosts has two of them each."""
    try:
        return IPv4Address(inet_pton(AF_INET, text))
    except OSError:
        raise ValueError(f"{text!r} is no IPv4 address") from None


def _ipv6(text: str) -> IPv6Address:
    """Likewise for IPv6, in a sixth of the time; there are no zones."""
    try:
        return IPv6Address(inet_pton(AF_INET6, text))
    except OSError:
        raise ValueError(f"{text!r} is no IPv6 address") from None


def _refuse_constant(name: str) -> NoReturn:
    """Python's reader knows NaN and Infinity; JSON does not."""
    raise ValueError(f"{name} is no JSON value")


# Made once: json.loads makes one for every call that has an argument of its own.
_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


def _short(field: object) -> str:
    """Quote something from outside in at most 60 characters."""
    text = repr(field)
    return text if len(text) <= 60 else f"{text[:59]}…"
