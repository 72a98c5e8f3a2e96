"""The commands beside the agent: what each takes, says and does; `lab` brings its own arguments, see cli.

What a command needs is imported when it runs.
"""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load the registry clients)

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from flannel_udp.backend.table import BACKENDS
from flannel_udp.cli.arguments import Values, to_options
from flannel_udp.cli.flags import (
    CNI_INSTALL_FLAGS,
    CONTROL_SOCKET_FLAG,
    DOCKER_OPTS_FLAGS,
    DOCTOR_CNI_FLAGS,
    FIREWALL_SHOW_FLAGS,
    INTERFACE_FLAGS,
    JSON_FLAG,
    KUBERNETES_FLAGS,
    PROBE_FLAG,
    REGISTRY_FLAGS,
    SUBNET_FILE_FLAG,
    Flag,
)
from flannel_udp.errors import ConfigError, UsageError
from flannel_udp.options import DEFAULT_SUBNET_FILE

if TYPE_CHECKING:
    from flannel_udp.host.firewall.rules import Rules
    from flannel_udp.model import Prefix
    from flannel_udp.netconf.config import ParsedConfig
    from flannel_udp.registry import Registry

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what its help says, its flags, its one argument (name and explanation) and its code."""

    summary: str
    details: str
    run: Callable[[Values], int]
    flags: Mapping[str, tuple[Flag, ...]]
    argument: tuple[str, str] | None = None


def _config_check(given: Values) -> int:
    parsed = _checked(_read(given["FILE"]), given)
    sys.stdout.write(f"{parsed.config.to_json()}\n")
    return 0


def _config_get(given: Values) -> int:
    raw = _with_registry(given, lambda registry: registry.read_config())
    sys.stdout.buffer.write(raw if raw.endswith(b"\n") else raw + b"\n")
    return 0


def _config_put(given: Values) -> int:
    from flannel_udp.cli import config_put

    raw = _read(given["FILE"])
    _checked(raw, given)  # before the registry is asked
    outcome = _with_registry(given, lambda registry: config_put.put_config(registry, raw, _parse))
    if given.get("json"):
        sys.stdout.write(json.dumps(config_put.document_of(outcome), indent=2) + "\n")
    else:
        config_put.show_outcome(outcome, sys.stdout)
    _warn(outcome.warnings)
    return 0


def _status(given: Values) -> int:
    from flannel_udp.admin import client, show

    _show(given, client.fetch_status(to_options(given).control_socket), show.show_status)
    return 0


def _peers(given: Values) -> int:
    from flannel_udp.admin import client, show

    path = to_options(given).control_socket
    if given.get("probe"):
        n_peers = client.fetch_status(path)["peers"]
        peers = client.fetch_probed_peers(path, _progress(f"of {n_peers:,} peers asked"))
    else:
        peers = client.fetch_peers(path)
    _show(given, peers, show.show_peers)
    return 0


def _progress(what: str) -> Callable[[int], None]:
    """Return what says on standard error how far a command is, every second once it has taken two."""
    from time import monotonic

    due_s = monotonic() + 2.0

    def say(n: int) -> None:
        nonlocal due_s
        if monotonic() >= due_s:
            due_s = monotonic() + 1.0
            sys.stderr.write(f"flannel-udp: {n:,} {what}\n")

    return say


def _route_get(given: Values) -> int:
    from flannel_udp.admin import client, show

    route = client.fetch_route(to_options(given).control_socket, given["ADDRESS"])
    _show(given, route, show.show_route)
    return 0


def _doctor(given: Values) -> int:
    from flannel_udp.doctor import cni, examine, show
    from flannel_udp.doctor.finding import Verdict

    bin_dirs = (given["bin-dir"],) if "bin-dir" in given else cni.BIN_DIRS
    found = examine.examine(to_options(given), given.get("conf-dir", cni.CONF_DIR), bin_dirs)
    if given.get("json"):
        sys.stdout.write(json.dumps([item.row() for item in found], indent=2) + "\n")
    else:
        show.show(found, sys.stdout)
    return 1 if any(item.verdict is Verdict.FAULT for item in found) else 0


def _iface_show(given: Values) -> int:
    from flannel_udp.host import interface, interface_why

    options = to_options(given).interface
    host = interface.gather(options, interface.VERSIONS)
    versions = interface.VERSIONS if host.has_ipv6 else interface.VERSIONS[:1]
    choice = interface.decide(options, host, versions)
    (interface_why.show_json if given.get("json") else interface_why.show)(choice, host, sys.stdout, versions)
    if choice.interface is None:
        raise interface.no_interface(choice, host, versions)
    return 0


def _firewall_show(given: Values) -> int:
    from flannel_udp.admin.show import show_json
    from flannel_udp.host.firewall.owner import suffix_of
    from flannel_udp.host.firewall.show import show_document, show_text

    rules, network = _rules(given)
    shown = rules, given.get("dialect", ""), suffix_of(network) if given.get("suffix") else ""
    if given.get("json"):
        show_json(show_document(*shown), sys.stdout)
    else:
        sys.stdout.write(show_text(*shown))
    return 0


def _rules(given: Values) -> tuple[Rules, Prefix]:
    from flannel_udp.files import subnet_env
    from flannel_udp.host.firewall.rules import rules_for

    options = to_options(given)
    file, masquerade = options.subnet_file, options.firewall.ip_masq
    network: Prefix | None = given.get("network")
    subnet: Prefix | None = given.get("subnet")
    if network is None and subnet is None:
        env = subnet_env.read(file)
        if env is None:
            raise UsageError(f"there is no {file}: name another --subnet-file, or --network and --subnet")
        network, subnet, masquerade = env.network, env.subnet.v4, given.get("ip-masq", env.ip_masq)
    if network is None or subnet is None:
        raise UsageError("--network and --subnet come together, or neither: then the subnet file says both")
    if subnet.network_address not in network or subnet.prefixlen < network.prefixlen:
        raise UsageError(f"the subnet {subnet} is not inside the network {network}")
    forward, plain = options.firewall.iptables_forward_rules, options.firewall.ip_masq_fully_random_disable
    rules = rules_for(network, subnet, masquerade=masquerade, forward=forward, random_fully=not plain)
    return rules, network


def _show(given: Values, document: Result, for_people: Callable[[Result, TextIO], None]) -> None:
    from flannel_udp.admin.show import show_json

    if given.get("json"):
        show_json(document, sys.stdout)
    else:
        for_people(document, sys.stdout)


def _cni_install(given: Values) -> int:
    from flannel_udp.cni import install

    written = [install.install_plugin(given.get("bin-dir", Path("/opt/cni/bin")), given.get("python", sys.executable))]
    if "conf-dir" in given and (path := install.install_conflist(given["conf-dir"])):
        written.append(path)
    sys.stdout.write("".join(f"wrote {path}\n" for path in written))
    return 0


def _docker_opts(given: Values) -> int:
    from flannel_udp.files.docker_opts import DockerOpts, write_docker_opts

    wanted = DockerOpts(
        individual=given.get("i", False),
        combined=given.get("c", False),
        key=given.get("k", "DOCKER_OPTS"),
        ip_masq=not given.get("m", False),
    )
    subnet_file, output = given.get("f", DEFAULT_SUBNET_FILE), given.get("d", Path("/run/docker_opts.env"))
    _warn(write_docker_opts(subnet_file, output, wanted, os.environ))
    return 0


def _read(name: str) -> bytes:
    from flannel_udp.netconf.reader import MAX_CONFIG_BYTES

    try:
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
            return file.read(MAX_CONFIG_BYTES + 1)  # one more than is allowed: the parser says that it is too long
    except OSError as error:
        raise UsageError(f"cannot read {name!r}: {error.strerror}") from None


def _checked(raw: bytes, given: Values) -> ParsedConfig:
    """Return the configuration, its warnings said; its faults are printed as a document, too, if that is wanted."""
    try:
        parsed = _parse(raw)
    except ConfigError as error:
        if given.get("json"):
            sys.stdout.write(json.dumps({"ok": False, "faults": error.faults}, indent=2) + "\n")
        raise
    _warn(parsed.warnings)
    return parsed


def _parse(raw: bytes) -> ParsedConfig:
    from flannel_udp.netconf.config import parse_network_config

    return parse_network_config(raw, BACKENDS)


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        sys.stderr.write(f"flannel-udp: warning: {warning}\n")


def _with_registry(given: Values, call: Callable[[Registry], Awaitable[Result]]) -> Result:
    import asyncio

    from flannel_udp.registry.open import open_registry

    async def run() -> Result:
        registry = open_registry(to_options(given))
        try:
            return await call(registry)
        finally:
            await registry.close()

    return asyncio.run(run())


_ASK = {"agent": (CONTROL_SOCKET_FLAG, JSON_FLAG)}
_DOCUMENT = ("FILE", "the JSON document; - reads standard input")

COMMANDS: Mapping[str, Command] = {
    "config check": Command(
        "check a network configuration and print it with all defaults filled in",
        f"Backend.Type is one of {', '.join(BACKENDS)}; each checks its own options.\n"
        "Every fault is one line on standard error, and the exit code is 2. What is printed can be stored as it is.\n"
        'With --json the faults are printed too: {"ok": false, "faults": ["..."]}.\n\n'
        'example: echo \'{"Network": "10.1.0.0/16"}\' | flannel-udp config check -',
        _config_check,
        {"output": (JSON_FLAG,)},
        _DOCUMENT,
    ),
    "config get": Command(
        "print the network configuration that the registry holds",
        "It is printed as it is stored, unchecked.\n\n"
        "example: flannel-udp config get --registry=file:/etc/flannel/registry.json",
        _config_get,
        {"registry": REGISTRY_FLAGS},
    ),
    "config put": Command(
        "check a network configuration and store it in the registry",
        "It is stored as it is, without the defaults; a faulty one is not stored. What it changes is printed, a line\n"
        'a key, defaults filled in; with --json as {"stored": true, "former": "valid", "changes": [...], ...}.\n'
        "An agent reads it when it starts: those that run keep what they have.\n\n"
        "example: flannel-udp config put net-conf.json --etcd-endpoints=http://192.0.2.10:2379",
        _config_put,
        {"registry": REGISTRY_FLAGS, "output": (JSON_FLAG,)},
        _DOCUMENT,
    ),
    "status": Command(
        "show what the agent of this host does: backend, lease, interface, counters, and what is in the way",
        "The agent is asked over its control socket, which only its user may open (root).\n\n"
        "example: flannel-udp status --json",
        _status,
        _ASK,
    ),
    "peers": Command(
        "list the other hosts, their subnets and what was exchanged with them",
        "Packets and bytes count from the start of the agent; - where the kernel carries them, which does not count\n"
        "by peer. Where there is something to say, columns tell the last ICMP error about packets to a peer, what the\n"
        "path there carries, and what keeps packets from it. With --probe the agent asks each peer by an ICMP echo.\n\n"
        "example: flannel-udp peers --probe",
        _peers,
        {"agent": (CONTROL_SOCKET_FLAG, JSON_FLAG, PROBE_FLAG)},
    ),
    "route get": Command(
        "tell where a packet for an address would go: which peer, prefix and interface, or why nowhere",
        "example: flannel-udp route get 10.1.15.7",
        _route_get,
        _ASK,
        ("ADDRESS", "an IPv4 or IPv6 address"),
    ),
    "doctor": Command(
        "ask of this host what keeps pods' packets from passing, and say what mends it",
        "One line a question: ok; note, what may become a fault; skip, what could not be asked, and why; FAULT, what\n"
        "is wrong, why, and after `mend:` the command that mends it. Nothing is changed, and no agent needs to run:\n"
        "what it would know is then taken from the subnet file and the registry. Run it as root, with the flags (or\n"
        "the environment) that the agent has; it takes ten seconds or so. docs/troubleshooting.md goes by symptom.\n"
        'With --json: [{"question": "forwarding", "ok": false, "what": "...", "mend": "sysctl ..."}, ...].\n'
        "exit codes: 0 nothing is wrong, 1 something is, 2 wrong usage.\n\n"
        "example: sudo flannel-udp doctor --etcd-endpoints=http://192.0.2.10:2379 --iface=eth1",
        _doctor,
        {
            "agent": (CONTROL_SOCKET_FLAG, SUBNET_FILE_FLAG),
            "registry": REGISTRY_FLAGS,
            "Kubernetes": KUBERNETES_FLAGS,
            "interface": INTERFACE_FLAGS,
            "container runtimes": DOCTOR_CNI_FLAGS,
            "output": (JSON_FLAG,),
        },
    ),
    "iface show": Command(
        "tell which interface the agent would take with these flags, and why each other one not",
        "Nothing is changed, no agent needs to run, and anybody may ask. The exit code is 1 where there is nothing to\n"
        "take: an agent would wait for it.\n\n"
        "example: flannel-udp iface show --iface-can-reach=192.0.2.10",
        _iface_show,
        {"interface": INTERFACE_FLAGS, "output": (JSON_FLAG,)},
    ),
    "firewall show": Command(
        "print the firewall rules of a host, as nft -f and iptables-restore --noflush take them",
        "Nothing is asked of the kernel and nothing is changed; root is not needed. Network, subnet and whether to\n"
        "masquerade are read from the subnet file unless they are given. Where another overlay's rules have flannel's\n"
        "names, an agent's own are under those with a suffix: --suffix.\n\n"
        "example: flannel-udp firewall show --network=10.1.0.0/16 --subnet=10.1.15.0/24 --ip-masq --dialect=nftables",
        _firewall_show,
        {"rules": (*FIREWALL_SHOW_FLAGS, SUBNET_FILE_FLAG), "output": (JSON_FLAG,)},
    ),
    "cni install": Command(
        "put the CNI plugin `flannel` where container runtimes look for it",
        "It is one file, which needs Python and nothing else; it may be copied to other hosts.\n\n"
        "example: flannel-udp cni install --conf-dir=/etc/cni/net.d",
        _cni_install,
        {"where": CNI_INSTALL_FLAGS},
    ),
    "docker-opts": Command(
        "write the Docker daemon's options for this host's subnet",
        "As flannel's mk-docker-opts.sh does; with neither -i nor -c both forms are written.\n"
        "What the environment has of DOCKER_OPTS comes first, without --bip, --mtu and --ip-masq: ours are written,\n"
        "and one of the user's own that says something else is named.\n\n"
        "example: flannel-udp docker-opts -k DOCKER_NETWORK_OPTIONS -d /run/flannel/docker",
        _docker_opts,
        {"options": DOCKER_OPTS_FLAGS},
    ),
}
