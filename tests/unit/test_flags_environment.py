"""Variables that look like a flag's and are none."""

from __future__ import annotations

from flannel_udp.cli.arguments import unknown_variables
from flannel_udp.cli.flags import AGENT_FLAGS


def test_a_variable_that_is_no_flags_is_named() -> None:
    environ = {"FLANNELD_IFACE": "eth0", "FLANNELD_IP_MASK": "true", "FLANNELD_LOGTOSTDERR": "true", "OTHER": "x"}
    (line,) = unknown_variables(AGENT_FLAGS, environ)
    assert line == "environment variable FLANNELD_IP_MASK is no flag's and ignored: did you mean FLANNELD_IP_MASQ?"
