"""The engine: one TUN queue, one socket, one IP version; all that Python sees of the packet path.

One thread polls an engine; any other may publish tables and read counters. The table is swapped by one atomic pointer
store. The old one is let go once the polling thread has passed a quiet point: `epoch` is odd while a batch may be
reading a table, and a batch that starts after the swap loads the new pointer.

Two engines, one a version, can share a TUN queue: what is read from it is for either. The IPv4 one is polled then, and
moves the packets of both.
"""

import select

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from flannel_udp._fastpath.arena cimport allocate_arena
from flannel_udp._fastpath.atomics cimport (
    add_word,
    load_ring,
    load_table,
    load_table6,
    load_word,
    store_ring,
    store_table,
    store_table6,
    store_word,
)
from flannel_udp._fastpath.capture_ring cimport CaptureRing, Ring
from flannel_udp._fastpath.clock cimport now_ns
from flannel_udp._fastpath.coalesce cimport write_queue_clear
from flannel_udp._fastpath.counted cimport active_peers, counters_as_dict, peer_counters_as_tuple, samples_as_rows
from flannel_udp._fastpath.datapath cimport (
    ENCAP_IPIP,
    ENCAP_UDP,
    ENCAP_VXLAN,
    FOR_EVER,
    LANES_MAX,
    PEER_CHUNKS_MAX,
    RECEIVE_BYTES,
    RECEIVE_MAX,
    SOURCE_LOOSE,
    SOURCE_OFF,
    SOURCE_STRICT,
    TUN_BUFFER_BYTES,
    Datapath,
    allocate_peer_states,
)
from flannel_udp._fastpath.ecn cimport outer_tos_of
from flannel_udp._fastpath.encap_vxlan cimport fill_in_heading
from flannel_udp._fastpath.family cimport FAMILY_4, FAMILY_6
from flannel_udp._fastpath.inbound cimport move_inbound
from flannel_udp._fastpath.offloaded cimport INNER_MTU_UNTOLD
from flannel_udp._fastpath.outbound cimport move_outbound
from flannel_udp._fastpath.pathmtu cimport PROBE_ID, limit_path
from flannel_udp._fastpath.routes cimport RouteTable
from flannel_udp._fastpath.routes6 cimport RouteTable6
from flannel_udp._fastpath.rung cimport rung_in_use, rung_set
from flannel_udp._fastpath.segmenting cimport forget_former_peers, forget_refused_runs
from flannel_udp._fastpath.sendqueue cimport RUN_PACKETS_MAX, SEND_ARENA_BYTES
from flannel_udp._fastpath.sockets cimport epoll_event, epoll_wait
from flannel_udp._fastpath.sysio cimport learn_own_address, port_of
from flannel_udp._fastpath.table cimport Table, mac_on_the_wire
from flannel_udp._fastpath.table6 cimport Table6
from flannel_udp._fastpath.trial cimport try_datagram, try_packet
from flannel_udp._fastpath.wire cimport IPV4_MAX_BYTES, IPV6_MTU_MIN, check_sizes, htons

from flannel_udp._fastpath.routes6 import empty_table

cdef enum:
    POLL_MAX_NS = 50000000
    IPV4_DATAGRAM_MIN = 576         # RFC 791 section 3.1: every host takes that much
    OWN_BUFFERS_BYTES = TUN_BUFFER_BYTES + SEND_ARENA_BYTES + RECEIVE_MAX * RECEIVE_BYTES

PROBE_IDENTIFIER = PROBE_ID
PATH_LIMIT_MIN_BYTES = {4: IPV4_DATAGRAM_MIN, 6: IPV6_MTU_MIN}
ENCAPSULATIONS = {"udp": ENCAP_UDP, "vxlan": ENCAP_VXLAN, "ipip": ENCAP_IPIP}
SOURCE_CHECKS = {"off": SOURCE_OFF, "loose": SOURCE_LOOSE, "strict": SOURCE_STRICT}


def watch(int tun_fd, *udp_fds) -> select.epoll:
    """Return what watches the descriptors for engines that they are attached to afterwards. Raises OSError."""
    epoll = select.epoll()
    for fd in (tun_fd, *udp_fds):
        epoll.register(fd, select.EPOLLIN)
    return epoll


cdef class Engine:
    """Moves packets between a TUN and a UDP socket.

    `tun_fd` and `udp_fd` are non-blocking and stay the caller's (see `attach`); `icmp_fd` is a raw socket with
    IP_HDRINCL for answers to dropped packets, or -1 for none. `port` is every peer's UDP port, `vnet_bytes` the size of
    the virtio-net header on the TUN (0 or 10), `source_check` one of `SOURCE_CHECKS`, `dscp` the outer header's (-1:
    the inner one's). `segment`: the socket takes UDP_SEGMENT; `join_tcp`, `join_udp`: the TUN takes super-packets of
    that kind. Raises MemoryError, OSError, ValueError.

    `encapsulation` is one of `ENCAPSULATIONS`. "vxlan" wants our `vni` and `own_mac` (48 bits, the first byte on the
    wire is the highest) and tables with MACs. With "ipip" all sockets are raw ones of protocol 4, and there is no port
    and no UDP_SEGMENT. Both want virtio-net headers: kernel peers send what only a network card would finish.

    `version` is the IP version of the packets, inside and outside; the socket and the tables are of it. With 6 and
    "udp", `beside` may be the engine of version 4 whose TUN this one shares: that one is polled, and moves both.
    """

    cdef Datapath dp
    cdef const Table *current       # shared with other threads: the table in force
    cdef const Table6 *current6     # likewise IPv6's
    cdef Ring *current_ring         # likewise where packets are captured, or NULL
    cdef uint64_t epoch             # shared: odd while a batch may be reading a table
    cdef uint64_t n_published       # shared: tables that were put in force
    cdef uint64_t n_heeded          # of those, when peers that have left were forgotten last
    cdef uint8_t *arena
    cdef object epoll
    cdef object table               # keeps the one in force alive
    cdef object ring                # likewise
    cdef Engine beside              # whose TUN and buffers this one shares, and who is polled
    cdef Engine second              # who shares those of this one
    cdef bint stopped_watching      # `epoll` has no descriptor any more
    cdef list retired               # (table or ring, epoch at its retirement)

    def __cinit__(
        self,
        int tun_fd,
        int udp_fd,
        int icmp_fd,
        int port,
        str source_check="strict",
        uint32_t vnet_bytes=10,
        int dscp=0,
        bint segment=False,
        bint join_tcp=False,
        bint join_udp=False,
        lanes=(),
        uint32_t ports=1,
        str encapsulation="udp",
        uint32_t vni=0,
        uint64_t own_mac=0,
        int version=4,
        Engine beside=None,
    ):
        check_sizes()
        if encapsulation not in ENCAPSULATIONS:
            raise ValueError(f"encapsulation is one of {', '.join(ENCAPSULATIONS)}")
        if encapsulation != "udp" and vnet_bytes == 0:
            raise ValueError(f"{encapsulation} needs virtio-net headers")
        if encapsulation == "vxlan" and not (0 < vni < 1 << 24 and 0 < own_mac < 1 << 48):
            raise ValueError("vni is 1 to 16777215, own_mac has 48 bits")
        if vnet_bytes not in (0, 10):
            raise ValueError("vnet_bytes is 0 or 10")
        if source_check not in SOURCE_CHECKS:
            raise ValueError(f"source_check is one of {', '.join(SOURCE_CHECKS)}")
        if encapsulation != "ipip" and not 0 < port < 65536:
            raise ValueError("port is 1 to 65535")
        if not -1 <= dscp < 64:
            raise ValueError("dscp is 0 to 63, or -1 for the inner packet's")
        if version != 4 and (version != 6 or encapsulation == "ipip"):
            raise ValueError("version is 4, or but for ipip 6")
        memset(&self.dp, 0, sizeof(self.dp))
        self.dp.family = FAMILY_6 if version == 6 else FAMILY_4
        self.dp.encapsulation = ENCAPSULATIONS[encapsulation]
        if beside is not None:
            self._refuse_unfit(beside)
        self._allocate_buffers(beside)
        write_queue_clear(&self.dp.write_queue)
        self.forward_until(None)
        fill_in_heading(&self.dp.heading, self.dp.family, vni, mac_on_the_wire(own_mac))
        self.set_inner_mtu(INNER_MTU_UNTOLD)
        self.dp.outer_tos = outer_tos_of(dscp)
        self.dp.icmp_fd = icmp_fd
        self.dp.port = htons(<unsigned short> port)
        self.dp.vnet_bytes = vnet_bytes
        self.dp.receive_n = RECEIVE_MAX
        self.dp.source_check = SOURCE_CHECKS[source_check]
        self.retired = []
        self.beside = beside
        self.attach(tun_fd, udp_fd, segment, join_tcp, join_udp, lanes, ports)
        self.publish(empty_table(version, encapsulation == "vxlan"))
        if beside is not None:
            beside.epoll.register(udp_fd, select.EPOLLIN)
            beside.second = self
            beside.dp.other = &self.dp

    def join(self, beside: Engine) -> None:
        """Be beside this one, as if made so; none is polled, and it is attached anew then. Raises ValueError."""
        self._refuse_unfit(beside)
        self.epoll.close()
        self.epoll = None
        self.dp.tun_buffer, self.dp.receive_arena = beside.dp.tun_buffer, beside.dp.receive_arena
        self.beside = beside
        beside.second = self
        beside.dp.other = &self.dp

    cdef int _refuse_unfit(self, Engine beside) except -1:
        cdef bint fit = self.dp.family == FAMILY_6 and beside.dp.family == FAMILY_4
        if not fit or self.dp.encapsulation != ENCAP_UDP or self.beside is not None or beside.second is not None:
            raise ValueError("beside an engine of IPv4 is one of IPv6 at most, with udp")
        return 0

    cdef int _allocate_buffers(self, Engine beside) except -1:
        """Have buffers; what goes in is written before more comes, so two engines share all but what is sent."""
        self.arena = allocate_arena(<size_t> (OWN_BUFFERS_BYTES if beside is None else SEND_ARENA_BYTES))
        if self.arena == NULL:
            raise MemoryError
        self.dp.send_queue.arena = self.arena
        if beside is None:
            self.dp.tun_buffer = self.arena + SEND_ARENA_BYTES
            self.dp.receive_arena = self.dp.tun_buffer + TUN_BUFFER_BYTES
        else:
            self.dp.tun_buffer, self.dp.receive_arena = beside.dp.tun_buffer, beside.dp.receive_arena
        return 0

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(<uint32_t> PEER_CHUNKS_MAX):
            free(self.dp.peer_chunks[i])
        free(self.arena)

    def attach(
        self,
        int tun_fd,
        int udp_fd,
        bint segment=False,
        bint join_tcp=False,
        bint join_udp=False,
        lanes=(),
        uint32_t ports=1,
        epoll=None,
    ) -> None:
        """Work on these descriptors from now on; the table in force and the counters stay.

        `lanes` are the sockets through which packets leave, a flow's always through the same: 1, 2, 4 … 64 of them, all
        of one address; none: through `udp_fd`. They are of so many `ports` in turn. `epoll` is what `watch` returned
        for the descriptors; without it that is done here. The polling thread must have stopped; `fileno` is another one
        afterwards. Raises OSError, where `epoll` was not given, and ValueError.

        An engine beside another has no epoll; the other one's, then attached anew with that, watches both sockets.
        """
        if (join_tcp or join_udp) and not self.dp.vnet_bytes:
            raise ValueError("a TUN without virtio-net headers takes no super-packets")
        lanes = lanes or (udp_fd,)
        for n in (len(lanes), ports):
            if not 0 < n <= LANES_MAX or n & (n - 1):
                raise ValueError(f"lanes and ports are a power of two up to {LANES_MAX}")
        if ports > len(lanes):
            raise ValueError("each port needs a lane")
        if self.beside is None:
            self._watch_with(watch(tun_fd, udp_fd) if epoll is None else epoll)
        self.dp.tun_fd = tun_fd
        self.dp.udp_fd = udp_fd
        learn_own_address(&self.dp)
        for i, fd in enumerate(lanes):
            self.dp.lanes[i] = fd
            self.dp.lane_ports[i] = port_of(fd)
        self.dp.n_lanes = <uint32_t> len(lanes)
        self.dp.n_ports = ports
        self.dp.send_queue.packets_max = RUN_PACKETS_MAX if segment and self.dp.encapsulation != ENCAP_IPIP else 1
        rung_set(&self.dp.write_queue.join_tcp, join_tcp)
        rung_set(&self.dp.write_queue.join_udp, join_udp)
        self.dp.tun_errno = 0
        self.dp.read_errors = 0
        self.forget_path_mtus()         # another address may have other ways to the peers
        forget_refused_runs(&self.dp)
        self.stopped_watching = False

    def _watch_with(self, epoll: select.epoll) -> None:
        if self.epoll is not None:
            self.epoll.close()
        self.epoll = epoll
        self.dp.epoll_fd = epoll.fileno()

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when `poll` has work: an epoll descriptor of our own."""
        return self.epoll.fileno()

    def poll(self, uint32_t linger_ms=0, uint32_t busy_us=0) -> int:
        """Move packets until none has come for `linger_ms` milliseconds; return how many were read.

        For `busy_us` microseconds after the last packet it spins, and only then waits. Returns after POLL_MAX_NS and
        that long a wait at the latest, so that the loop it was called from gets its turn. Belongs to the engine's
        thread. Runs without the GIL: while packets keep coming, no wake-up has to wait for it.
        """
        cdef uint32_t moved = 0
        cdef uint32_t got
        cdef uint64_t started_ns = now_ns()
        cdef uint64_t last_ns = started_ns
        cdef uint64_t time_ns
        cdef bint spins = busy_us != 0
        cdef int ready
        cdef epoll_event events[3]
        with nogil:
            while self.dp.tun_errno == 0:
                ready = epoll_wait(self.dp.epoll_fd, events, 3, 0 if spins else <int> linger_ms)
                got = self._move_batches(events, ready) if ready > 0 else 0
                moved += got
                time_ns = now_ns()
                if got:
                    last_ns = time_ns
                    spins = busy_us != 0
                elif not spins:
                    break
                else:
                    spins = time_ns - last_ns < <uint64_t> busy_us * 1000
                if time_ns - started_ns >= POLL_MAX_NS:
                    break
        if self.dp.tun_errno and not self.stopped_watching:
            self._stop_watching()
        return moved

    cdef uint32_t _move_batches(self, const epoll_event *events, int n) noexcept nogil:
        """Move a batch from each descriptor that is ready, with the tables in force."""
        cdef uint32_t got = 0
        cdef int i
        self._hold_table()
        if self.dp.other != NULL:
            self.second._hold_table()
        for i in range(n):
            if events[i].data.fd == self.dp.tun_fd:
                got += move_outbound(&self.dp)
            elif events[i].data.fd == self.dp.udp_fd:
                got += move_inbound(&self.dp)
            else:
                got += move_inbound(self.dp.other)
        add_word(&self.epoch, 1)
        if self.dp.other != NULL:
            add_word(&self.second.epoch, 1)
        return got

    cdef inline void _hold_table(self) noexcept nogil:
        cdef uint64_t n_published = load_word(&self.n_published)    # first: a table that comes now is met next time
        add_word(&self.epoch, 1)
        self.dp.table = load_table(&self.current)
        self.dp.table6 = load_table6(&self.current6)
        self.dp.ring = load_ring(&self.current_ring)
        if self.dp.n_without_runs != 0 and n_published != self.n_heeded:
            self.n_heeded = n_published
            forget_former_peers(&self.dp)

    def _stop_watching(self) -> None:
        """Watch nothing more: a TUN that is beyond use would wake us for ever, and datagrams have nowhere to go."""
        self.stopped_watching = True
        self.epoll.unregister(self.dp.tun_fd)
        self.epoll.unregister(self.dp.udp_fd)
        if self.second is not None:
            self.epoll.unregister(self.second.dp.udp_fd)

    @property
    def segments(self) -> bool:
        """Whether runs are sent with UDP_SEGMENT: asked for, and not refused for any peer that had none taken since.

        A peer that has left counts until the first packet is moved with a table without it.
        """
        return self.dp.send_queue.packets_max > 1 and self.dp.n_without_runs == 0

    @property
    def joins_tcp(self) -> bool:
        """Whether TCP segments are joined: asked for, and not refused when it was tried last."""
        return rung_in_use(&self.dp.write_queue.join_tcp)

    @property
    def joins_udp(self) -> bool:
        """Likewise for UDP datagrams."""
        return rung_in_use(&self.dp.write_queue.join_udp)

    @property
    def tun_errno(self) -> int:
        """The error that made the TUN unusable (EBADFD once it was deleted), 0 while all is well."""
        return self.dp.tun_errno

    def publish(self, table not None: RouteTable | RouteTable6) -> None:
        """Put a table in force, from any thread but only one at a time; batches that start from now on use it.

        Raises TypeError for one of the other version, ValueError for one without MACs where the encapsulation needs
        them.
        """
        if self.dp.family == FAMILY_6:
            self._put_in_force6(table)
        else:
            self._put_in_force(table)
        add_word(&self.n_published, 1)
        if self.table is not None:
            self.retired.append((self.table, load_word(&self.epoch)))
        self.table = table
        self.reclaim()

    cdef int _put_in_force(self, RouteTable table) except -1:
        self._be_ready_for(table.table.n_hops, table.table.peer_mac != NULL)
        table.n_engines += 1            # first: from now on it must not be written
        store_table(&self.current, &table.table)
        return 0

    cdef int _put_in_force6(self, RouteTable6 table) except -1:
        self._be_ready_for(table.table.n_hops, table.table.peer_mac != NULL)
        table.n_engines += 1
        store_table6(&self.current6, &table.table)
        return 0

    def capture_into(self, CaptureRing ring) -> None:
        """Note packets in this ring, which is no other engine's, from now on; ``None``: nowhere. As `publish`."""
        store_ring(&self.current_ring, NULL if ring is None else &ring.ring)
        if self.ring is not None:
            self.retired.append((self.ring, load_word(&self.epoch)))
        self.ring = ring
        self.reclaim()

    def forward_until(self, boottime_ns: int | None) -> None:
        """Forward nothing from that time of CLOCK_BOOTTIME on, ``None``: there is no such time. From any thread.

        What comes later is dropped and counted. So the lease's end is kept also while the control plane stands still.
        """
        store_word(&self.dp.forward_until_ns, <uint64_t> FOR_EVER if boottime_ns is None else boottime_ns)

    def forget_path_mtus(self) -> None:
        """Ask for the path MTU to each peer anew, when the underlay's routes or MTUs may have changed. From any thread.

        What is too big is then sent once more, so that the kernel says what fits now.
        """
        add_word(&self.dp.path_epoch, 1)

    def set_inner_mtu(self, uint32_t n_bytes) -> None:
        """Say what the TUN's MTU is: TCP from kernel peers that is longer is a super-packet. From any thread."""
        store_word(&self.dp.inner_mtu, min(max(n_bytes, <uint32_t> IPV4_DATAGRAM_MIN), <uint32_t> IPV4_MAX_BYTES))

    def reclaim(self) -> int:
        """Let go of retired tables and rings that no batch can be using any more; return how many are left."""
        cdef uint64_t now = load_word(&self.epoch)
        held = []
        for used, seen in self.retired:
            if seen % 2 and seen == now:
                held.append((used, seen))
            elif isinstance(used, RouteTable6):
                (<RouteTable6> used).n_engines -= 1
            elif isinstance(used, RouteTable):
                (<RouteTable> used).n_engines -= 1
        self.retired = held
        return len(held)

    def counters(self) -> dict:
        """Return what was forwarded and dropped, ICMP answers, system calls, unfinished packets (see `offloaded`)."""
        return counters_as_dict(&self.dp)

    def drop_samples(self) -> list:
        """Return what was dropped last, a few packets of each reason in either direction, in no particular order.

        A row: "out" or "in", the reason's name, nanoseconds since 1970 by a clock that ticks every few milliseconds, a
        number that grows with every sample of this kind, the outer address (empty: none that is known), the IP version
        that the packet claims (0: it is too short for a header), and of its header source, destination and protocol;
        its bytes. Addresses are bytes as on the wire, 4 or 16 of them.
        """
        return samples_as_rows(&self.dp)

    def peer_counters(self, uint32_t peer) -> tuple:
        """Return (packets out, bytes out, packets in, bytes in, packets refused) of an index since we were made."""
        return peer_counters_as_tuple(&self.dp, peer)

    def sample_peers(self, uint32_t first, uint32_t n) -> list:
        """Return what has happened with the `n` peer indexes from `first` on since they were asked for last.

        Of each with which anything has: (index, packets out, packets in, the longest one's bytes out, bytes out, bytes
        in). What the kernel refused is among packets out, without bytes; so are our own probes, never as the longest.
        """
        return active_peers(&self.dp, first, n)

    def limit_path_mtu(self, uint32_t peer, address: int, uint32_t n_bytes) -> None:
        """Let inner packets to a peer have `n_bytes` at most, `PATH_LIMIT_MIN_BYTES` or more; 0 ends that.

        It holds while the index is the peer's whose underlay address this is, in host order. From any thread.
        """
        least = PATH_LIMIT_MIN_BYTES[<int> self.dp.family]
        if 0 < n_bytes < least:
            raise ValueError(f"a limit is {least} bytes or more")
        limit_path(&self.dp, peer, address, n_bytes)

    def try_packet(self, packet: bytes) -> tuple:
        """Return what would become of a packet from the TUN; nothing is sent or counted, see `trial`.

        (reason of the drop or "", the packet as far as it got, the ICMP error that its sender would get or b"", the
        peer's underlay address or b"", [(payload, outer TOS, whether routers may cut it, number of its lane), …],
        (path MTU that the kernel knows, for outer packets; that probes found, and that is in force, for inner ones)).
        """
        return try_packet(&self.dp, self.table, packet)

    def try_datagram(self, datagram: bytes, sender: bytes, tos: int) -> tuple:
        """Likewise of what our socket reads, from this underlay address and with this outer TOS.

        (reason or "", the inner packet as far as it got, the ICMP error or b"", whether it is left to be finished).
        """
        return try_datagram(&self.dp, self.table, datagram, sender, tos)

    def close(self) -> None:
        """Close the epoll descriptor. The thread that polls must have stopped."""
        self.dp.other, self.second = NULL, None     # who hold each other would be freed late
        if self.epoll is not None:
            self.epoll.close()

    cdef int _be_ready_for(self, uint32_t n_hops, bint has_macs) except -1:
        """Have the states of a table's next hops before the data thread can meet them."""
        if self.dp.encapsulation == ENCAP_VXLAN and not has_macs:
            raise ValueError("a table for vxlan has MACs")
        return allocate_peer_states(&self.dp, n_hops)
