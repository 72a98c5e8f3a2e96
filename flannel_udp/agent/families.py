"""What the agent has once for each family that is on: firewall rules, and an eye on a former subnet's bridges."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from flannel_udp.agent.conditions import Conditions
from flannel_udp.agent.last_errors import LastErrors
from flannel_udp.agent.passages import passages_of
from flannel_udp.backend.protocol import Network
from flannel_udp.files.subnet_env import SubnetEnv
from flannel_udp.host.disabled_ipv6 import why_ipv6_is_off
from flannel_udp.host.firewall.keeper import Firewall
from flannel_udp.host.firewall.owner import Owner
from flannel_udp.host.firewall.rules import Rules, rules_for
from flannel_udp.host.former_bridges import Earlier, FormerBridges
from flannel_udp.model import Degradation, Interface, Lease, Prefix
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.options import FirewallOptions


@dataclass(frozen=True, slots=True)
class FamilyRooms:
    """Those of the family of `overlay`."""

    overlay: Prefix
    firewall: Firewall
    bridges: FormerBridges

    def rules(self, lease: Lease, options: FirewallOptions) -> Rules:
        """Return the firewall rules that a lease asks for; none where our subnet has no part of this family."""
        subnet = lease.subnet.of(self.overlay.version)
        if subnet is None:
            return Rules(self.overlay.version)
        return rules_for(
            *(self.overlay, subnet),
            masquerade=options.ip_masq,
            forward=options.iptables_forward_rules,
            random_fully=not options.ip_masq_fully_random_disable,
        )

    def carries(self, lease: Lease | None) -> bool:
        """Tell whether this host takes part by this family, as far as a lease says."""
        return lease is not None and lease.subnet.of(self.overlay.version) is not None

    def hold(self, lease: Lease | None) -> None:
        """Have bridges of other subnets than the lease's looked for from now on; ``None``: none."""
        self.bridges.hold(None if lease is None else lease.subnet.of(self.overlay.version))


def rules_stand(families: Iterable[FamilyRooms], lease: Lease | None) -> bool:
    """Tell whether some packets of ours pass: where the rules of one family do not stand the other one carries."""
    return any(family.firewall.stands for family in families if family.carries(lease))


async def keep_rules(families: Sequence[FamilyRooms], lease: Lease, options: FirewallOptions) -> None:
    """Have a lease's rules kept; return when they stand, or those of one family, and others cannot be had just now."""
    for family in families:
        family.firewall.want(family.rules(lease, options))
    await asyncio.gather(*(family.firewall.tried() for family in families))
    waits = [asyncio.ensure_future(family.firewall.stood()) for family in families if family.carries(lease)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def lacking(config: NetworkConfig, external: Interface, lease: Lease, *, kubernetes: bool) -> Iterator[Degradation]:
    """Yield by which of the families that are on this host takes no part, and why."""
    for overlay in config.overlays:
        version = overlay.version
        alone = f"this host takes no part in the overlay by IPv{version}"
        lack = f"our entry {lease.entry.key} has no IPv{version} part"
        if external.of(version) is None:
            text = f"interface {external.name} has no IPv{version} address: {alone} until it gets one"
            if version == 6 and (off := why_ipv6_is_off(external.name)) is not None:
                text += f": {off}"
        elif lease.subnet.of(version) is None and kubernetes:
            text = f"our node has no podCIDR in the overlay network {overlay}: {alone}: "
            text += "it is given to new nodes only: delete the node, and start its kubelet again"
        elif lease.subnet.of(version) is not None or lease.attrs.address_of(version) is None:
            continue  # or why nothing is carried is said already
        elif lease.entry.reserved:
            text = f"{lack}: {alone}: write it with both, or delete it, and start the agent again"
        else:
            text = f"{lack} yet: {alone} until the registry has given it one"
        yield Degradation("host", text, version)


def open_families(
    config: NetworkConfig,
    options: FirewallOptions,
    former: SubnetEnv | None,
    conditions: Conditions,
    packets: tuple[Network, Callable[[], Interface], Callable[[], Lease | None]],
    *,
    errors: LastErrors,
) -> tuple[FamilyRooms, ...]:
    """Return the rooms of each family that is on, IPv4 first.

    `former` is what subnet.env says of an earlier run; `packets` has the network, what tells the external interface,
    and what tells the lease.
    """
    network, external, lease = packets

    def open_family(overlay: Prefix) -> FamilyRooms:
        version = overlay.version
        before, had = (None, None) if former is None else (former.network_of(version), former.subnet.of(version))
        note = partial(conditions.note, version=version)
        firewall = Firewall(
            Owner(overlay, before),
            note,
            lambda: passages_of(network, overlay, external(), lease()),
            nftables=config.enable_nftables,
            resync_s=options.iptables_resync,
            tell=errors.noter("firewall" if version == 4 else "firewall (IPv6)"),
        )
        earlier = Earlier({overlay, before or overlay}, set() if had is None else {had})
        return FamilyRooms(overlay, firewall, FormerBridges(earlier, note))

    return tuple(map(open_family, config.overlays))
