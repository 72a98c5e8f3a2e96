"""About this host, without asking an agent: `doctor`, `iface show`, `firewall show`, `cni install`, `docker-opts`."""
# ruff: noqa: PLC0415 (imports inside functions: help and mistakes must not load what asks the host)

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flannel_udp.cli.arguments import Values, to_options
from flannel_udp.cli.command import Command, warn
from flannel_udp.cli.flags import (
    CNI_INSTALL_FLAGS,
    CONTROL_SOCKET_FLAG,
    DOCKER_OPTS_FLAGS,
    DOCTOR_CNI_FLAGS,
    FIREWALL_SHOW_FLAGS,
    INTERFACE_FLAGS,
    JSON_FLAG,
    KUBERNETES_FLAGS,
    REGISTRY_FLAGS,
    SUBNET_FILE_FLAG,
)
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.options import DEFAULT_SUBNET_FILE

if TYPE_CHECKING:
    from flannel_udp.host.firewall.rules import Rules
    from flannel_udp.model import Prefix


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
    from flannel_udp.host.interface_facts import VERSIONS, gather

    wanted = to_options(given)
    options = wanted.interface
    facts = gather(options, VERSIONS)
    versions = VERSIONS if facts.has_ipv6 else VERSIONS[:1]
    choice, host = interface.decide_outside(options, facts, versions, _overlays(wanted.subnet_file))
    (interface_why.show_json if given.get("json") else interface_why.show)(choice, host, sys.stdout, versions)
    if choice.interface is None:
        raise interface.no_interface(choice, host, versions)
    return 0


def _overlays(file: Path) -> list[Prefix]:
    """Return the overlay networks, where an agent has written them down; one that starts asks its registry."""
    from flannel_udp.files import subnet_env

    try:
        env = subnet_env.read(file)
    except FlannelError:
        return []
    return [] if env is None else list(env.networks)


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
        version = 6 if env.network is None else 4
        network, subnet = env.network_of(version), env.subnet.of(version)
        masquerade = given.get("ip-masq", env.ip_masq)
    if network is None or subnet is None:
        raise UsageError("--network and --subnet come together, or neither: then the subnet file says both")
    if subnet.network_address not in network or subnet.prefixlen < network.prefixlen:
        raise UsageError(f"the subnet {subnet} is not inside the network {network}")
    forward, plain = options.firewall.iptables_forward_rules, options.firewall.ip_masq_fully_random_disable
    rules = rules_for(network, subnet, masquerade=masquerade, forward=forward, random_fully=not plain)
    return rules, network


def _cni_install(given: Values) -> int:
    from flannel_udp.cni import install

    written = [install.install_plugin(given.get("bin-dir", Path("/opt/cni/bin")), given.get("python", sys.executable))]
    if "conf-dir" in given and (path := install.install_conflist(given["conf-dir"], to_options(given).subnet_file)):
        written.append(path)
    if given.get("json"):
        sys.stdout.write(json.dumps({"written": [str(path) for path in written]}, indent=2) + "\n")
    else:
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
    # The flag's own variable would be FLANNELD_F: the file is the agent's.
    agents = Path(os.environ.get(SUBNET_FILE_FLAG.variable) or DEFAULT_SUBNET_FILE)
    subnet_file, output = given.get("f", agents), given.get("d", Path("/run/docker_opts.env"))
    for warning in write_docker_opts(subnet_file, output, wanted, os.environ):
        warn(warning)
    return 0


HOST_COMMANDS: Mapping[str, Command] = {
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
        "take: an agent would wait for it. The subnet file says which addresses are the overlay's: none is\n"
        "taken while there is another one.\n\n"
        "example: flannel-udp iface show --iface-can-reach=192.0.2.10",
        _iface_show,
        {"interface": INTERFACE_FLAGS, "agent": (SUBNET_FILE_FLAG,), "output": (JSON_FLAG,)},
    ),
    "firewall show": Command(
        "print the firewall rules of a host, as nft -f and iptables-restore --noflush take them",
        "Nothing is asked of the kernel and nothing is changed; root is not needed. Network, subnet and whether to\n"
        "masquerade are read from the subnet file unless they are given; where that has both families they are\n"
        "IPv4's, and --network and --subnet of IPv6 print the other ones. Where another overlay's rules have\n"
        "flannel's names, an agent's own are under those with a suffix: --suffix.\n\n"
        "example: flannel-udp firewall show --network=10.1.0.0/16 --subnet=10.1.15.0/24 --ip-masq --dialect=nftables",
        _firewall_show,
        {"rules": (*FIREWALL_SHOW_FLAGS, SUBNET_FILE_FLAG), "output": (JSON_FLAG,)},
    ),
    "cni install": Command(
        "put the CNI plugin `flannel` where container runtimes look for it",
        "It is one file, which needs Python and nothing else; it may be copied to other hosts. Where the agent has\n"
        "another --subnet-file than the usual one, the configuration has to name it: give it here, too.\n\n"
        "example: flannel-udp cni install --conf-dir=/etc/cni/net.d",
        _cni_install,
        {"where": CNI_INSTALL_FLAGS, "agent": (SUBNET_FILE_FLAG,), "output": (JSON_FLAG,)},
    ),
    "docker-opts": Command(
        "write the Docker daemon's options for this host's subnet",
        "As flannel's mk-docker-opts.sh does; with neither -i nor -c both forms are written.\n"
        "Without -f the file is that of FLANNELD_SUBNET_FILE, if that is set.\n"
        "What the environment has of DOCKER_OPTS comes first, without --bip, --mtu and --ip-masq: ours are written,\n"
        "and one of the user's own that says something else is named.\n\n"
        "example: flannel-udp docker-opts -k DOCKER_NETWORK_OPTIONS -d /run/flannel/docker",
        _docker_opts,
        {"options": DOCKER_OPTS_FLAGS},
    ),
}
