"""The choice of the external interface as a test wants it: the interface, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence

from flannel_udp.host.interface import decide, no_interface
from flannel_udp.host.interface_facts import HostNetwork
from flannel_udp.model import Interface
from flannel_udp.options import InterfaceOptions


def choose(options: InterfaceOptions, host: HostNetwork, versions: Sequence[int] = (4,)) -> Interface:
    """Return what is chosen. Raises `FlannelError` where nothing is, `UsageError` for a broken regex."""
    choice = decide(options, host, versions)
    if choice.interface is None:
        raise no_interface(choice, host, versions)
    return choice.interface
