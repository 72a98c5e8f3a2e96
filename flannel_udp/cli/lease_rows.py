"""The registry's leases for people and programs: what each says, which one is meant, what may be reserved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, TextIO, TypedDict

from flannel_udp.admin.show import duration
from flannel_udp.admin.table import plain, table_lines, write_lines
from flannel_udp.control.entries import read_lease
from flannel_udp.errors import FlannelError, UsageError, did_you_mean
from flannel_udp.model import Entry, Lease, LeaseAttrs, Prefix, Subnet, prefix_order
from flannel_udp.netconf.addresses import parse_address
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.registry import Registry
from flannel_udp.registry.keys import format_key, format_value, parse_key


class LeaseRow(TypedDict):
    """One entry of the registry: what ``lease`` prints with ``--json``; what it does not say is ``None``.

    ``expires_in_s`` is ``None`` for a reservation, which never does; ``mark`` is the host's whose agent wrote it, 8
    hexadecimal digits; ``faults`` says what of it cannot be understood, or is wrong.
    """

    key: str
    subnet: str | None
    ipv6_subnet: str | None
    public_ip: str | None
    public_ipv6: str | None
    backend_type: str | None
    backend_data: Any
    backend_v6_data: Any
    reserved: bool
    expires_in_s: float | None
    mark: str | None
    faults: list[str]


@dataclass(frozen=True, slots=True)
class Held:
    """An entry of the registry, the seconds until it ends (``None``: it does not), and whether it is there yet."""

    entry: Entry
    left_s: float | None
    exists: bool = True

    @property
    def lease(self) -> Lease | None:
        """What it says, ``None`` where that cannot be understood."""
        with suppress(ValueError):
            return read_lease(self.entry)
        return None

    @property
    def subnet(self) -> Subnet:
        """What it is for, as far as the key tells."""
        with suppress(ValueError):
            return parse_key(self.entry.key, {})
        return Subnet(None)

    @property
    def name(self) -> str:
        """What people call it: its subnet, or the key as it is."""
        return str(self.subnet) or repr(self.entry.key)

    @property
    def line(self) -> str:
        """All that matters of it, in one line."""
        row = self.row
        _, public_ips, backend, ends, mark, said = _cells(row)
        until = "a reservation" if row["reserved"] else f"ends {ends}"
        return ", ".join(filter(None, [f"{self.name} of {public_ips or 'nobody'}", backend, until, mark, said]))

    @property
    def row(self) -> LeaseRow:
        """What programs get of it."""
        attrs, faults = LeaseAttrs(None), list[str]()
        try:
            lease = read_lease(self.entry)
        except ValueError as error:
            faults.append(str(error))
        else:
            attrs = lease.attrs
            faults.extend(lease.faults.values())
        if self.entry.rivals:
            names = " and ".join((self.entry.host or "?", *self.entry.rivals))
            faults.append(f"the podCIDR of {names}: packets go to one of them alone")
        subnet = self.subnet
        return LeaseRow(
            key=self.entry.key,
            subnet=_text(subnet.v4),
            ipv6_subnet=_text(subnet.v6),
            public_ip=_text(attrs.public_ip),
            public_ipv6=_text(attrs.public_ipv6),
            backend_type=attrs.backend_type or None,
            backend_data=attrs.backend_data,
            backend_v6_data=attrs.backend_v6_data,
            reserved=self.entry.reserved,
            expires_in_s=self.left_s,
            mark=f"{self.entry.mark:08x}" if self.entry.mark else None,
            faults=faults,
        )


async def gather(registry: Registry, told: Callable[[int], object]) -> list[Held]:
    """Return all entries by subnet, those that have no subnet last."""
    entries = (await registry.list()).entries.values()
    left = await registry.times_left_s(entries, told)
    held = [Held(entry, left[entry.key]) for entry in entries if entry.key in left]
    return sorted(held, key=_order)


def _order(held: Held) -> tuple[bool, Sequence[tuple[int, int, int]], str]:
    prefixes = held.subnet.prefixes
    return not prefixes, [prefix_order(prefix) for prefix in prefixes], held.entry.key


# Which one is meant


def find(held: Sequence[Held], text: str) -> list[Held]:
    """Return those that `text` may mean: a key, a subnet, an address in one, a public IP. Raises `FlannelError`."""
    found = [lease for lease in (find_exactly(held, text),) if lease is not None]
    if not found:
        with suppress(ValueError):
            address = parse_address(text)
            found = [
                each
                for each in held
                if any(address.version == part.version and address in part for part in each.subnet.prefixes)
                or (each.lease is not None and each.lease.attrs.address_of(address.version) == address)
            ]
    if not found:
        raise _none_such(held, text)
    return found


def find_one(held: Sequence[Held], text: str) -> Held:
    """Return the one with that key or subnet. Raises `FlannelError`, `UsageError`."""
    found = find_exactly(held, text)
    if found is None:
        read_subnet(text, known=[each.entry.key for each in held])
        raise _none_such(held, text)
    return found


def find_exactly(held: Sequence[Held], text: str) -> Held | None:
    """Return the one with that key, or with that subnet for a part; ``None``: there is none."""
    subnet: Prefix | None = None
    with suppress(ValueError):
        subnet = ip_network(text) if "/" in text else None
    return next(
        (each for each in held if each.entry.key == text or (subnet is not None and subnet in each.subnet.prefixes)),
        None,
    )


def _none_such(held: Sequence[Held], text: str) -> FlannelError:
    names = [name for each in held for name in (*map(str, each.subnet.prefixes), each.entry.key)]
    return FlannelError(f"the registry has no lease {text!r}{did_you_mean(text, names)} (see: flannel-udp lease list)")


def read_subnet(text: str, known: Sequence[str] = ()) -> Subnet:
    """Return the subnet that somebody typed: a key, or a network. Raises `UsageError`."""
    with suppress(ValueError):
        return parse_key(text)
    with suppress(ValueError):
        if "/" in text:
            return parse_key(format_key(Subnet.made_of([ip_network(text)])))
    hint = did_you_mean(text, known)
    raise UsageError(f"{text!r} is neither a subnet such as 10.1.15.0/24 nor a key such as 10.1.15.0-24{hint}")


# What may be reserved


def planned(subnet: Subnet, attrs: LeaseAttrs) -> Held:
    """Return the reservation that is not there yet, as flannel would write its value."""
    return Held(Entry(format_key(subnet), format_value(attrs), 0), None, exists=False)


def check_free(held: Sequence[Held], subnet: Subnet, attrs: LeaseAttrs) -> None:
    """Raise `UsageError` unless the host is named by each family, `FlannelError` where the subnet is somebody's."""
    for version, flag in ((4, "--public-ip"), (6, "--public-ipv6")):
        part, address = subnet.of(version), attrs.address_of(version)
        if part is not None and address is None:
            raise UsageError(f"{part} is nobody's yet: name the host that is to have it, by {flag}")
        if part is None and address is not None:
            raise UsageError(f"{flag}={address} is given, and {subnet} has no IPv{version} part")
    for each in held:
        for part in subnet.prefixes:
            theirs = each.subnet.of(part.version)
            if each.lease is not None and theirs is not None and part.overlaps(theirs):
                raise FlannelError(f"{part} overlaps with {each.line}: release that first")


def check_fits(config: NetworkConfig, subnet: Subnet) -> None:
    """Raise `UsageError` where no host could ever take the subnet."""
    for part in subnet.prefixes:
        subnets = config.of(part.version)
        if subnets is None:
            raise UsageError(f"the network configuration has no IPv{part.version}: no host would take {part}")
        if not subnets.fits(part):
            raise UsageError(
                f"no host would take {part}: the network configuration has subnets of length /{subnets.subnet_len} "
                f"from {subnets.first.network_address} to {subnets.last.network_address}"
            )


def check_kept(lease: Held, wanted: LeaseAttrs) -> None:
    """Raise `FlannelError` where a lease is another host's than the one that is named, or says nothing."""
    if lease.lease is None:
        raise FlannelError(f"{lease.line}: release it instead")
    for version in (4, 6):
        named, theirs = wanted.address_of(version), lease.lease.attrs.address_of(version)
        if named is not None and named != theirs:
            raise FlannelError(f"{lease.name} is held by {theirs}, not by {named}: release it first")


# For people


def show_table(rows: Sequence[LeaseRow], stream: TextIO) -> None:
    """Write one line a lease, in the order given."""
    if not rows:
        stream.write("no leases\n")
        return
    headings = ("subnet", "public ip", "backend", "ends", "mark", "says")
    write_lines(table_lines(headings, [_cells(row) for row in rows]), stream)


def show_pages(rows: Sequence[LeaseRow], stream: TextIO) -> None:
    """Write a page of names and values for each lease."""
    for number, row in enumerate(rows):
        stream.write("\n" if number else "")
        for name, value in _lines(row):
            stream.write(f"{name:<11}{value}\n")


def _lines(row: LeaseRow) -> Iterator[tuple[str, str]]:
    yield "key", plain(row["key"])
    for name, value in (
        ("subnet", _both(row["subnet"], row["ipv6_subnet"])),
        ("public ip", _both(row["public_ip"], row["public_ipv6"])),
        ("backend", plain(row["backend_type"] or "")),
        ("says", _said(row["backend_data"])),
        ("says (v6)", _said(row["backend_v6_data"])),
        ("mark", row["mark"] or ""),
    ):
        if value:
            yield name, value
    yield "ends", "never: it is a reservation" if row["reserved"] else _ends(row)
    for fault in row["faults"]:
        yield "problem", fault


def _cells(row: LeaseRow) -> tuple[str, ...]:
    subnet, said = _both(row["subnet"], row["ipv6_subnet"]), [row["backend_data"], row["backend_v6_data"]]
    return (
        subnet or plain(row["key"]),
        _both(row["public_ip"], row["public_ipv6"]),
        plain(row["backend_type"] or ""),
        _ends(row),
        row["mark"] or "",
        "; ".join([*filter(None, map(_said, said)), *row["faults"]]),
    )


def _ends(row: LeaseRow) -> str:
    if row["reserved"]:
        return "reservation"
    return "in " + duration(row["expires_in_s"] or 0.0)


def _said(data: object) -> str:
    """Return what a backend says of a host: vxlan its VNI and the MAC address of its device."""
    if not isinstance(data, Mapping):
        return "" if data is None else plain(str(data))
    return ", ".join(f"{plain(str(name))} {plain(str(value))}" for name, value in data.items())


def _both(v4: str | None, v6: str | None) -> str:
    return " and ".join(filter(None, (v4, v6)))


def _text(value: object) -> str | None:
    return None if value is None else str(value)
