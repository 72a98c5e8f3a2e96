"""The host around what carries packets: interface choice, netlink, upkeep, firewall, privileges."""
