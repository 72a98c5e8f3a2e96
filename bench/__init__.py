"""Benches: what the packet path is worth beside the kernel's own tunnel and beside a naive loop."""

import importlib.util
import sys

# `python -m bench.forward` imports this first, while argv[0] still is "-m": in an unbuilt clone one line instead of the
# traceback of whichever import fails first.
if sys.argv[:1] == ["-m"] and importlib.util.find_spec("flannel_udp._fastpath") is None:
    _PREPARE = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]'"
    sys.exit(f"bench: flannel-udp is not built for {sys.executable}: {_PREPARE}, then .venv/bin/python -m bench.NAME")
