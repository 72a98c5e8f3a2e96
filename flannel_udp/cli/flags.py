"""The flags: one declarative table.

Names, meanings and defaults are flanneld's, so that its unit files and manifests work unchanged; flags of our own say
so. Every flag is also an environment variable, `FLANNELD_` + upper case with dashes as underscores; the flag wins.
As in flanneld an empty variable counts as unset, and a variable for a repeatable flag holds one value, never a list (a
comma may be part of a regular expression).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from flannel_udp.cli.parsers import (
    choice,
    parse_annotation_prefix,
    parse_api_url,
    parse_bool,
    parse_endpoints,
    parse_listen_ip,
    parse_network,
    parse_offload,
    parse_optional_path,
    parse_path,
    parse_public_ip,
    parse_public_ipv6,
    parse_reachable,
    parse_regex,
    parse_registry,
    parse_secret_file,
    parse_source_ports,
    parse_workers,
    whole,
)
from flannel_udp.options import DEFAULT_SUBNET_FILE, Offload, Options


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: how it is named, read and explained.

    `parse` turns its text into a value and raises `ValueError` with the reason; `field` is the attribute of `Options`
    it sets (dotted), empty for a flag that sets none, which then says its default in `default`. A `switch` takes a
    value only after `=`. `words` are what a shell may complete its value to.
    """

    name: str
    help: str
    metavar: str = "TEXT"
    parse: Callable[[str], Any] = str
    field: str = ""
    default: str = ""
    switch: bool = False
    repeatable: bool = False
    secret: bool = False
    in_environment: bool = True
    words: tuple[str, ...] = ()

    @property
    def spelling(self) -> str:
        """The flag as help and errors show it."""
        return f"-{self.name}" if len(self.name) == 1 else f"--{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable that stands in for the flag."""
        return "FLANNELD_" + self.name.upper().replace("-", "_")

    @property
    def explanation(self) -> str:
        """What it is for, whether it may be repeated, and its default, as help and manual pages have it."""
        repeated, default = "; may be repeated" if self.repeatable else "", self.default_text
        return f"{self.help}{repeated} (default {default})" if default else f"{self.help}{repeated}"

    @property
    def default_text(self) -> str:
        """The default for the help text; empty when it is "nothing"."""
        value = attrgetter(self.field)(Options()) if self.field else self.default
        if isinstance(value, tuple):
            return ",".join(value)
        if isinstance(value, bool):
            return "true" if value else ""
        return "" if value is None else str(value)


def _switch(name: str, help_: str, field: str = "", default: str = "") -> Flag:
    return Flag(name, help_, "BOOL", parse_bool, field, default, switch=True)


def choice_flag(
    name: str, help_: str, words: tuple[str, ...], field: str = "", default: str = "", *, in_environment: bool = True
) -> Flag:
    """Return a flag whose value is one of `words`."""
    parse, shown = choice(*words), "|".join(words)
    return Flag(name, help_, shown, parse, field, default, in_environment=in_environment, words=words)


REGISTRY_FLAGS = (
    Flag("registry", "etcd, or file:PATH for one JSON file (ours)", "WHERE", parse_registry, "registry"),
    Flag("etcd-endpoints", "URLs of the etcd members, joined by commas", "URLS", parse_endpoints, "etcd.endpoints"),
    Flag("etcd-prefix", "where flannel's keys begin", "KEY", field="etcd.prefix"),
    Flag("etcd-keyfile", "our private key (PEM)", "FILE", parse_optional_path, "etcd.keyfile"),
    Flag("etcd-certfile", "our certificate (PEM)", "FILE", parse_optional_path, "etcd.certfile"),
    Flag(
        "etcd-cafile", "the authority that signed etcd's certificate (PEM)", "FILE", parse_optional_path, "etcd.cafile"
    ),
    Flag("etcd-username", "user of etcd", "USER", field="etcd.username"),
    Flag(
        "etcd-password",
        "password of that user; everybody sees it in `ps`: better --etcd-password-file or FLANNELD_ETCD_PASSWORD",
        "SECRET",
        field="etcd.password",
        secret=True,
    ),
    Flag("etcd-password-file", "a file with that password (ours)", "FILE", parse_secret_file, "etcd.password"),
)

INTERFACE_FLAGS = (
    Flag(
        "iface",
        "name or address of the interface to use; the first match wins",
        "NAME|IP",
        field="interface.iface",
        repeatable=True,
    ),
    Flag(
        "iface-regex",
        "regular expression tried on every address, then on every name; asked when no --iface matches",
        "REGEX",
        parse_regex,
        "interface.iface_regex",
        repeatable=True,
    ),
    Flag(
        "iface-can-reach",
        "the interface that routes to this address",
        "IP",
        parse_reachable,
        "interface.iface_can_reach",
    ),
    Flag(
        "public-ip",
        "the IPv4 address other hosts dial, when it is not the interface's own",
        "IP",
        parse_public_ip,
        "interface.public_ip",
    ),
    Flag("public-ipv6", "the same for IPv6", "IP", parse_public_ipv6, "interface.public_ipv6"),
)

LEASE_FLAGS = (
    Flag(
        "subnet-lease-renew-margin",
        "minutes left on the lease at which it is renewed, 1 to 1439",
        "MINUTES",
        whole(1, 1439),
        "subnet_lease_renew_margin",
    ),
    _switch("release-on-exit", "give the subnet back when the agent stops (ours)", "release_on_exit"),
    choice_flag(
        "on-lease-loss",
        "what to do when the lease is gone; flanneld exits (ours)",
        ("reacquire", "exit"),
        "on_lease_loss",
    ),
)

CONTROL_SOCKET_FLAG = Flag(
    "control-socket", "socket that status, peers and route ask (ours)", "FILE", parse_path, "control_socket"
)

SUBNET_FILE_FLAG = Flag(
    "subnet-file", "where subnet and MTU are written for container runtimes", "FILE", parse_path, "subnet_file"
)

HOST_FLAGS = (
    SUBNET_FILE_FLAG,
    Flag(
        "state-dir",
        "where the host keeps the id by which it knows its own leases again (ours)",
        "DIR",
        parse_path,
        "state_dir",
    ),
    CONTROL_SOCKET_FLAG,
    Flag(
        "takeover",
        "take over from the agent that runs here, without losing a packet (ours)",
        "BOOL",
        parse_bool,
        "takeover",
        switch=True,
    ),
    choice_flag(
        "after-takeover",
        "once another agent has taken over: end, or wait for SIGTERM and do nothing, as a container that ends would be "
        "started again (ours)",
        ("end", "wait"),
        "after_takeover",
    ),
)

_RULES_FLAGS = (
    _switch("ip-masq", "masquerade what leaves the overlay", "firewall.ip_masq"),
    _switch(
        "ip-masq-fully-random-disable",
        "masquerade with predictable source ports",
        "firewall.ip_masq_fully_random_disable",
    ),
    _switch("iptables-forward-rules", "accept forwarded overlay traffic", "firewall.iptables_forward_rules"),
)

FIREWALL_FLAGS = (
    *_RULES_FLAGS,
    Flag(
        "iptables-resync",
        "seconds between two checks of those rules, in either dialect",
        "SECONDS",
        whole(1),
        "firewall.iptables_resync",
    ),
    _switch("ip-blackhole-route", "drop what no pod of this host's subnet takes", "firewall.ip_blackhole_route"),
    _switch(
        "clean-on-exit",
        "when the agent stops, remove these rules, that route and what the kernel has of the backend (routes to peers, "
        "the kernel's tunnel device) (ours)",
        "firewall.clean_on_exit",
    ),
)

FIREWALL_SHOW_FLAGS = (
    *_RULES_FLAGS,
    Flag("network", "the overlay network", "CIDR", parse_network, in_environment=False),
    Flag("subnet", "the host's subnet of it", "CIDR", parse_network, in_environment=False),
    choice_flag("dialect", "only this one", ("nftables", "iptables"), in_environment=False),
    Flag(
        "suffix", "with the names beside another overlay's rules", "BOOL", parse_bool, switch=True, in_environment=False
    ),
)

HEALTH_FLAGS = (
    Flag("healthz-ip", "address that /healthz, /readyz and /metrics listen on", "IP", parse_listen_ip, "healthz_ip"),
    Flag("healthz-port", "port they listen on; 0 turns them off", "PORT", whole(0, 65535), "healthz_port"),
    Flag(
        "metrics-peers",
        "how many peers have packets and bytes of their own in /metrics, those with most bytes, with their addresses; "
        "0 to 100 (ours)",
        "N",
        whole(0, 100),
        "metrics_peers",
    ),
    Flag(
        "v",
        "how much is logged: 0 what people should know, 1 also our steps, 2 each change that we hear of, 3 each "
        "question that we ask, 4 the lines of libraries",
        "N",
        whole(0),
        "verbosity",
    ),
    choice_flag(
        "log-format",
        "form of the log: text, klog (as flanneld's lines), or json, an object a line (ours)",
        ("text", "klog", "json"),
        "log_format",
    ),
)

DATAPLANE_FLAGS = (
    choice_flag(
        "datapath",
        "who carries VXLAN and IPIP: the kernel, our own packet path, or auto: the kernel where it can (ours)",
        ("auto", "kernel", "userspace"),
        "dataplane.datapath",
    ),
    choice_flag(
        "source-check",
        "how strictly the sender of a packet is checked (ours)",
        ("strict", "loose", "off"),
        "dataplane.source_check",
    ),
    Flag(
        "offload",
        "what to use where the kernel grants it: auto (all), off, or some of "
        + ", ".join(Offload().names())
        + " (ours)",
        "auto|off|LIST",
        parse_offload,
        "dataplane.offload",
    ),
    Flag(
        "workers",
        "data threads, 256 at most; auto means one a core, up to 64 (ours)",
        "N|auto",
        parse_workers,
        "dataplane.workers",
    ),
    Flag(
        "busy-poll-us",
        "how long a data thread spins after a packet before it waits, in microseconds (ours)",
        "N",
        whole(0, 1_000_000),
        "dataplane.busy_poll_us",
    ),
    Flag(
        "source-ports",
        "outer source ports, by which the underlay tells flows apart; 0: the port that we receive on, VXLAN: 16 (ours)",
        "N",
        parse_source_ports,
        "dataplane.source_ports",
    ),
    Flag(
        "tx-queue-len",
        "packets that wait at our TUN device at most (ours)",
        "N",
        whole(1, 1_000_000),
        "dataplane.tx_queue_packets",
    ),
)

KUBERNETES_FLAGS = (
    _switch("kube-subnet-mgr", "take subnets from Kubernetes instead of etcd", "kube.subnet_mgr"),
    Flag("kube-api-url", "URL of the API server", "URL", parse_api_url, "kube.api_url"),
    Flag(
        "kubeconfig-file",
        "how to reach the API server; without it and the URL, the pod's service account",
        "FILE",
        parse_optional_path,
        "kube.kubeconfig_file",
    ),
    Flag(
        "kube-annotation-prefix",
        "prefix of the node's annotations",
        "NAME",
        parse_annotation_prefix,
        "kube.annotation_prefix",
    ),
    Flag("net-config-path", "the network configuration", "FILE", parse_path, "kube.net_config_path"),
    _switch(
        "set-node-network-unavailable",
        "clear the node's condition NetworkUnavailable",
        "kube.set_node_network_unavailable",
    ),
)

IGNORED_FLAGS = tuple(
    Flag(name, "", switch=True)
    for name in ("logtostderr", "alsologtostderr", "add_dir_header", "one_output", "skip_headers", "skip_log_headers")
) + tuple(
    Flag(name, "")
    for name in ("log_dir", "log_file", "log_file_max_size", "log_backtrace_at", "stderrthreshold", "vmodule")
)
"""What Go's glog and klog take: real deployments pass them. Ours logs to stderr and needs none of them."""

JSON_FLAG = Flag("json", "print JSON for programs", "BOOL", parse_bool, switch=True, in_environment=False)

PROBE_FLAG = Flag("probe", "ask every peer by an ICMP echo", "BOOL", parse_bool, switch=True, in_environment=False)

CNI_INSTALL_FLAGS = (
    Flag(
        "bin-dir",
        "where the runtime looks for plugins",
        "DIR",
        parse_path,
        default="/opt/cni/bin",
        in_environment=False,
    ),
    Flag(
        "conf-dir",
        "also write 10-flannel.conflist there unless it exists, such as /etc/cni/net.d",
        "DIR",
        parse_path,
        in_environment=False,
    ),
    Flag("python", "the Python that runs it, 3.10 or later", "FILE", default="this one", in_environment=False),
)

DOCTOR_CNI_FLAGS = (
    Flag(
        "conf-dir",
        "the folder of CNI configurations",
        "DIR",
        parse_path,
        default="/etc/cni/net.d",
        in_environment=False,
    ),
    Flag(
        "bin-dir",
        "the only folder of CNI plugins",
        "DIR",
        parse_path,
        default="/opt/cni/bin, and those of distributions",
        in_environment=False,
    ),
)

DOCKER_OPTS_FLAGS = (
    Flag("f", "flannel's file", "FILE", parse_path, default=str(DEFAULT_SUBNET_FILE), in_environment=False),
    Flag("d", "the file to write", "FILE", parse_path, default="/run/docker_opts.env", in_environment=False),
    Flag("i", "every option as a variable of its own", "BOOL", parse_bool, switch=True, in_environment=False),
    Flag("c", "all options in one variable", "BOOL", parse_bool, switch=True, in_environment=False),
    Flag("k", "name of that variable", "KEY", default="DOCKER_OPTS", in_environment=False),
    Flag("m", "leave --ip-masq out, for an old Docker", "BOOL", parse_bool, switch=True, in_environment=False),
)

AGENT_GROUPS: Mapping[str, tuple[Flag, ...]] = {
    "registry": REGISTRY_FLAGS,
    "interface": INTERFACE_FLAGS,
    "lease": LEASE_FLAGS,
    "host": HOST_FLAGS,
    "firewall": FIREWALL_FLAGS,
    "health and logs": HEALTH_FLAGS,
    "packet path of our own": DATAPLANE_FLAGS,
    "Kubernetes": KUBERNETES_FLAGS,
}

AGENT_FLAGS = tuple(flag for group in AGENT_GROUPS.values() for flag in group) + IGNORED_FLAGS
