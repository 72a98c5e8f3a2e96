"""What a lab is like just now, as one document: links' counters from the kernel, the rest from the agents."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from flannel_udp.admin.client import fetch_status
from flannel_udp.admin.shapes import LeaseFacts, Status
from flannel_udp.errors import FlannelError
from flannel_udp.lab.cables import EXIT
from flannel_udp.lab.faults import present_faults
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.lessons.course import progress_of
from flannel_udp.lab.links import Link, links_of
from flannel_udp.lab.node import Host
from flannel_udp.view.interfaces import Interface, as_ip_says, look
from flannel_udp.view.rates import Rates
from flannel_udp.view.shapes import AgentRow, HostRow, LinkRow, Look, Passed

_AGENT_S = 1.0
"""How long an agent may take to answer: one that hangs is told, and holds up nobody for longer."""
_AT_ONCE = 16
_GONE = Interface(up=False, mtu=0, rx_bytes=0, rx_packets=0, rx_dropped=0, tx_bytes=0, tx_packets=0, tx_dropped=0)


class Reader:
    """Looks at a lab again and again; what is a second's is since the last look."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        """May be replaced by the same one with another plan."""
        self._rates = Rates()
        self._pool = ThreadPoolExecutor(max_workers=min(len(lab.hosts), _AT_ONCE))
        self._drawn: object = None
        self._drawing = 0

    def look(self) -> Look:
        """Return what it is like now. Raises `FlannelError` while it is taken down."""
        lab, plan = self.lab, self.lab.plan
        statuses = list(self._pool.map(_status, lab.hosts))
        seen = look([lab.net, *lab.routers, *lab.hosts, *lab.pods()])
        links = links_of(lab)
        counters = {_key(link.name, kind): n for link in links for kind, n in _counts(link, seen).items()}
        counters |= {
            _key(host.name, "drops"): sum(_drops(status).values())
            for host, status in zip(lab.hosts, statuses, strict=True)
            if not isinstance(status, str)
        }
        grown = self._rates.since_last(counters)
        faults = present_faults(lab, lambda node: as_ip_says(seen[node.path]))
        hosts = [_host_row(host, status, grown) for host, status in zip(lab.hosts, statuses, strict=True)]
        lesson, lesson_wrong = _lesson(lab)
        return Look(
            name=lab.name,
            about=f"overlay {' and '.join(plan.overlays)}, backend {plan.backend}, leases in "
            f"{'an etcd of its own' if plan.registry == 'etcd' else 'a file'}",
            etcd=plan.registry == "etcd",
            hosts=hosts,
            links=[_link_row(link, seen, grown) for link in links],
            faults=faults,
            lesson=lesson,
            lesson_wrong=lesson_wrong,
            drawing=self._number_of((faults, [(host["addresses"], host["subnets"], host["pods"]) for host in hosts])),
        )

    def _number_of(self, drawn: object) -> int:
        if drawn != self._drawn:
            self._drawn, self._drawing = drawn, self._drawing + 1
        return self._drawing


def _key(name: str, kind: str) -> str:
    return f"{name} {kind}"


def _status(host: Host) -> Status | str:
    """Return what the agent of a host says, or why there is nothing."""
    if not host.runs_agent:
        return "none of ours by the plan"
    if host.agent_pid() is None:
        return "does not run"
    try:
        return fetch_status(host.control_socket, _AGENT_S)
    except FlannelError:
        return "runs, and does not answer"


def _lesson(lab: Lab) -> tuple[dict[str, Any] | None, str | None]:
    """Return how far the lab's lesson is, or what is wrong with its file, which somebody may be writing just now."""
    try:
        progress = progress_of(lab)
    except FlannelError as error:
        return None, str(error)
    return None if progress is None else asdict(progress), None


def _drops(status: Status) -> dict[str, int]:
    """Return what was dropped, by direction and reason: by our packet path, and by the kernel by place."""
    counters = status["counters"]
    sides = [] if counters is None else [("out", counters["out"]["drops"]), ("in", counters["in"]["drops"])]
    sides.append(("kernel", status["kernel_drops"] or {}))
    return {f"{side} {reason}": count for side, drops in sides for reason, count in drops.items() if count}


def _host_row(host: Host, status: Status | str, grown: Mapping[str, float | None]) -> HostRow:
    versions = host.plan.versions
    return HostRow(
        name=host.name,
        addresses=[str(host.underlay_of(version)) for version in versions],
        subnets=[str(prefix) for prefix in host.prefixes],
        agent=None if isinstance(status, str) else _agent_row(host, status, grown),
        why=status if isinstance(status, str) else "",
        pods=[
            f"{pod.path} {address}"
            for pod in host.pods
            for version in versions
            if (address := pod.known_address(version)) is not None
        ],
    )


def _agent_row(host: Host, status: Status, grown: Mapping[str, float | None]) -> AgentRow:
    return AgentRow(
        pid=status["pid"],
        ready=status["ready"],
        state=status["state"],
        problems=status["problems"],
        peers=status["peers"],
        lease=_lease(status["lease"]),
        drops=_drops(status),
        drops_s=grown.get(_key(host.name, "drops")),
    )


def _lease(lease: LeaseFacts | None) -> str:
    if lease is None:
        return "none"
    left_s = lease["expires_in_s"]
    if left_s is None:
        return f"{lease['key']}, never ends"
    hours, minutes = divmod(round(left_s) // 60, 60)
    return f"{lease['key']}, {f'{hours} h ' if hours else ''}{minutes} min left"


def _counts(link: Link, seen: Mapping[str, Mapping[str, Interface]]) -> dict[str, int]:
    node, port = seen[link.node.path].get(EXIT, _GONE), seen[link.switch.path].get(link.port, _GONE)
    return {
        "to bytes": port.tx_bytes,
        "to packets": port.tx_packets,
        "from bytes": port.rx_bytes,
        "from packets": port.rx_packets,
        "dropped": sum((port.rx_dropped, port.tx_dropped, node.rx_dropped, node.tx_dropped)),
    }


def _link_row(link: Link, seen: Mapping[str, Mapping[str, Interface]], grown: Mapping[str, float | None]) -> LinkRow:
    counts = _counts(link, seen)
    port, node = seen[link.switch.path].get(link.port, _GONE), seen[link.node.path].get(EXIT, _GONE)

    def passed(way: str) -> Passed:
        return Passed(
            bytes=counts[f"{way} bytes"],
            packets=counts[f"{way} packets"],
            bytes_s=grown[_key(link.name, f"{way} bytes")],
            packets_s=grown[_key(link.name, f"{way} packets")],
        )

    return LinkRow(
        name=link.name,
        up=port.up,
        mtu=min(port.mtu, node.mtu),
        to_node=passed("to"),
        from_node=passed("from"),
        dropped=counts["dropped"],
        dropped_s=grown[_key(link.name, "dropped")],
    )
