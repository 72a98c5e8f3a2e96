"""A lab's cables, by the names of the nodes at their ends: cut them, let them carry less, put them right again.

``h1`` is the cable between the host's eth0 and the bridge of the network that it is on, ``r1`` the router's uplink,
``h1/p1`` the cable between the pod's eth0 and cni0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flannel_udp.errors import FlannelError, UsageError, did_you_mean
from flannel_udp.lab import ethtool
from flannel_udp.lab.cables import EXIT, Relay
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Node
from flannel_udp.lab.plan import IPV6_MIN_MTU, MTU_MAX, MTU_MIN, RELAYED_MTU_MAX

Interfaces = Mapping[str, Mapping[str, Any]]
"""What `ip -json link` says, by interface."""
Ends = tuple[Interfaces, Interfaces]
"""Of a link: its node's, and those of the bridge's side."""


@dataclass(frozen=True, slots=True)
class Link:
    """A cable: `node` has one end, eth0; the other one is the port `port` of the bridge in `switch`."""

    node: Node
    switch: Node
    port: str
    mtu: int
    """Bytes that it carries while nothing is wrong."""
    cuts: bool
    """Whether super-packets are cut at its port, as the lab was built."""
    relay: Relay | None = None
    """What carries its frames, where it has delay or loss."""

    @property
    def name(self) -> str:
        """How commands call it."""
        return self.node.path

    def cut(self) -> None:
        """Take the cable out at the bridge: the node sees its carrier go, and keeps its addresses."""
        self.switch.configure(f"link set {self.port} down")
        if self.relay is not None:  # between two devices that know nothing of each other
            self.node.configure(f"link set {EXIT} carrier off")

    def carry(self, mtu: int) -> None:
        """Let both ends carry `mtu` bytes, super-packets' parts too: they are cut first. Raises `UsageError`."""
        high = MTU_MAX if self.relay is None else RELAYED_MTU_MAX
        if not MTU_MIN <= mtu <= high:
            raise UsageError(f"a link cannot carry {mtu} bytes: give {MTU_MIN} to {high}")
        if 6 in self.node.plan.versions and mtu < IPV6_MIN_MTU:
            raise UsageError(f"IPv6 needs links of {IPV6_MIN_MTU} bytes at least, not {mtu}")
        cuts = self.cuts or mtu != self.mtu
        ethtool.set_features(self.switch.namespace, self.port, dict.fromkeys(ethtool.CUTTING, not cuts))
        self.switch.configure(f"link set {self.port} mtu {mtu}")
        self.node.configure(f"link set {EXIT} mtu {mtu}")

    def faults(self, ends: Ends) -> list[str]:
        """Return in words what is not as it was built; nothing where all is well."""
        at_node, at_switch = ends
        if EXIT not in at_node or self.port not in at_switch:
            return [f"the link {self.name} was removed by hand"]
        found = [] if self._is_up(ends) else [f"the link {self.name} is cut"]
        if self.relay is not None and self.relay.pid() is None:
            found.append(f"the relay of the link {self.name} does not run")
        if (carried := self._carried(ends)) != self.mtu:
            found.append(f"the link {self.name} carries {carried} bytes")
        return found

    def heal(self, ends: Ends) -> list[str]:
        """Put right what `cut` and `carry` did, as the interfaces at its ends show; return it in words.

        Raises `FlannelError` where somebody has removed it.
        """
        at_node, at_switch = ends
        if EXIT not in at_node or self.port not in at_switch:
            raise FlannelError(f"the link {self.name} was removed by hand, and only a new lab has it again")
        healed = []
        if self.relay is not None and self.relay.pid() is None:
            self.relay.start()
            healed.append(f"{self.name}: the relay runs again")
        if not self._is_up(ends):
            if self.relay is not None:
                self.node.configure(f"link set {EXIT} carrier on")
            self.switch.configure(f"link set {self.port} up")  # last: it is what tells that all is done
            healed.append(f"{self.name}: the link is plugged in again")
        if self._carried(ends) != self.mtu:
            self.carry(self.mtu)
            healed.append(f"{self.name}: the link carries {self.mtu} bytes again")
        return healed

    def _is_up(self, ends: Ends) -> bool:
        return "UP" in ends[1][self.port]["flags"]

    def _carried(self, ends: Ends) -> int:
        """Return what passes, in bytes: what the end says that differs from the plan."""
        mtus: list[int] = [ends[0][EXIT]["mtu"], ends[1][self.port]["mtu"]]
        return next((mtu for mtu in mtus if mtu != self.mtu), self.mtu)


def links_of(lab: Lab) -> list[Link]:
    """Return all cables: those of the routers and hosts, and of the pods that are attached."""
    found = [_on_underlay(lab, router) for router in lab.routers]
    for host in lab.hosts:
        found.append(_on_underlay(lab, host))
        found += [Link(pod, host, pod.name, mtu, cuts=False) for pod in host.pods if (mtu := host.pods_mtu) is not None]
    return found


def _on_underlay(lab: Lab, node: Node) -> Link:
    plan, relay = lab.plan, lab.underlay.relay_of(node)
    cuts = relay is not None or plan.offload != "whole"
    return Link(node, lab.underlay.switch_of(node.name), node.name, plan.mtu_of(node.name), cuts, relay)


def link_of(lab: Lab, name: str) -> Link:
    """Return the cable of that name. Raises `FlannelError`, with the one that may be meant."""
    found = {link.name: link for link in links_of(lab)}
    if name not in found:
        shown = ", ".join(found)
        raise FlannelError(f"the lab {lab.name} has no link {name}: it has {shown}{did_you_mean(name, found)}")
    return found[name]


def interfaces_of(node: Node) -> Interfaces:
    """Return what a node's interfaces are like."""
    return {link["ifname"]: link for link in json.loads(node.run(["ip", "-json", "link", "show"]).stdout)}


def heal_links(lab: Lab, name: str | None = None) -> Iterator[str]:
    """Put all cables right, or the named one; yield what was wrong, in words. Raises `FlannelError`."""
    links = links_of(lab) if name is None else [link_of(lab, name)]
    for link, ends in looked_at(links):
        yield from link.heal(ends)


def looked_at(links: Iterable[Link], look: Callable[[Node], Interfaces] = interfaces_of) -> Iterator[tuple[Link, Ends]]:
    """Yield each cable with what the interfaces at its ends are like, as `look` finds; each node is asked once."""
    seen: dict[str, Interfaces] = {}

    def once(node: Node) -> Interfaces:
        if node.path not in seen:
            seen[node.path] = look(node)
        return seen[node.path]

    for link in links:
        yield link, (once(link.node), once(link.switch))
