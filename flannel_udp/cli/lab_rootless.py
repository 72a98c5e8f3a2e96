"""What an ordinary user's lab has to do without, as one line before it is built."""

from __future__ import annotations

from flannel_udp.cli.command import warn
from flannel_udp.dataplane.underlay import BUFFER_BYTES, receive_buffer_here
from flannel_udp.host.privileges import check_tun
from flannel_udp.lab.plan import Plan

_USERSPACE = "--datapath=userspace"


def check_limits(plan: Plan) -> None:
    """Say what small socket buffers cost. Raises `FlannelError` if packets need a TUN device, and none can be made."""
    if not uses_packet_path(plan):
        return
    check_tun()
    say_cost(receive_buffer_here())  # more than it is the right of the machine's root alone, not a user namespace's


def uses_packet_path(plan: Plan) -> bool:
    """Tell whether our packet path carries packets for sure; some tunnels use it where the kernel lacks theirs."""
    return plan.backend == "udp" or any(_USERSPACE in given for given in plan.host_args.values())


def say_cost(n_bytes: int) -> None:
    """Say what it costs that sockets have no more than so many bytes to receive into, if it costs anything."""
    if n_bytes < BUFFER_BYTES:
        warn(
            f"without root, sockets have {n_bytes >> 10:,} KiB to receive into, not {BUFFER_BYTES >> 10:,}: bursts are "
            f"lost, and TCP is slower; as root: sysctl -w net.core.rmem_max={BUFFER_BYTES}"
        )
