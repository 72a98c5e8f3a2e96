from collections.abc import Sequence
from typing import Any

from flannel_udp._fastpath.routes import RouteTable

SOURCE_CHECKS: dict[str, int]

class Engine:
    def __init__(
        self,
        tun_fd: int,
        udp_fd: int,
        icmp_fd: int,
        port: int,
        source_check: str = "strict",
        vnet_bytes: int = 10,
        dscp: int = -1,
        segment: bool = False,
        join_tcp: bool = False,
        join_udp: bool = False,
        lanes: Sequence[int] = (),
    ) -> None: ...
    def attach(
        self,
        tun_fd: int,
        udp_fd: int,
        segment: bool = False,
        join_tcp: bool = False,
        join_udp: bool = False,
        lanes: Sequence[int] = (),
    ) -> None: ...
    def fileno(self) -> int: ...
    def poll(self, linger_ms: int = 0, busy_us: int = 0) -> int: ...
    @property
    def segments(self) -> bool: ...
    @property
    def tun_errno(self) -> int: ...
    def publish(self, table: RouteTable) -> None: ...
    def forward_until(self, boottime_ns: int | None) -> None: ...
    def forget_path_mtus(self) -> None: ...
    def reclaim(self) -> int: ...
    def counters(self) -> dict[str, Any]: ...
    def peer_counters(self, peer: int) -> tuple[int, int, int, int]: ...
    def close(self) -> None: ...
