"""Run `python -m flannel_udp` as `flannel-udp`."""

import sys

from flannel_udp.cli import main

sys.exit(main())
