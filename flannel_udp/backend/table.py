"""The backends there are: a new one is a module with a `BACKEND` and a line here. Importing the table imports none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flannel_udp.backend.protocol import Backend

_MODULES = {
    "udp": "flannel_udp.backend.udp",
    "vxlan": "flannel_udp.backend.vxlan",
    "ipip": "flannel_udp.backend.ipip",
    "host-gw": "flannel_udp.backend.host_gw",
    "alloc": "flannel_udp.backend.alloc",
    "aws-vpc": "flannel_udp.backend.cloud.aws",
}

NEED_A_PROVIDER = frozenset({"aws-vpc"})
"""Those whose packets take a cloud's routes: no lab has them."""


class _Backends(Mapping[str, "Backend"]):
    """Imports a backend when it is looked up: a host of one needs nothing of the others, and help texts of none."""

    def __getitem__(self, kind: str) -> Backend:
        backend: Backend = import_module(_MODULES[kind]).BACKEND
        return backend

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)

    def __contains__(self, kind: object) -> bool:
        return kind in _MODULES


BACKENDS: Mapping[str, Backend] = _Backends()
"""By type, as `Backend.Type` of the network configuration spells it in lower case."""
