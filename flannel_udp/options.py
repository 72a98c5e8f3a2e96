"""What the command line and the environment decide: one frozen value, named like flanneld's flags.

The field `etcd_endpoints` is the flag `--etcd-endpoints` and the variable `FLANNELD_ETCD_ENDPOINTS`. The room `cli`
fills it in; everything else only reads it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

DEFAULT_CONTROL_SOCKET = Path("/run/flannel/flannel-udp.sock")
DEFAULT_SUBNET_FILE = Path("/run/flannel/subnet.env")
DEFAULT_STATE_DIR = Path("/var/lib/flannel-udp")


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """How to reach etcd. An endpoint is a URL or a bare ``host:port``; the scheme says whether TLS is spoken."""

    endpoints: tuple[str, ...] = ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
    prefix: str = "/coreos.com/network"
    keyfile: Path | None = None
    certfile: Path | None = None
    cafile: Path | None = None
    username: str = ""
    password: str = field(default="", repr=False)

    @property
    def has_certificates(self) -> bool:
        """Whether any of the three files is given."""
        return any((self.keyfile, self.certfile, self.cafile))

    @property
    def urls(self) -> tuple[str, ...]:
        """The endpoints with their schemes: where none is given it is https with certificates, as for Go's client."""
        scheme = "https" if self.has_certificates else "http"
        return tuple(text if "://" in text else f"{scheme}://{text.strip()}" for text in self.endpoints)


@dataclass(frozen=True, slots=True)
class KubeOptions:
    """Whether Kubernetes hands out the subnets, and how to reach its API server."""

    subnet_mgr: bool = False
    """True: Kubernetes is the registry, whatever `Options.registry` says."""
    api_url: str = ""
    kubeconfig_file: Path | None = None
    annotation_prefix: str = "flannel.alpha.coreos.com"
    net_config_path: Path = Path("/etc/kube-flannel/net-conf.json")
    set_node_network_unavailable: bool = True
    """Clear the node's condition NetworkUnavailable once it carries traffic."""


@dataclass(frozen=True, slots=True)
class InterfaceOptions:
    """How to choose the external interface, in flannel's order; all empty means the default route's."""

    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    iface_can_reach: str = ""
    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None

    @property
    def by_flags(self) -> bool:
        """Whether one of the flags that name an interface is given: then ``--public-ip`` chooses none."""
        return bool(self.iface or self.iface_regex or self.iface_can_reach)


@dataclass(frozen=True, slots=True)
class Offload:
    """One switch for each rung of the fallback ladder, all on by default; the flag spells them with dashes."""

    tso: bool = True
    """The TUN hands over TCP super-packets and partial checksums."""
    uso: bool = True
    """The TUN hands over UDP super-packets."""
    udp_segment: bool = True
    """Datagrams of one size leave in one call, and the kernel (or the card) cuts them."""
    udp_gro: bool = True
    """Datagrams of one size arrive in one piece."""
    join_tcp: bool = True
    """TCP segments are joined into super-packets before they are written to the TUN."""
    join_udp: bool = True
    """UDP datagrams likewise."""

    def names(self) -> list[str]:
        """Return the rungs that are on, as the command line spells them."""
        return [name.replace("_", "-") for name, on in asdict(self).items() if on]

    def __str__(self) -> str:
        """Return the flag's text: ``auto``, ``off`` or a list."""
        return "auto" if self == Offload() else ",".join(self.names()) or "off"


NO_OFFLOAD = Offload(**dict.fromkeys((field.name for field in fields(Offload)), False))


@dataclass(frozen=True, slots=True)
class DataplaneOptions:
    """How packets are moved."""

    datapath: str = "auto"
    """Who carries VXLAN and IPIP: ``kernel``, ``userspace`` (our packet path), or ``auto``: the kernel where it can."""
    source_check: str = "strict"
    """``strict``, ``loose`` or ``off``: see docs/architecture.md, trust."""
    offload: Offload = Offload()
    """What to use where the kernel grants it."""
    workers: int = 1
    """Data threads, each with a TUN queue, a socket and an engine; 0: one a core, see `count_workers`."""
    busy_poll_us: int = 0
    """Microseconds for which a data thread spins after a packet before it waits for the next one."""
    source_ports: int = 0
    """Outer source ports of each worker's packets, a power of two; 0: the backend's own number."""
    tx_queue_packets: int = 5000
    """flannel0's transmit queue: 50 ms at 100,000 packets a second, see docs/decisions/0016."""


@dataclass(frozen=True, slots=True)
class FirewallOptions:
    """Which rules the agent puts into the host's firewall, and how long they stay."""

    ip_masq: bool = False
    ip_masq_fully_random_disable: bool = False
    iptables_forward_rules: bool = True
    iptables_resync: int = 5
    """Seconds between two checks of the rules."""
    ip_blackhole_route: bool = False
    clean_on_exit: bool = False
    """Remove rules, blackhole route and kernel routes when the agent stops; otherwise they stay for the next run."""


@dataclass(frozen=True, slots=True)
class Options:
    """Everything one run of the agent was told."""

    registry: str = "etcd"
    """``etcd`` or ``file:PATH``."""
    etcd: EtcdOptions = EtcdOptions()
    kube: KubeOptions = KubeOptions()
    interface: InterfaceOptions = InterfaceOptions()
    subnet_file: Path = DEFAULT_SUBNET_FILE
    state_dir: Path = DEFAULT_STATE_DIR
    """Where the host's id is kept, by which it knows its leases again: not shared with other hosts."""
    subnet_lease_renew_margin: int = 60
    """Minutes left on the lease at which it is renewed, 1 to 1439."""
    release_on_exit: bool = False
    on_lease_loss: str = "reacquire"
    """``reacquire`` or ``exit`` (flanneld's way)."""
    dataplane: DataplaneOptions = DataplaneOptions()
    firewall: FirewallOptions = FirewallOptions()
    healthz_ip: str = "0.0.0.0"  # noqa: S104 - flanneld's default; nothing listens before a port is given
    healthz_port: int = 0
    """0 turns the health server off."""
    metrics_peers: int = 0
    """So many peers, those that most bytes were exchanged with, have metrics of their own; 0: none."""
    control_socket: Path = DEFAULT_CONTROL_SOCKET
    takeover: bool = False
    """Take over from the agent that runs on the control socket."""
    after_takeover: str = "end"
    """What to do once another agent has taken over from this one: ``end``, or ``wait`` for SIGTERM, doing nothing."""
    verbosity: int = 0
    log_format: str = "text"
    """``text``, ``klog`` or ``json``."""
