"""How the text of a flag becomes a value: each parser raises `ValueError` with the reason when it is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path

from flannel_udp.errors import did_you_mean
from flannel_udp.options import NO_OFFLOAD, Offload

GO_BOOLS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}
"""The words of Go's strconv.ParseBool, no others."""


def parse_bool(text: str) -> bool:
    """Read one of Go's words for true and false."""
    if text not in GO_BOOLS:
        raise ValueError(f"{text!r} is neither true nor false")
    return GO_BOOLS[text]


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a parser of decimal numbers from `low` to `high`."""
    span = f"of at least {low}" if high is None else f"from {low} to {high}"

    def parse(text: str) -> int:
        # ASCII digits only: int() would also take "1_0", " 1" and the digits of other scripts. No port, period or
        # verbosity has ten digits, and int() gives up beyond 4,300.
        if re.fullmatch(r"[0-9]{1,9}", text) and low <= int(text) and (high is None or int(text) <= high):
            return int(text)
        raise ValueError(f"{text!r} is not a whole number {span}")

    return parse


def parse_wait(text: str) -> float | None:
    """Return so many seconds: ``90``, ``90s``, ``5m``, ``1h``; 30 for ``true``, ``None`` for ``false``."""
    if text in GO_BOOLS and not text.isdigit():
        return 30.0 if GO_BOOLS[text] else None
    match = re.fullmatch(r"([0-9]{1,6})(s|m|h|)", text)
    if match is None:
        raise ValueError(f"{text!r} is no time such as 30s, 5m or 1h")
    return float(match[1]) * {"m": 60.0, "h": 3600.0}.get(match[2], 1.0)


def parse_delay(text: str) -> float:
    """Return so many seconds, 0.1 or more: ``2``, ``0.5s``, ``1m``."""
    match = re.fullmatch(r"([0-9]{1,5}(?:\.[0-9]{1,3})?)(s|m|)", text)
    seconds = 0.0 if match is None else float(match[1]) * (60.0 if match[2] == "m" else 1.0)
    if seconds < 0.1:
        raise ValueError(f"{text!r} is no time such as 2s, 0.5s or 1m (0.1s at least)")
    return seconds


def parse_watch(text: str) -> float | None:
    """Return likewise; 2 for ``true``, ``None`` for ``false``."""
    if text in GO_BOOLS and not text.isdigit():
        return 2.0 if GO_BOOLS[text] else None
    return parse_delay(text)


def parse_offload(text: str) -> Offload:
    """Return the offloads that ``auto``, ``off`` or a comma list of rungs asks for."""
    if text in ("auto", "off"):
        return Offload() if text == "auto" else NO_OFFLOAD
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in Offload().names()]
    if unknown:
        hint = did_you_mean(unknown[0], ("auto", "off", *Offload().names()))
        raise ValueError(f"{unknown[0]!r} is not auto, off or one of {', '.join(Offload().names())}{hint}")
    return replace(NO_OFFLOAD, **{name.replace("-", "_"): True for name in names})


def parse_workers(text: str) -> int:
    """Return a number of workers, 0 for ``auto``."""
    return 0 if text == "auto" else whole(1, 256)(text)


def parse_source_ports(text: str) -> int:
    """Return a number of outer source ports, 0 for none beside the one that is received on."""
    if text not in ("0", "2", "4", "8", "16", "32"):
        raise ValueError(f"{text!r} is not 0, 2, 4, 8, 16 or 32")
    return int(text)


def choice(*words: str) -> Callable[[str], str]:
    """Return a parser that takes one of `words`."""

    def parse(text: str) -> str:
        if text in words:
            return text
        raise ValueError(f"{text!r} is not one of {', '.join(words)}{did_you_mean(text, words)}")

    return parse


def names_of(*words: str) -> Callable[[str], tuple[str, ...]]:
    """Return a parser of ``all`` or a comma list of `words`, which come out in their order, each once."""

    def parse(text: str) -> tuple[str, ...]:
        given = words if text == "all" else tuple(word.strip() for word in text.split(","))
        unknown = [word for word in given if word not in words]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(words)}{did_you_mean(unknown[0], words)}")
        return tuple(word for word in words if word in given)

    return parse


def parse_path(text: str) -> Path:
    """Read the path of a file."""
    if not text:
        raise ValueError("the path is empty")
    return Path(text)


def parse_optional_path(text: str) -> Path | None:
    """Read the path of a file; empty means none, as in flanneld."""
    return Path(text) if text else None


def parse_secret_file(text: str) -> str:
    """Return the secret in a file, which may come later; an empty name means none."""
    from flannel_udp.files.secret import secret_in  # noqa: PLC0415 - only where it is asked for

    return secret_in(Path(text)) if text else ""


def parse_regex(text: str) -> str:
    """Check a regular expression and return it as it is."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None
    return text


def parse_listen_ip(text: str) -> str:
    """Check an IPv4 or IPv6 address to listen on and return it as it is."""
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError(f"{text!r} names an interface: give an address without a zone, or ::")
    return text


def parse_optional_ipv4(text: str) -> IPv4Address | None:
    """Read an IPv4 address; empty means none, as in flanneld."""
    try:
        return IPv4Address(text) if text else None
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 address such as 192.0.2.1") from None


def parse_public_ip(text: str) -> IPv4Address | None:
    """Read the address by which other hosts reach this one; empty means the interface's, as in flanneld."""
    address = parse_optional_ipv4(text)
    _check_dialled(address)
    return address


def parse_public_ipv6(text: str) -> IPv6Address | None:
    """Read it for IPv6."""
    try:
        address = IPv6Address(text) if text else None
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv6 address such as 2001:db8::1") from None
    if address is not None and address.scope_id is not None:
        raise ValueError(f"{text!r} names an interface of this host, which means nothing on others")
    _check_dialled(address)
    return address


def _check_dialled(address: IPv4Address | IPv6Address | None) -> None:
    from flannel_udp.netconf.addresses import why_not_dialled  # noqa: PLC0415 - --help and --version need none of it

    why = None if address is None else why_not_dialled(address)
    if why is not None:
        raise ValueError(f"{address} {why}: give the address by which other hosts reach this one")


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """Read a network without host bits."""
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a network such as 10.1.0.0/16") from None


def parse_reachable(text: str) -> str:
    """Check an IP address to be reached and return it as it is; empty means none."""
    return parse_listen_ip(text) if text else text


def parse_registry(text: str) -> str:
    """Check `etcd` or `file:PATH` and return it as it is."""
    kind, _, path = text.partition(":")
    if text == "etcd" or (kind == "file" and path):
        return text
    raise ValueError(f"{text!r} is neither etcd nor file:PATH")


def parse_endpoints(text: str) -> tuple[str, ...]:
    """Read etcd's client URLs, separated by commas."""
    if "@" in text:  # before anything is echoed: a password may stand in front of the sign
        raise ValueError("an endpoint holds no user and password: give them as --etcd-username and --etcd-password")
    from flannel_udp.registry.urls import parse_endpoint  # noqa: PLC0415 - --help and --version need none of it

    items = [item.strip() for item in text.split(",")]
    for item in items:
        try:
            parse_endpoint(item)
        except ValueError:
            raise ValueError(
                f"{item!r} is not a URL such as http://192.0.2.1:2379 (several are joined by commas)"
            ) from None
    return tuple(items)  # a bare host:port too, as Go's etcd client does


def parse_api_url(text: str) -> str:
    """Check the URL of a Kubernetes API server, which may have a path, and return it as it is; empty means none."""
    if "@" in text:
        raise ValueError("the URL holds no user and password: they belong in a kubeconfig")
    from flannel_udp.registry.urls import split_url  # noqa: PLC0415 - as above

    try:
        if text:
            split_url(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a URL such as https://192.0.2.1:6443") from None
    return text


_LABEL = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"


def parse_annotation_prefix(text: str) -> str:
    """Check a prefix of annotations, `example.org` or `example.org/name`, and return it as it is."""
    if not re.fullmatch(rf"({_LABEL}\.)+{_LABEL}(/[a-z0-9_-]*)?", text):
        raise ValueError(f"{text!r} is not a lower-case domain name such as example.org, or example.org/name")
    return text
