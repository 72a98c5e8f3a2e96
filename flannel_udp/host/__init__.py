"""The host around the tunnel: interface choice, netlink, subnet.env."""
