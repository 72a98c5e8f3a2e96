"""Build a lab's underlay: the bridge in the middle, routers with the networks behind them, and everybody's cable."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable

from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns
from flannel_udp.lab.cables import EXIT, Relay, lay
from flannel_udp.lab.node import Node, interface_address
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.sites import GATEWAY_NUMBER, network_behind

logger = logging.getLogger(__name__)

BRIDGE, SITE = "underlay", "site"
"""The bridge in the middle, and that of the network behind each router."""


def require_nat(plan: Plan) -> None:
    """Raise `FlannelError` with one clear line if this machine cannot translate addresses and the plan has a NAT."""
    if any(router.nat for router in plan.routers.values()) and shutil.which("nft") is None:
        raise FlannelError("a router with nat needs the command `nft`: install the package nftables")


class Underlay:
    """The underlay of a plan: `net`, the routers, and whoever is joined to them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.net = Node(plan, "net")
        self.routers = [Node(plan, name) for name in plan.router_names]
        self._relays: list[Relay] = []

    def switch_of(self, name: str) -> Node:
        """Return where the cable of a host or a router ends: the router that it is behind, or `net`."""
        above = self.plan.behind.get(name)
        return next((router for router in self.routers if router.name == above), self.net)

    def relay_of(self, node: Node) -> Relay | None:
        """Return the relay of a node's cable, ``None`` where it needs none."""
        return Relay(node, self.switch_of(node.name)) if self.plan.cable(node.name).is_relayed else None

    def build(self) -> None:
        """Make the bridge in the middle, the routers, and what is behind them; namespaces are there already."""
        self.net.configure("link set lo up")
        # Always by IPv4 too: whoever asks the lab's etcd by hand does it from here.
        self._make_bridge(self.net, None, {4, *self.plan.versions})
        if self.routers:
            _route(self.net)
        for router in self.routers:
            self.join(router)
            self._make_bridge(router, router.name, self.plan.versions)
            if self.plan.routers[router.name].nat and 4 in self.plan.versions:
                self._translate(router)
        for node in (self.net, *self.routers):
            self._add_routes(node, node.name if node is not self.net else None)

    def join(self, node: Node) -> None:
        """Give a host or a router its cable, its addresses and its routes, and let it forward."""
        plan, switch = self.plan, self.switch_of(node.name)
        lay(node, switch, BRIDGE if switch is self.net else SITE)
        if (relay := self.relay_of(node)) is not None:
            self._relays.append(relay)
            relay.start()
        addresses = [
            interface_address(plan.underlay_of(node.name, version), plan.network(node.name, version))
            for version in plan.versions
        ]
        node.configure(
            "link set lo up",
            *(f"addr add {address} dev {EXIT}" for address in addresses),
            f"link set {EXIT} up",
            *(f"route add default via {plan.gateway(node.name, version)}" for version in plan.versions),
        )
        self._add_routes(node, plan.behind.get(node.name))
        _route(node)

    def end(self) -> None:
        """Collect the exit statuses of the relays that we have started."""
        for relay in self._relays:
            relay.collect()

    def _make_bridge(self, node: Node, router: str | None, versions: Iterable[int]) -> None:
        name, mtu = (BRIDGE if router is None else SITE), self.plan.mtu_behind(router)
        networks = [network_behind(router, version) for version in sorted(versions)]
        # A bridge has the MTU of its narrowest port until somebody sets it to another one. A router's keeps it, else
        # the router would know of a narrow link, and answer by ICMP what a switch loses.
        made = [f"link add {name} mtu {mtu} type bridge"]
        if router is not None:
            made = [f"link add {name} mtu {mtu - 1} type bridge", f"link set {name} mtu {mtu}"]
        node.configure(
            *made,
            *(f"addr add {interface_address(network[GATEWAY_NUMBER], network)} dev {name}" for network in networks),
            f"link set {name} up",
        )

    def _add_routes(self, node: Node, network: str | None) -> None:
        """Let a node that is on a network, or is its gateway, know the way to what is behind the routers there."""
        lines = [
            f"route add {behind} via {self.plan.underlay_of(router, version)}"
            for version in self.plan.versions
            for behind, router in self.plan.routes_on(network, version).items()
            if router != node.name
        ]
        if lines:
            node.configure(*lines)

    def _translate(self, router: Node) -> None:
        """Let what is behind a router go out by its address, and pass the overlay's port on as the plan says."""
        forward = self.plan.routers[router.name].forward
        chains = f'chain out {{\ntype nat hook postrouting priority srcnat\noifname "{EXIT}" masquerade\n}}\n'
        if forward is not None:
            to = f"ip daddr {self.plan.underlay_of(router.name, 4)} udp dport {self.plan.port} dnat to"
            host = self.plan.underlay_of(forward, 4)
            chains += f"chain in {{\ntype nat hook prerouting priority dstnat\n{to} {host}\n}}\n"
        router.run(["nft", "-f", "-"], stdin=f"table ip nat {{\n{chains}}}\n")


def _route(node: Node) -> None:
    """Let the node forward: a host between its pods and the other hosts', a router between the hosts."""
    settings = {"ipv4/ip_forward": 1}
    if 6 in node.plan.versions:
        settings["ipv6/conf/all/forwarding"] = 1
    netns.write_sysctls(node.namespace, settings)
