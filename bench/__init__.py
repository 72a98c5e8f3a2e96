"""Benches: what the packet path is worth beside the kernel's own tunnel and beside a naive loop."""
