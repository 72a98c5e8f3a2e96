"""`lease list`, `show`, `release` and `reserve`: who holds which subnet, asked of the registry from any host."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load the registry clients)

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from flannel_udp.cli.arguments import Values, to_options
from flannel_udp.cli.command import Argument, Command, progress, show, with_registry
from flannel_udp.cli.flags import JSON_FLAG, KUBERNETES_FLAGS, REGISTRY_FLAGS, Flag
from flannel_udp.cli.parsers import parse_bool, parse_public_ip, parse_public_ipv6
from flannel_udp.errors import FlannelError, UsageError

if TYPE_CHECKING:
    from flannel_udp.cli.lease_rows import Held
    from flannel_udp.model import Subnet
    from flannel_udp.registry import Registry

_WHERE = {"registry": REGISTRY_FLAGS, "Kubernetes": KUBERNETES_FLAGS}
_YES_FLAG = Flag("yes", "do not ask back", "BOOL", parse_bool, switch=True, in_environment=False)
_HOST_FLAGS = (
    Flag("public-ip", "the IPv4 address of the host that it is for", "IP", parse_public_ip, in_environment=False),
    Flag("public-ipv6", "its IPv6 address", "IP", parse_public_ipv6, in_environment=False),
)


def _list(given: Values) -> int:
    from flannel_udp.cli import lease_rows

    held = with_registry(given, _gather)
    show(given, [lease.row for lease in held], lease_rows.show_table)
    return 0


def _show(given: Values) -> int:
    from flannel_udp.cli import lease_rows

    found = lease_rows.find(with_registry(given, _gather), given["LEASE"])
    show(given, [lease.row for lease in found], lease_rows.show_pages)
    return 0


async def _gather(registry: Registry) -> list[Held]:
    from flannel_udp.cli import lease_rows

    return await lease_rows.gather(registry, progress("leases asked when they end"))


def _release(given: Values) -> int:
    from flannel_udp.cli import lease_rows

    _refuse_kubernetes(given, "released: it ends with its node (kubectl delete node)")
    _require_terminal(given)
    lease = lease_rows.find_one(with_registry(given, _gather), given["LEASE"])
    _ask_back(given, lease, "release it? An agent that has it stops carrying packets until it has a subnet again")
    with_registry(given, lambda registry: registry.delete(lease.entry))
    return _done(given, "released", lease)


def _reserve(given: Values) -> int:
    from flannel_udp.cli import lease_rows
    from flannel_udp.model import LeaseAttrs

    _refuse_kubernetes(given, "reserved: it is its node's for as long as that lives")
    subnet = lease_rows.read_subnet(given["LEASE"])
    _require_terminal(given)
    wanted = LeaseAttrs(given.get("public-ip"), given.get("public-ipv6"))
    held = with_registry(given, _gather)
    lease = lease_rows.find_exactly(held, given["LEASE"])
    if lease is None:
        lease_rows.check_free(held, subnet, wanted)
        with_registry(given, lambda registry: _check_fits(registry, subnet))
        lease = lease_rows.planned(subnet, wanted)
        question = "reserve it? No other host gets it then, whether that one uses it or not"
    else:
        lease_rows.check_kept(lease, wanted)
        if lease.entry.reserved:
            return _done(given, "reserved", lease, f"nothing done: {lease.name} is a reservation already")
        question = "make it a reservation? It stays its host's for good then, until somebody releases it"
    _ask_back(given, lease, question)
    entry = lease.entry if lease.exists else None
    reserved = with_registry(given, lambda registry: registry.reserve(lease.entry.key, lease.entry.value, entry))
    return _done(given, "reserved", lease_rows.Held(reserved, None))


async def _check_fits(registry: Registry, subnet: Subnet) -> None:
    from flannel_udp.backend.table import BACKENDS
    from flannel_udp.cli import lease_rows
    from flannel_udp.netconf.config import parse_network_config

    lease_rows.check_fits(parse_network_config(await registry.read_config(), BACKENDS).config, subnet)


def _refuse_kubernetes(given: Values, why: str) -> None:
    if to_options(given).kube.subnet_mgr:
        raise FlannelError(f"Kubernetes hands out the subnets, so that none can be {why}")


def _require_terminal(given: Values) -> None:
    """Raise `UsageError` where nobody can be asked back; before anything is read."""
    if not given.get("yes") and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("there is no terminal to ask back on, and nothing was done: give --yes")


def _ask_back(given: Values, lease: Held, question: str) -> None:
    """Show what is about to change, and raise `FlannelError` unless somebody agrees."""
    if given.get("yes"):
        return
    sys.stderr.write(f"{lease.line}\n{question}. [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().casefold() not in ("y", "yes"):
        raise FlannelError("nothing was done")


def _done(given: Values, what: str, lease: Held, said: str | None = None) -> int:
    if given.get("json"):
        sys.stdout.write(json.dumps({what: lease.row}, indent=2) + "\n")
    else:
        sys.stdout.write(f"{said or f'{what} {lease.name}'}\n")
    return 0


def _command(
    summary: str, details: str, run: Callable[[Values], int], *flags: Flag, argument: str | None = None
) -> Command:
    own = {"what": flags} if flags else {}
    named = () if argument is None else (Argument("LEASE", argument),)
    return Command(summary, details, run, {**own, **_WHERE, "output": (JSON_FLAG,)}, named)


LEASE_COMMANDS: Mapping[str, Command] = {
    "lease list": _command(
        "list all leases of the registry: subnet, host, backend, when each ends, whose mark it bears",
        "From any host that reaches the registry; no agent needs to run. A reservation never ends. The mark is there\n"
        "where an agent of ours wrote the lease: `flannel-udp status` on a host tells the one of that host. An entry\n"
        "that cannot be understood is told, too, with the reason why hosts ignore it.\n\n"
        "example: flannel-udp lease list --etcd-endpoints=http://192.0.2.10:2379",
        _list,
    ),
    "lease show": _command(
        "show one lease with all that it says: public IPs, VNI and MAC address of vxlan, when it ends",
        "The exit code is 1 where there is none.\n\nexample: flannel-udp lease show 10.1.15.7",
        _show,
        argument="a subnet, an address in it, its host's public IP, or flannel's key (10.1.15.0-24)",
    ),
    "lease release": _command(
        "delete a lease or a reservation, so that another host may get its subnet",
        "It is shown first, and deleted only if nobody has written it since. An agent that has it stops carrying\n"
        "packets at once and seeks a subnet anew, the same one if that is free still: stop it before, to give the\n"
        "subnet to somebody else. Quote a key of both families: it holds an &.\n\n"
        "example: flannel-udp lease release 10.1.15.0/24",
        _release,
        _YES_FLAG,
        argument="a subnet, or flannel's key (10.1.15.0-24&fd00:1:2::-64)",
    ),
    "lease reserve": _command(
        "make a lease a reservation, which never ends, or reserve a free subnet for a host",
        "A lease keeps what it says, and its agent goes on with it. A free subnet is reserved for the host whose\n"
        "public IP is given: its agent takes it when it starts. Quote a key of both families: it holds an &.\n\n"
        "example: flannel-udp lease reserve 10.1.15.0/24 --public-ip=192.0.2.1",
        _reserve,
        *(*_HOST_FLAGS, _YES_FLAG),
        argument="a subnet, or flannel's key (10.1.15.0-24&fd00:1:2::-64)",
    ),
}
