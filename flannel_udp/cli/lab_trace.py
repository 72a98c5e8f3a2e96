"""What `lab trace` does: the agent of the sender's host is asked, and that of the host which the packet reaches."""

from __future__ import annotations

from flannel_udp.admin import client
from flannel_udp.admin.trace_request import Said, make_request
from flannel_udp.admin.trace_shapes import Trace
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host, Node, Pod
from flannel_udp.model import Address
from flannel_udp.netconf.addresses import parse_address


def trace_in_lab(name: str, source: str, destination: str, said: Said) -> Trace:
    """Return what becomes of a packet between two ends of a lab, pods, hosts or addresses. Raises `FlannelError`."""
    lab = Lab.attach(name)
    ends = [_end(lab, text) for text in (source, destination)]
    given = [end.version for end in ends if not isinstance(end, Node)]
    version = given[0] if given else lab.plan.versions[0]
    addresses = [_address(end, version) if isinstance(end, Node) else end for end in ends]
    host = _host(ends[0]) if isinstance(ends[0], Node) else _owner(lab, ends[0])
    trace = client.fetch_trace(host.control_socket, make_request(addresses[0], addresses[1], said))
    if trace["verdict"] == "sent":
        _follow(lab, host, trace)
    return trace


def _end(lab: Lab, text: str) -> Node | Address:
    """Return what somebody has named: an address, or a node of the lab."""
    try:
        return parse_address(text)
    except ValueError:
        node = lab.node(text)
    if not isinstance(node, Pod | Host):
        raise UsageError(f"{text} is neither a host nor a pod of the lab {lab.name}")
    return node


def _host(node: Node) -> Host:
    return node.host if isinstance(node, Pod) else _as_host(node)


def _as_host(node: Node) -> Host:
    assert isinstance(node, Host)  # noqa: S101 - `_end` returns no others
    return node


def _address(node: Node, version: int) -> Address:
    """Return a pod's address, or that of a host's end of the tunnel: its subnet's first."""
    if isinstance(node, Pod):
        return node.address(version)
    subnet = _as_host(node).subnet_of(version)
    if subnet is None:
        raise FlannelError(f"{node.name} has no IPv{version} subnet yet")
    return subnet.network_address


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
    others = [each for each in lab.hosts if each.underlay_of(public_ip.version) == public_ip]
    sender = str(host.underlay_of(public_ip.version))
    if not others:
        trace["notes"].append(f"the other host was not asked: none of the lab's has {public_ip}")
        return
    try:
        for sent in trace["datagrams"]:
            arrival = trace["arrival"] = client.fetch_arrival(others[0].control_socket, sender, sent)
            if arrival["verdict"] == "dropped":
                trace["verdict"], trace["dropped_by"] = "dropped", "other host"
                trace["reason"], trace["why"] = arrival["reason"], arrival["why"]
                return
    except FlannelError as error:
        trace["notes"].append(f"the other host, {others[0].name}, was not asked: {error}")
        return
    if "arrival" in trace:
        trace["verdict"], trace["why"] = "delivered", f"on {others[0].name} {trace['arrival']['why']}"
