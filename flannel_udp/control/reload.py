"""What a reload (SIGHUP) does: read the network configuration again and say whether it is still the one in force.

It changes nothing. The subnet and what carries packets were made for the configuration that the agent began with, and
another network or backend makes another overlay: that takes a new start, on every host.
"""

from __future__ import annotations

import logging

from flannel_udp.control.retry import Parse
from flannel_udp.errors import ConfigError, FlannelError
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.registry import Registry

logger = logging.getLogger(__name__)


async def reload_config(registry: Registry, in_force: NetworkConfig, parse: Parse) -> None:
    """Compare the registry's network configuration with the one in force, and log what came of it. Never raises."""
    try:
        parsed = parse(await registry.read_config())
    except FlannelError as error:
        for line in error.faults if isinstance(error, ConfigError) else [str(error)]:
            logger.error("reload: %s; going on with the network configuration in force", line)
        return
    for warning in parsed.warnings:
        logger.warning("reload: network configuration: %s", warning)
    if parsed.config == in_force:
        logger.info("reload: the network configuration is the one in force")
    else:
        logger.warning("reload: the network configuration has changed: start the agent again to use it")
