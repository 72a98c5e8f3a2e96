"""The dataplane as one object: opened once, then tables in and counters out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from flannel_udp._fastpath.engine import Engine, watch
from flannel_udp.dataplane.adopted import Adopted, descriptor_names
from flannel_udp.dataplane.claims import NO_CLAIMS, Claims, device_claim
from flannel_udp.dataplane.dropped import last_dropped
from flannel_udp.dataplane.encapsulation import UDP, Encapsulation
from flannel_udp.dataplane.family_path import Ends, FamilyPath
from flannel_udp.dataplane.lanes import close_lanes
from flannel_udp.dataplane.offload import enable_on_tunnel, hands_over_super_packets
from flannel_udp.dataplane.outer_sockets import outer_sockets
from flannel_udp.dataplane.tunnel import VNET_HEADER_BYTES, Tunnel, adopt_tunnel, open_tunnel
from flannel_udp.dataplane.underlay import SocketBuffers, adopt_icmp, close_sockets, granted_buffers, open_icmp
from flannel_udp.dataplane.worker import Worker, count_workers
from flannel_udp.errors import FlannelError
from flannel_udp.model import (
    Address,
    Delta,
    DroppedPacket,
    Peer,
    PeerActivity,
    PeerTraffic,
    RouteAnswer,
    Subnet,
    peers_at,
)
from flannel_udp.options import DataplaneOptions, Offload

DSCP_INHERIT = -1


class WorkerPackets(NamedTuple):
    """Inner packets that one worker carried."""

    packets_out: int
    packets_in: int


class Dataplane:
    """The TUN device, the underlay sockets and the engines between them, one of each a worker and IP version.

    The device and the sockets can be replaced; the engines, the tables in force and the counters live on. Packets of an
    IP version are carried if there is an address of it among `addresses`, from which they leave, at most one a version.
    With `adopted` nothing is opened: those descriptors are used, and are the dataplane's from now on. `port` is every
    host's, ``None`` where the `encapsulation` has none. `device` is the device's name, flannel0 or the next free one
    unless said. `dscp` is the outer header's, -1 for the inner one's. `on_fault()` is called, in any thread, when the
    device is lost or has to be looked at. `claims` keep other agents of this host away from the port and the device.
    Raises FlannelError where something cannot be opened; nothing stays open then.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        port: int | None,
        options: DataplaneOptions,
        on_fault: Callable[[], object],
        *,
        encapsulation: Encapsulation = UDP,
        device: str | None = None,
        dscp: int = 0,
        adopted: Adopted | None = None,
        claims: Claims = NO_CLAIMS,
    ) -> None:
        self._options, self._on_fault, self._claims = options, on_fault, claims
        self._outer = outer_sockets(encapsulation, port, options.source_ports)
        self._encapsulation, self._device, self._port, self._dscp = encapsulation, device, port, dscp
        self._until_ns: int | None = None  # see `forward_until`
        self._lent = False  # another process is about to read from the descriptors
        self._replaced = 0  # how often descriptors were opened anew
        self._paths: dict[int, FamilyPath] = {}  # by IP version, 4 first
        addresses = sorted(addresses, key=lambda address: address.version)
        with ExitStack() as opened:
            opened.callback(self._close_paths)
            if adopted is None:
                self._open(addresses, opened)
            else:
                self._adopt(adopted, addresses, opened)
            # Nothing is switched while another process uses the descriptors.
            self._granted = (
                adopted.granted
                if adopted and adopted.granted
                else self._enable(self.tunnel, self._all_sockets(), self._paths)
            )
            firsts: Sequence[Engine] = ()
            for path in self._paths.values():
                path.ends = path.ends._replace(lanes=self._outer.open_lanes(path.ends.sockets, self._granted))
                self._open_engines(path, firsts)
                firsts = path.engines
            self._opened = opened.pop_all()
        self._workers = [Worker(engines, options.busy_poll_us) for engines in self._by_worker()]
        self._running: set[int] = set()
        for worker in self._workers:
            self._opened.callback(worker.close)
        self._opened.callback(self.stop)
        for public_ip, n_bytes in adopted.path_limits.items() if adopted else ():
            self.limit_path_mtu(public_ip, n_bytes)

    def _open(self, addresses: Iterable[Address], opened: ExitStack) -> None:
        n_workers = count_workers(self._options)
        for address in addresses:
            self._outer.claim(address, self._claims)
            self._add_path(Ends(address, self._outer.open(address, n_workers)))
        self.tunnel = open_tunnel(n_workers, self._claims, self._device)
        opened.callback(self._close_tunnel)
        for path in self._paths.values():
            path.icmp = open_icmp(path.version, n_workers)

    def _adopt(self, adopted: Adopted, addresses: Iterable[Address], opened: ExitStack) -> None:
        # All of them are ours before the first one is looked at, so that none is left open.
        sockets = {version: [socket.socket(fileno=fd) for fd in fds] for version, fds in adopted.sockets.items()}
        for address in addresses:
            path = self._add_path(Ends(address, sockets[address.version]))
            path.icmp = adopt_icmp(adopted.icmp[address.version], len(adopted.queues))
        self.tunnel = adopt_tunnel(adopted.queues, self._device)
        opened.callback(self._close_tunnel)
        for path in self._paths.values():
            self._outer.check(path.ends.sockets, path.ends.address)
            self._outer.claim(path.ends.address, self._claims)
        self._claims.hold(device_claim(self.tunnel.index))

    def _add_path(self, ends: Ends) -> FamilyPath:
        path = self._paths[ends.address.version] = FamilyPath(ends, with_macs=self._encapsulation.kind == "vxlan")
        return path

    def _close_paths(self) -> None:
        for path in self._paths.values():
            path.close()

    def _open_engines(self, path: FamilyPath, firsts: Sequence[Engine] = ()) -> None:
        """Have an engine for each worker, beside those of another IP version if there are any."""
        assert path.icmp is not None  # noqa: S101 - opened, or adopted
        for number, (queue, udp, lanes) in enumerate(
            zip(self.tunnel.filenos(), path.ends.sockets, path.ends.lanes, strict=True)
        ):
            try:
                engine = Engine(
                    queue,
                    udp.fileno(),
                    path.icmp.fileno(),
                    self._port or 0,
                    source_check=self._options.source_check,
                    vnet_bytes=VNET_HEADER_BYTES,
                    dscp=self._dscp,
                    segment=self._granted.udp_segment,
                    join_tcp=self._granted.join_tcp,
                    join_udp=self._granted.join_udp,
                    lanes=lanes.filenos(),
                    ports=lanes.n_ports,
                    encapsulation=self._encapsulation.kind,
                    vni=self._encapsulation.vni,
                    own_mac=self._encapsulation.own_mac,
                    version=path.version,
                    beside=firsts[number] if firsts else None,
                )
            except OSError as failed:
                raise FlannelError(f"cannot wait for packets of {self.tunnel.name}: {failed.strerror}") from failed
            engine.forward_until(self._until_ns)
            path.engines.append(engine)

    def start(self) -> None:
        """Start to move packets; until a table is published all are dropped, and counted. Running workers run on."""
        for number in range(self.workers):
            self.start_worker(number)

    def stop(self) -> None:
        """Stop moving packets, and return once all that were read are sent."""
        self._stop(range(self.workers))

    def start_worker(self, number: int) -> None:
        """Start one worker, unless it runs."""
        if number not in self._running:
            self._workers[number].start(self._on_fault)
            self._running.add(number)

    def stop_worker(self, number: int) -> None:
        """Stop one worker if it runs, and return once all that it had read is sent; packets wait in the kernel."""
        self._stop([number])

    def _stop(self, numbers: Iterable[int]) -> list[int]:
        """Stop the workers that run among these, and return which they were."""
        stopping = [number for number in numbers if number in self._running]
        self._running.difference_update(stopping)  # first: nobody probes a worker that will not answer
        for number in stopping:
            self._workers[number].ask_to_stop()
        for number in stopping:
            self._workers[number].join()
        return stopping

    def descriptors(self) -> Mapping[str, int]:
        """Return what another process would adopt, by name; the descriptors stay ours."""
        sockets: dict[int, list[int]] = {
            path.version: [udp.fileno() for udp in path.ends.sockets] for path in self._paths.values()
        }
        icmp: dict[int, int] = {
            path.version: path.icmp.fileno() for path in self._paths.values() if path.icmp is not None
        }
        return descriptor_names(self._encapsulation.kind, self.tunnel.filenos(), sockets, icmp)

    def state(self) -> Mapping[str, Any]:
        """Return what it would have to know of them: what they speak, the offloads granted, which paths are narrow."""
        limits = {str(address): n_bytes for address, n_bytes in self.path_limits.items()}
        return {
            "encapsulation": asdict(self._encapsulation),
            "granted": self._granted.names(),
            "path_limits": limits,
        }

    @property
    def generation(self) -> tuple[int, bool]:
        """How often descriptors were opened anew, and whether flannel0 is lost."""
        return self._replaced, self.tunnel_lost

    def lend(self) -> None:
        """Keep the descriptors the ones they are until `take_back`: another process is about to read from them."""
        self._lent = True

    def _close_tunnel(self) -> None:
        self.tunnel.close()

    def _all_sockets(self) -> list[socket.socket]:
        return [udp for path in self._paths.values() for udp in path.ends.sockets]

    def engines(self) -> list[Engine]:
        """Return those of all workers and IP versions."""
        return [engine for path in self._paths.values() for engine in path.engines]

    @property
    def tunnel_lost(self) -> bool:
        """Whether reading from flannel0 has failed for good: it was deleted, or broke."""
        return any(engine.tun_errno for engine in self.engines())

    def reopen_tunnel(self) -> None:
        """Open a device in place of flannel0, which then carries packets again once it is configured.

        Packets rest for up to 0.1 s. Raises FlannelError where none can be opened, or somebody has deleted it again;
        nothing has changed then.
        """
        self._refuse_if_lent()
        former, tunnel = self.tunnel, open_tunnel(self.workers, self._claims, self._device)
        with ExitStack() as undo:
            undo.callback(self._claims.let_go, device_claim(tunnel.index))
            undo.callback(tunnel.close)
            self._swap(tunnel)
            undo.pop_all()
        former.close()
        self._claims.let_go(device_claim(former.index))

    def rebind(self, address: Address) -> None:
        """Send packets of its IP version from this address, and receive at it; likewise."""
        self._refuse_if_lent()
        path = self._paths[address.version]
        former = path.ends
        self._outer.claim(address, self._claims)
        with ExitStack() as undo:  # whatever is in the way, nothing stays half replaced
            undo.callback(self._outer.let_go, address, self._claims)
            sockets = self._outer.open(address, self.workers)
            undo.callback(close_sockets, sockets)
            ends = Ends(address, sockets, self._outer.open_lanes(sockets, self._granted))
            undo.callback(close_lanes, ends.lanes)
            self._swap(self.tunnel, ends)
            undo.pop_all()
        path.close_former(former)
        self._outer.let_go(former.address, self._claims)

    def add(self, address: Address) -> None:
        """Carry packets of another IP version as well, from this address; likewise."""
        self._refuse_if_lent()
        self._outer.claim(address, self._claims)
        with ExitStack() as undo:
            undo.callback(self._outer.let_go, address, self._claims)
            path = FamilyPath(
                Ends(address, self._outer.open(address, self.workers)), with_macs=self._encapsulation.kind == "vxlan"
            )
            undo.callback(path.close)
            path.icmp = open_icmp(path.version, self.workers)
            path.ends = path.ends._replace(lanes=self._outer.open_lanes(path.ends.sockets, self._granted))
            self._open_engines(path)
            self._swap(self.tunnel, joining=path)
            undo.pop_all()

    def take_back(self) -> None:
        """Go on with what was lent."""
        self._lent = False
        self.start()
        self._on_fault()  # what was refused meanwhile is due

    def _swap(self, tunnel: Tunnel, *moved: Ends, joining: FamilyPath | None = None) -> None:
        """Have the engines work on this device, on sockets that have moved, with one more path: the rest is in use.

        Raises FlannelError; nothing has changed then.
        """
        paths = self._paths if joining is None else dict(sorted({**self._paths, joining.version: joining}.items()))
        ends = {path.version: path.ends for path in paths.values()}
        ends.update({each.address.version: each for each in moved})
        try:
            granted = self._enable(tunnel, (udp for each in ends.values() for udp in each.sockets), paths)
            by_worker = zip(tunnel.filenos(), *(each.sockets for each in ends.values()), strict=True)
            epolls = [watch(queue, *(udp.fileno() for udp in sockets)) for queue, *sockets in by_worker]
        except OSError as failed:  # somebody has deleted the device meanwhile, or no descriptor is left
            raise FlannelError(f"{tunnel.name} and its sockets cannot be used: {failed.strerror}") from failed
        stopped = self._stop(range(self.workers))
        if joining is not None:
            self._join(paths)
        for path in paths.values():
            path.attach(tunnel.filenos(), ends[path.version], granted, epolls)
        self.tunnel, self._granted = tunnel, granted
        self._replaced += 1
        for number in stopped:
            self.start_worker(number)

    def _join(self, paths: Mapping[int, FamilyPath]) -> None:
        """Have these paths, one more than before, whose engines share the device from now on; no worker runs."""
        for first, second in zip(*(path.engines for path in paths.values()), strict=True):
            second.join(first)
        self._paths = dict(paths)
        for worker, engines in zip(self._workers, self._by_worker(), strict=True):
            worker.carry(engines)

    def _by_worker(self) -> list[tuple[Engine, ...]]:
        return list(zip(*(path.engines for path in self._paths.values()), strict=True))

    def _refuse_if_lent(self) -> None:
        if self._lent:
            raise FlannelError(f"another agent is taking over {self.tunnel.name}: nothing is opened anew now")

    def _enable(self, tunnel: Tunnel, sockets: Iterable[socket.socket], versions: Collection[int]) -> Offload:
        """Switch on what is wanted and possible on the device and the sockets; return what is on."""
        granted = enable_on_tunnel(tunnel.filenos()[0], self._options.offload, versions)
        for udp in sockets:
            granted = self._outer.enable(udp, granted)
        return granted

    @property
    def socket_buffers(self) -> SocketBuffers:
        """What the kernel granted each UDP socket."""
        return granted_buffers(self._all_sockets()[0])

    @property
    def socket_drops(self) -> int:
        """How many datagrams the kernel has dropped that were for our sockets: full, or a wrong UDP checksum."""
        return sum(path.socket_drops for path in self._paths.values())

    async def publish(self, own: Subnet | None, deltas: Sequence[Delta], *, whole: bool) -> None:
        """Put tables for our subnet in force, and return once the old ones are let go.

        The peers are those of the last tables after `deltas`; with `whole` there were none before. They are built
        outside the data threads, which never wait: they find the new pointers at their next batch.
        """
        for version, path in self._paths.items():
            part = None if own is None else own.of(version)
            await path.publish(part, [delta.of(version) for delta in deltas], whole=whole)

    def forward_until(self, boottime_s: float | None) -> None:
        """Forward nothing from that time of CLOCK_BOOTTIME on, ``None``: there is no such time.

        The data threads keep to it by themselves, whatever becomes of the control plane.
        """
        self._until_ns = None if boottime_s is None else round(boottime_s * 1e9)
        for engine in self.engines():
            engine.forward_until(self._until_ns)

    def forget_path_mtus(self) -> None:
        """Ask for the path MTU to each peer anew: the underlay's routes or MTUs may have changed."""
        for engine in self.engines():
            engine.forget_path_mtus()

    def set_mtu(self, n_bytes: int) -> None:
        """Say what the device's MTU is: TCP that is longer a kernel peer has sent uncut."""
        for engine in self.engines():
            engine.set_inner_mtu(n_bytes)

    @property
    def n_source_ports(self) -> int:
        """How many ports beside the one that is received on a worker's datagrams leave from."""
        return self._outer.n_source_ports

    @property
    def source_ports(self) -> Set[int]:
        """The UDP ports that datagrams leave from."""
        return self._outer.source_ports([lanes for path in self._paths.values() for lanes in path.ends.lanes])

    @property
    def path_limits(self) -> Mapping[Address, int]:
        """Bytes that inner packets to these peers may have: what `limit_path_mtu` said."""
        return {at: n_bytes for path in self._paths.values() for at, n_bytes in path.path_limits.items()}

    def limit_path_mtu(self, public_ip: Address, n_bytes: int | None) -> None:
        """Let inner packets to a peer have so many bytes at most, 576 (IPv6 1,280) or more; ``None``: no limit."""
        if public_ip.version in self._paths:
            self._paths[public_ip.version].limit_path_mtu(public_ip, n_bytes)

    @property
    def offload(self) -> Offload:
        """The offloads in use: granted, not refused when they were used last, and not switched off by ethtool since."""
        return replace(
            self._granted,
            tso=self._granted.tso and hands_over_super_packets(self.tunnel.name),
            udp_segment=all(engine.segments for engine in self.engines()),
            join_tcp=all(engine.joins_tcp for engine in self.engines()),
            join_udp=all(engine.joins_udp for engine in self.engines()),
        )

    @property
    def workers(self) -> int:
        """How many data threads there are."""
        return len(self._workers)

    async def come_round(self) -> None:
        """Return once every data thread that is to run has answered; one that hangs never does."""
        probes = [self._workers[number].probe() for number in list(self._running)]
        await asyncio.gather(*map(asyncio.wrap_future, probes))

    def counters(self) -> dict[str, Any]:
        """Return the counters of all engines together, as `Engine.counters` does."""
        return _add_up(self.engines())

    def counters_by_version(self) -> dict[int, dict[str, Any]]:
        """Return those of each IP version's engines."""
        return {version: _add_up(path.engines) for version, path in self._paths.items()}

    def last_dropped(self) -> dict[str, list[DroppedPacket]]:
        """Return the packets that were dropped last, by reason, the newest last."""
        return last_dropped(self.engines())

    def worker_packets(self) -> list[WorkerPackets]:
        """Return what each worker carried. A flow stays on one worker, so a busy one shows here."""
        carried = []
        for engines in self._by_worker():
            counted = [engine.counters() for engine in engines]
            carried.append(WorkerPackets(*(sum(each[way]["packets"] for each in counted) for way in ("out", "in"))))
        return carried

    def sorted_peers(self) -> list[Peer]:
        """Return the peers of the tables in force, in the order of their subnets; takes long, so ask in a thread."""
        return [peer for path in self._paths.values() for peer in path.sorted_peers()]

    def traffic(self, peer: Peer) -> PeerTraffic:
        """Return a peer's traffic since it appeared."""
        return self._paths[peer.version].traffic(peer)

    def activity(self) -> Iterator[list[PeerActivity]]:
        """Yield what has happened with peers since it was asked last, in parts that hold nobody up."""
        for path in self._paths.values():
            yield from path.activity()

    def find(self, public_ips: Set[int]) -> dict[int, Peer]:
        """Return the peers at those of these public IPs, numbers in host order, that have any; ask in a thread."""
        return peers_at(self.peers(), public_ips)

    @property
    def paths(self) -> Mapping[int, FamilyPath]:
        """What there is of each IP version."""
        return self._paths

    def route(self, address: Address) -> RouteAnswer:
        """Ask the table in force for an address's next hop."""
        path = self._paths.get(address.version)
        return RouteAnswer(peer=None, own=False) if path is None else path.route(address)

    def peers(self) -> list[Peer]:
        """Return the peers of the tables in force."""
        return [peer for path in self._paths.values() for peer in path.peers()]

    def close(self) -> None:
        """Stop the data threads and close everything; the kernel removes flannel0."""
        self._opened.close()


def _add_up(engines: Iterable[Engine]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for engine in engines:
        add_counters(total, engine.counters())
    return total


def add_counters(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add to `total`, in place, what is counted under the same names."""
    for name, value in more.items():
        if isinstance(value, dict):
            add_counters(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value
