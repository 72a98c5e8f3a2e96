import select
from collections.abc import Sequence
from typing import Any

from flannel_udp._fastpath.routes import RouteTable
from flannel_udp._fastpath.routes6 import RouteTable6

PROBE_IDENTIFIER: int
PATH_LIMIT_MIN_BYTES: dict[int, int]
ENCAPSULATIONS: dict[str, int]
SOURCE_CHECKS: dict[str, int]

def watch(tun_fd: int, *udp_fds: int) -> select.epoll: ...

class Engine:
    def __init__(
        self,
        tun_fd: int,
        udp_fd: int,
        icmp_fd: int,
        port: int,
        source_check: str = "strict",
        vnet_bytes: int = 10,
        dscp: int = 0,
        segment: bool = False,
        join_tcp: bool = False,
        join_udp: bool = False,
        lanes: Sequence[int] = (),
        ports: int = 1,
        encapsulation: str = "udp",
        vni: int = 0,
        own_mac: int = 0,
        version: int = 4,
        beside: Engine | None = None,
    ) -> None: ...
    def attach(
        self,
        tun_fd: int,
        udp_fd: int,
        segment: bool = False,
        join_tcp: bool = False,
        join_udp: bool = False,
        lanes: Sequence[int] = (),
        ports: int = 1,
        epoll: select.epoll | None = None,
    ) -> None: ...
    def fileno(self) -> int: ...
    def poll(self, linger_ms: int = 0, busy_us: int = 0) -> int: ...
    @property
    def segments(self) -> bool: ...
    @property
    def joins_tcp(self) -> bool: ...
    @property
    def joins_udp(self) -> bool: ...
    @property
    def tun_errno(self) -> int: ...
    def publish(self, table: RouteTable | RouteTable6) -> None: ...
    def forward_until(self, boottime_ns: int | None) -> None: ...
    def forget_path_mtus(self) -> None: ...
    def set_inner_mtu(self, n_bytes: int) -> None: ...
    def reclaim(self) -> int: ...
    def counters(self) -> dict[str, Any]: ...
    def drop_samples(self) -> list[tuple[str, str, int, int, bytes, int, bytes, bytes, int, int]]: ...
    def peer_counters(self, peer: int) -> tuple[int, int, int, int]: ...
    def sample_peers(self, first: int, n: int) -> list[tuple[int, int, int, int]]: ...
    def limit_path_mtu(self, peer: int, address: int, n_bytes: int) -> None: ...
    def close(self) -> None: ...
