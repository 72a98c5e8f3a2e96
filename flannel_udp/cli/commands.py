"""All commands beside the agent, by name, in the order in which help shows them."""

from __future__ import annotations

from collections.abc import Mapping

from flannel_udp.cli.asking_commands import ASKING_COMMANDS
from flannel_udp.cli.command import Command
from flannel_udp.cli.config_commands import CONFIG_COMMANDS
from flannel_udp.cli.host_commands import HOST_COMMANDS
from flannel_udp.cli.lab_commands import LAB_COMMANDS
from flannel_udp.cli.lease_commands import LEASE_COMMANDS
from flannel_udp.cli.monitor_commands import MONITOR_COMMANDS
from flannel_udp.cli.route_commands import ROUTE_COMMANDS

COMMANDS: Mapping[str, Command] = {
    **CONFIG_COMMANDS,
    **ASKING_COMMANDS,
    **ROUTE_COMMANDS,
    **LEASE_COMMANDS,
    **MONITOR_COMMANDS,
    **HOST_COMMANDS,
    **LAB_COMMANDS,
}
