"""Make `bench` importable: at the end of the path, where the checkout cannot hide the installed flannel_udp."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
