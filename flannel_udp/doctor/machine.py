"""Whether an agent has here what it needs: rights, a TUN device, its port, buffers."""

from __future__ import annotations

import errno
import socket

from flannel_udp.dataplane.underlay import BUFFER_BYTES, receive_buffer_here
from flannel_udp.doctor.finding import Finding, Verdict, fault, note, ok, skipped
from flannel_udp.doctor.known import Known, KnownFamily
from flannel_udp.errors import FlannelError
from flannel_udp.host.family import IPV6
from flannel_udp.host.privileges import check_privileges, check_tun
from flannel_udp.host.rtnetlink import open_rtnetlink
from flannel_udp.host.vxlan_devices import devices_on, receives


def ask_rights(known: Known) -> Finding:
    """Ask whether this process, and so an agent started like it, has the capabilities; a running one has."""
    if known.status is not None:
        return ok("rights", f"the agent has {', '.join(known.status['capabilities'])}")
    try:
        check_privileges()
    except FlannelError as error:
        what, _, mend = str(error).partition(": ")
        return fault("rights", what, mend)
    return ok("rights", "an agent may make devices, routes and raw sockets here")


def ask_tun(known: Known) -> Finding:
    """Ask whether a TUN device can be made."""
    if not known.has_packet_path:
        return skipped("TUN", f"the backend {known.backend} needs none here")
    try:
        check_tun()
    except FlannelError as error:
        what, _, mend = str(error).rpartition(": ")
        return fault("TUN", what, mend)
    return ok("TUN", "/dev/net/tun can be opened")


def ask_port(known: Known) -> Finding:
    """Ask whether the overlay's UDP port is free for an agent."""
    port = known.port
    if port is None:
        return skipped("UDP port", f"the backend {known.backend} has none")
    if known.status is not None:
        return ok("UDP port", f"{port}, which the agent has")
    if not known.absent:
        return skipped("UDP port", "there may be an agent that has it")
    found = [_ask_port(family, port) for family in known.families]
    return next((item for item in found if item.verdict is Verdict.FAULT), found[0])


def _ask_port(known: KnownFamily, port: int) -> Finding:
    with socket.socket(known.family.af, socket.SOCK_DGRAM) as probe:
        if known.family is IPV6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return skipped("UDP port", f"{port}: {error.strerror}")
            return _judge_holder(known, port)
    return ok("UDP port", f"{port} is free")


def _judge_holder(known: KnownFamily, port: int) -> Finding:
    """Judge who has the port while there is no agent."""
    with open_rtnetlink("looking for VXLAN devices") as netlink:
        devices = [found.name for found in devices_on(netlink, port) if found.up and receives(found, known.version)]
    if known.device in devices:
        return ok("UDP port", f"{port}, of {known.device}, which an earlier run left")
    if devices:
        what = f"the kernel's VXLAN device {devices[0]} has {port}, and no agent can start"
        return fault("UDP port", what, f"ip link del {devices[0]}, or set Backend.Port")
    what = f"another process has {port}, and no agent can start"
    return fault("UDP port", what, f"ss -ulpn sport = :{port} names it: end it, or set Backend.Port")


def ask_buffers(known: Known) -> Finding:
    """Ask how much a socket can receive: too little is lost in a burst."""
    granted = known.status["socket_buffers"] if known.status is not None else None
    if granted is not None:
        return judge_buffers(granted["receive_bytes"], "the agent's socket has")
    if not known.has_packet_path:
        return skipped("buffers", f"the backend {known.backend} has no socket here")
    return judge_buffers(receive_buffer_here(), "a socket gets")


def judge_buffers(n_bytes: int, whose: str) -> Finding:
    """Judge a receive buffer."""
    if n_bytes < BUFFER_BYTES:
        what = f"{whose} {n_bytes:,} bytes to receive into, of {BUFFER_BYTES:,}: bursts are lost (kernel_drops, socket)"
        return note("buffers", what, f"sysctl -w net.core.rmem_max={BUFFER_BYTES}, or give the agent CAP_NET_ADMIN")
    return ok("buffers", f"{whose} {n_bytes:,} bytes to receive into")
