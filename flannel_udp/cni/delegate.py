"""The delegate's configuration: what flannel's plugin hands on, filled in with this host's subnet. Pure."""

from __future__ import annotations

from flannel_udp.cni.errors import INVALID_CONFIG, CniError
from flannel_udp.cni.request import Document
from flannel_udp.files.subnet_env import SubnetEnv


def delegate_conf(conf: Document, env: SubnetEnv) -> Document:
    """Return the configuration for the delegate of `conf` on a host with this subnet. Raises `CniError`."""
    given = conf.get("delegate") or {}
    for key in ("name", "ipam"):
        if key in given:
            raise CniError(INVALID_CONFIG, f"'delegate' must not have {key!r}: flannel fills it in")
    if not isinstance(given.get("type", ""), str):
        raise CniError(INVALID_CONFIG, "'type' in 'delegate' must be a string")
    delegate = {
        "type": "bridge",
        # Somebody has to masquerade what leaves for other networks: the bridge, if the agent does not.
        "ipMasq": not env.ip_masq,
        "mtu": env.mtu,
        **given,
        "name": conf["name"],
        "ipam": _ipam(conf.get("ipam") or {}, env),
    }
    if delegate["type"] == "bridge":
        delegate.setdefault("isGateway", True)
    # The others would let it call itself for ever.
    if delegate["type"] == conf.get("type"):
        raise CniError(INVALID_CONFIG, f"'type' in 'delegate' is {delegate['type']!r}, the plugin itself")
    for key in ("cniVersion", "runtimeConfig"):
        if conf.get(key):
            delegate[key] = conf[key]
    return delegate


def _ipam(given: Document, env: SubnetEnv) -> Document:
    routes = given.get("routes") or []
    if not isinstance(routes, list) or not all(isinstance(route, dict) for route in routes):
        raise CniError(INVALID_CONFIG, "'routes' in 'ipam' must be a list of objects")
    # IPv4 first: the order decides which address a pod names first.
    subnets = [subnet for subnet in (env.subnet.v4, env.subnet.v6) if subnet]
    return {
        "type": "host-local",
        **given,
        "ranges": [[{"subnet": str(subnet)}] for subnet in subnets],
        "routes": [*routes, *({"dst": str(network)} for network in env.networks)],
    }
