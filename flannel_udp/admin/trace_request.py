"""The packet that `trace` is asked about: how a command and the agent tell it to each other, and what is no packet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flannel_udp.admin.trace_shapes import TraceAsked
from flannel_udp.errors import UsageError
from flannel_udp.model import Address
from flannel_udp.netconf.addresses import parse_address

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
HEADER_BYTES = {4: 20, 6: 40}
TRANSPORT_BYTES = {ICMP: 8, ICMPV6: 8, TCP: 20, UDP: 8}
LONGEST_BYTES = {4: 65_535, 6: 65_575}
"""RFC 791 section 3.1; RFC 8200 section 3: the payload alone has 65,535."""
PING_BYTES = 64
"""Behind the IP header: what ping sends, unless told otherwise."""
SOURCE_PORT = 40_000
PORTS = {TCP: 80, UDP: 53}
TTL = 64


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """A packet as its sender gives it: `size` is the whole IP packet's in bytes, `df` means nothing with IPv6."""

    source: Address
    destination: Address
    protocol: int
    size: int
    tos: int = 0
    ttl: int = TTL
    df: bool = False
    source_port: int | None = None
    destination_port: int | None = None

    def asked(self) -> TraceAsked:
        """Return it as a document."""
        return TraceAsked(
            source=str(self.source),
            destination=str(self.destination),
            protocol=self.protocol,
            size=self.size,
            tos=self.tos,
            ttl=self.ttl,
            df=self.df,
            source_port=self.source_port,
            destination_port=self.destination_port,
        )


@dataclass(frozen=True, slots=True)
class Said:
    """What somebody said of a packet beside its ends; ``None``: nothing."""

    protocol: int | None = None
    size: int | None = None
    tos: int | None = None
    ttl: int | None = None
    df: bool | None = None
    source_port: int | None = None
    destination_port: int | None = None


LIMITS: Mapping[str, tuple[int, int]] = {
    "protocol": (0, 255),
    "size": (20, LONGEST_BYTES[6]),
    "tos": (0, 255),
    "ttl": (1, 255),
    "source_port": (1, 65_535),
    "destination_port": (1, 65_535),
}
"""The lowest and the highest number that each may be."""


def make_request(source: Address, destination: Address, said: Said) -> TraceRequest:
    """Return the packet, with what was not said filled in. Raises `UsageError` for what is none."""
    version, protocol = source.version, ICMP if said.protocol is None else said.protocol
    if version != destination.version:
        raise UsageError(
            f"{source} is IPv{version}, {destination} is IPv{destination.version}: no packet has one end of each"
        )
    if version == 6 and protocol == ICMP:
        protocol = ICMPV6
    ports = (said.source_port, said.destination_port)
    if protocol in PORTS:
        ports = (ports[0] or SOURCE_PORT, ports[1] or PORTS[protocol])
    elif ports != (None, None):
        raise UsageError(f"ports are TCP's and UDP's: protocol {protocol} has none (say --proto=tcp or --proto=udp)")
    least, most = HEADER_BYTES[version] + TRANSPORT_BYTES.get(protocol, 0), LONGEST_BYTES[version]
    usual = least if protocol == TCP else HEADER_BYTES[version] + PING_BYTES
    size = usual if said.size is None else said.size
    if not least <= size <= most:
        raise UsageError(f"--size={size}: such a packet has {least:,} bytes, for its headers, to {most:,}")
    if said.df and version == 6:
        raise UsageError("--df is IPv4's: of IPv6 no router cuts a packet")
    df = version == 4 and (protocol == TCP if said.df is None else said.df)
    return TraceRequest(source, destination, protocol, size, said.tos or 0, said.ttl or TTL, df, *ports)


def read_request(document: object) -> TraceRequest:
    """Return what a document like `TraceAsked` asks about; what is missing is filled in.

    Raises `ValueError` for what is no such document, `UsageError` for what is no packet.
    """
    if not isinstance(document, dict):
        raise ValueError("the body is no JSON object")
    numbers: dict[str, int | None] = {}
    for name, (low, high) in LIMITS.items():
        value = document.get(name)
        if value is not None and (type(value) is not int or not low <= value <= high):
            raise ValueError(f"{name} is {str(value)[:60]!r}, not a whole number from {low} to {high}")
        numbers[name] = value
    df = document.get("df")
    if df is not None and not isinstance(df, bool):
        raise ValueError("df is neither true nor false")
    source, destination = (_address(document, name) for name in ("source", "destination"))
    return make_request(source, destination, Said(df=df if source.version == 4 else df or None, **numbers))


def _address(document: Mapping[str, object], name: str) -> Address:
    text = document.get(name)
    try:
        return parse_address(str(text))
    except ValueError:
        raise ValueError(f"{name} is {str(text)[:60]!r}, not an IP address") from None


# What comes to the other host


@dataclass(frozen=True, slots=True)
class Coming:
    """A packet on its way here: see `TraceDatagram`; `sender` is the underlay address that it has as its source."""

    sender: Address
    tos: int
    payload: bytes | None
    inner: bytes


def read_coming(document: object) -> Coming:
    """Return what a document tells of. Raises `ValueError`."""
    if not isinstance(document, Mapping):
        raise ValueError("the body is no JSON object")
    tos, payload = document.get("tos"), document.get("payload")
    if type(tos) is not int or not 0 <= tos <= 255:
        raise ValueError("tos is not a whole number from 0 to 255")
    inner = bytes.fromhex(str(document.get("inner")))
    if not inner or len(inner) < HEADER_BYTES.get(inner[0] >> 4, len(inner) + 1):
        raise ValueError("inner is no IP packet, in hexadecimal")
    sender = parse_address(str(document.get("sender")))
    return Coming(sender, tos, None if payload is None else bytes.fromhex(str(payload)), inner)
