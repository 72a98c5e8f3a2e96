"""The hosts that a registry's servers are on, for those who ask which way packets to them take."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from flannel_udp.options import Options
from flannel_udp.registry.urls import parse_endpoint, split_url


@dataclass(frozen=True, slots=True)
class Server:
    """One server: what it is to us, and its host as the flags have it, a name or an address."""

    what: str
    host: str

    @property
    def is_name(self) -> bool:
        """Whether a resolver is needed to reach it."""
        try:
            ip_address(self.host)
        except ValueError:
            return True
        return False


def servers_of(options: Options) -> list[Server]:
    """Return the registry's servers; a file has none. Raises `UsageError` for a kubeconfig that cannot be read."""
    if options.kube.subnet_mgr:
        from flannel_udp.registry.kube.options import api_server  # noqa: PLC0415 - an extra, not installed everywhere

        url = api_server(options.kube)
        return [] if url is None else [Server(f"the API server {url}", split_url(url).hostname or "")]
    if options.registry != "etcd":
        return []
    urls = [parse_endpoint(url).url for url in options.etcd.urls]
    return [Server(f"the etcd endpoint {url}", split_url(url).hostname or "") for url in urls]
