"""Run `python -m flannel_udp` as `flannel-udp`."""

import sys

from flannel_udp.cli.main import main

sys.exit(main())
