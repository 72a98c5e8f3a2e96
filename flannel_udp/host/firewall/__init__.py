"""Masquerade and forwarding rules: pure data, two dialects (nftables, iptables), and what keeps them right.

`rules` says which rules, `nftables` and `iptables` how a dialect writes, reads and applies them, `keeper` when.
"""
