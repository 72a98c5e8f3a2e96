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
    "ali-vpc": "flannel_udp.backend.cloud.ali",
    "gce": "flannel_udp.backend.cloud.gce",
    "tencent-vpc": "flannel_udp.backend.cloud.tencent",
}
_NEED_A_PROVIDER = frozenset({"aws-vpc", "ali-vpc", "gce", "tencent-vpc"})


class _Backends(Mapping[str, "Backend"]):
    """Imports a backend when it is looked up: a host of one needs nothing of the others, and help texts of none."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = modules

    def __getitem__(self, kind: str) -> Backend:
        backend: Backend = import_module(self._modules[kind]).BACKEND
        return backend

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, kind: object) -> bool:
        return kind in self._modules


BACKENDS: Mapping[str, Backend] = _Backends(_MODULES)
"""By type, as `Backend.Type` of the network configuration spells it in lower case."""

LAB_BACKENDS: Mapping[str, Backend] = _Backends({k: v for k, v in _MODULES.items() if k not in _NEED_A_PROVIDER})
"""Those of them that a lab can have: it has no cloud whose routes packets could take."""
