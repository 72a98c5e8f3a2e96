from typing_extensions import Buffer

NO_ROUTE: int
OWN: int
PEERS_FROM: int

class RouteTable:
    def __init__(
        self,
        networks: Buffer,
        prefix_lens: Buffer,
        next_hops: Buffer,
        peer_addresses: Buffer,
        own_address: int = 0,
    ) -> None: ...
    def lookup(self, address: int) -> int: ...
    def peer_of(self, address: int) -> int: ...
    def peer_address(self, next_hop: int) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
