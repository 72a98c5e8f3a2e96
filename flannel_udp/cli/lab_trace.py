"""What `lab trace` does: the agent of the sender's host is asked, and that of the host which the packet reaches."""

from __future__ import annotations

from flannel_udp.admin import client
from flannel_udp.admin.trace_request import Said, make_request
from flannel_udp.admin.trace_shapes import Trace
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host, Pod
from flannel_udp.model import Address
from flannel_udp.netconf.addresses import parse_address

End = Host | Pod | Address


def trace_in_lab(name: str, source: str, destination: str, said: Said) -> Trace:
    """Return what becomes of a packet between two ends of a lab, pods, hosts or addresses. Raises `FlannelError`."""
    lab = Lab.attach(name)
    ends = [_end(lab, text) for text in (source, destination)]
    given = [end.version for end in ends if not isinstance(end, Host | Pod)]
    version = given[0] if given else lab.plan.versions[0]
    host = _sender(lab, ends[0])
    asked = make_request(_address(ends[0], version), _address(ends[1], version), said)
    trace = client.fetch_trace(host.control_socket, asked)
    if trace["verdict"] == "sent":
        _follow(lab, host, trace)
    return trace


def _end(lab: Lab, text: str) -> End:
    """Return what somebody has named: an address, or a node of the lab."""
    try:
        return parse_address(text)
    except ValueError:
        node = lab.node(text)
    if not isinstance(node, Host | Pod):
        raise UsageError(f"{text} is neither a host nor a pod of the lab {lab.name}")
    return node


def _address(end: End, version: int) -> Address:
    """Return an end's address; a host's is that of its end of the tunnel, its subnet's first."""
    if isinstance(end, Pod):
        return end.address(version)
    if not isinstance(end, Host):
        return end
    subnet = end.subnet_of(version)
    if subnet is None:
        raise FlannelError(f"{end.name} has no IPv{version} subnet yet")
    return subnet.network_address


def _sender(lab: Lab, end: End) -> Host:
    """Return the host that a packet of this end is sent by."""
    if isinstance(end, Host):
        return end
    return end.host if isinstance(end, Pod) else _owner(lab, end)


def _owner(lab: Lab, address: Address) -> Host:
    """Return the host in whose subnet an address is, or whose own it is."""
    for host in lab.hosts:
        subnet = host.subnet_of(address.version)
        if (subnet is not None and address in subnet) or (
            address.version in lab.plan.versions and host.underlay_of(address.version) == address
        ):
            return host
    raise UsageError(
        f"no host of the lab {lab.name} has {address}: name a pod or a host as SRC (flannel-udp lab status)"
    )


def _follow(lab: Lab, host: Host, trace: Trace) -> None:
    """Ask the host that the packet reaches, and note what it says."""
    peer = trace["peer"]
    if peer is None:
        return
    public_ip = parse_address(peer["public_ip"])
    other = lab.plan.host_at(public_ip, host.name)
    if other is None:
        trace["notes"].append(f"the other host was not asked: no host of the lab is reached by {public_ip} from here")
        return
    sender = str(lab.plan.source_seen_by(other, host.name, public_ip.version))
    try:
        for sent in trace["datagrams"]:
            arrival = trace["arrival"] = client.fetch_arrival(lab.host(other).control_socket, sender, sent)
            if arrival["verdict"] == "dropped":
                trace["verdict"], trace["dropped_by"] = "dropped", "other host"
                trace["reason"], trace["why"] = arrival["reason"], arrival["why"]
                return
    except FlannelError as error:
        trace["notes"].append(f"the other host, {other}, was not asked: {error}")
        return
    if "arrival" in trace:
        trace["verdict"], trace["why"] = "delivered", f"on {other} {trace['arrival']['why']}"
