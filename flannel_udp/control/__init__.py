"""Lease keeper, peer table and the synchroniser that publishes it.

The daemon puts them together: `retry.wait_for_config`, then `LeaseKeeper.acquire` and `Synchroniser.set_own`; `keep`
and `run` side by side. When `keep` returns, the lease is lost: stop forwarding, begin again with the configuration.

Of the room `registry` this one knows the protocol and the pure codecs in `registry.keys`, no store.
"""
