"""The engine: one TUN queue, one socket, one arena; all that Python sees of the packet path.

One thread polls an engine; any other may publish tables and read counters. The table is swapped by one atomic pointer
store. The old one is let go once the polling thread has passed a quiet point: `epoch` is odd while a batch may be
reading a table, and a batch that starts after the swap loads the new pointer.
"""

import select

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from flannel_udp._fastpath.atomics cimport add_word, load_table, load_word, store_table, store_word
from flannel_udp._fastpath.clock cimport now_ns
from flannel_udp._fastpath.coalesce cimport write_queue_clear
from flannel_udp._fastpath.datapath cimport (
    FOR_EVER,
    LANES_MAX,
    PEER_CHUNK,
    PEER_CHUNK_BITS,
    PEER_CHUNKS_MAX,
    RECEIVE_BYTES,
    RECEIVE_MAX,
    SOURCE_LOOSE,
    SOURCE_OFF,
    SOURCE_STRICT,
    TUN_BUFFER_BYTES,
    Datapath,
    PeerState,
    state_of,
)
from flannel_udp._fastpath.drops cimport DROP_REASONS, DirectionCounters
from flannel_udp._fastpath.ecn cimport outer_tos_of
from flannel_udp._fastpath.inbound cimport inbound_batch
from flannel_udp._fastpath.outbound cimport outbound_batch
from flannel_udp._fastpath.routes cimport FIRST_PEER, RouteList, RouteTable, Table
from flannel_udp._fastpath.rung cimport rung_in_use, rung_set
from flannel_udp._fastpath.sendqueue cimport RUN_PACKETS_MAX, SEND_ARENA_BYTES
from flannel_udp._fastpath.sockets cimport epoll_event, epoll_wait
from flannel_udp._fastpath.wire cimport check_sizes, htons

from flannel_udp._fastpath.drops import DropReason

cdef enum:
    POLL_MAX_NS = 50000000
    HUGE_PAGE_BYTES = 2 << 20
    BUFFERS_BYTES = TUN_BUFFER_BYTES + SEND_ARENA_BYTES + RECEIVE_MAX * RECEIVE_BYTES
    ARENA_BYTES = (BUFFERS_BYTES + HUGE_PAGE_BYTES - 1) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t n_bytes)

cdef extern from "sys/mman.h" nogil:
    int MADV_HUGEPAGE
    int madvise(void *start, size_t n_bytes, int advice)

SOURCE_CHECKS = {"off": SOURCE_OFF, "loose": SOURCE_LOOSE, "strict": SOURCE_STRICT}


cdef uint8_t *allocate_arena() noexcept:
    """Return ARENA_BYTES of zeros, in huge pages where the kernel grants them; NULL without memory.

    The kernel copies 64 KiB at a time into these buffers and out of them: in small pages that is 16 entries of the TLB
    each, and in a virtual machine a miss walks two page tables.
    """
    cdef uint8_t *arena = <uint8_t *> aligned_alloc(HUGE_PAGE_BYTES, ARENA_BYTES)
    if arena != NULL:
        madvise(arena, ARENA_BYTES, MADV_HUGEPAGE)      # only advice: refused, the pages are small
        memset(arena, 0, ARENA_BYTES)
    return arena


def watch(int tun_fd, int udp_fd) -> select.epoll:
    """Return what watches both descriptors for an engine that they are attached to afterwards. Raises OSError."""
    epoll = select.epoll()
    epoll.register(tun_fd, select.EPOLLIN)
    epoll.register(udp_fd, select.EPOLLIN)
    return epoll


cdef dict direction_as_dict(const DirectionCounters *counters):
    """Return the counters by name; drop reasons that never happened are left out."""
    return {
        "packets": counters.packets,
        "bytes": counters.bytes,
        "drops": {
            reason.name.lower(): counters.drops[<int> reason]
            for reason in DropReason
            if 0 < reason < DROP_REASONS and counters.drops[<int> reason]
        },
    }


cdef class Engine:
    """Moves packets between a TUN and a UDP socket.

    `tun_fd` and `udp_fd` are non-blocking and stay the caller's (see `attach`); `icmp_fd` is a raw socket with
    IP_HDRINCL for answers to dropped packets, or -1 for none. `port` is every peer's UDP port, `vnet_bytes` the size of
    the virtio-net header on the TUN (0 or 10), `source_check` one of `SOURCE_CHECKS`, `dscp` the outer header's (-1:
    the inner one's). `segment`: the socket takes UDP_SEGMENT; `join_tcp`, `join_udp`: the TUN takes super-packets of
    that kind. Raises MemoryError, OSError, ValueError.
    """

    cdef Datapath dp
    cdef const Table *current       # shared with other threads: the table in force
    cdef uint64_t epoch             # shared: odd while a batch may be reading a table
    cdef uint8_t *arena
    cdef object epoll
    cdef RouteTable table           # keeps `current` alive
    cdef bint stopped_watching      # `epoll` has neither descriptor any more
    cdef list retired               # (table, epoch at its retirement)

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
    ):
        check_sizes()
        if vnet_bytes not in (0, 10):
            raise ValueError("vnet_bytes is 0 or 10")
        if source_check not in SOURCE_CHECKS:
            raise ValueError(f"source_check is one of {', '.join(SOURCE_CHECKS)}")
        if not 0 < port < 65536:
            raise ValueError("port is 1 to 65535")
        if not -1 <= dscp < 64:
            raise ValueError("dscp is 0 to 63, or -1 for the inner packet's")
        memset(&self.dp, 0, sizeof(self.dp))
        self.arena = allocate_arena()
        if self.arena == NULL:
            raise MemoryError
        self.dp.tun_buffer = self.arena
        self.dp.send_queue.arena = self.dp.tun_buffer + TUN_BUFFER_BYTES
        self.dp.receive_arena = self.dp.send_queue.arena + SEND_ARENA_BYTES
        write_queue_clear(&self.dp.write_queue)
        self.forward_until(None)
        self.dp.outer_tos = outer_tos_of(dscp)
        self.dp.icmp_fd = icmp_fd
        self.dp.port = htons(<unsigned short> port)
        self.dp.vnet_bytes = vnet_bytes
        self.dp.receive_n = RECEIVE_MAX
        self.dp.source_check = SOURCE_CHECKS[source_check]
        self.retired = []
        self.attach(tun_fd, udp_fd, segment, join_tcp, join_udp, lanes)
        self.publish(_empty_table())

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(<uint32_t> PEER_CHUNKS_MAX):
            free(self.dp.peer_chunks[i])
        free(self.arena)

    def attach(
        self, int tun_fd, int udp_fd, bint segment=False, bint join_tcp=False, bint join_udp=False, lanes=(), epoll=None
    ) -> None:
        """Work on these descriptors from now on; the table in force and the counters stay.

        `lanes` are more sockets, of the same address and port, through which the peers' packets leave, each always
        through the same: with `udp_fd` 1, 2, 4 … 64. `epoll` is what `watch` returned for the descriptors; without it
        that is done here. The polling thread must have stopped; `fileno` is another one afterwards. Raises OSError,
        where `epoll` was not given, and ValueError.
        """
        if (join_tcp or join_udp) and not self.dp.vnet_bytes:
            raise ValueError("a TUN without virtio-net headers takes no super-packets")
        n_lanes = 1 + len(lanes)
        if n_lanes > LANES_MAX or n_lanes & (n_lanes - 1):
            raise ValueError(f"the lanes, with the socket itself, are a power of two up to {LANES_MAX}")
        if epoll is None:
            epoll = watch(tun_fd, udp_fd)
        if self.epoll is not None:
            self.epoll.close()
        self.epoll = epoll
        self.dp.epoll_fd = epoll.fileno()
        self.dp.tun_fd = tun_fd
        self.dp.udp_fd = udp_fd
        for i, fd in enumerate((udp_fd, *lanes)):
            self.dp.lanes[i] = fd
        self.dp.n_lanes = <uint32_t> n_lanes
        self.dp.send_queue.packets_max = RUN_PACKETS_MAX if segment else 1
        rung_set(&self.dp.write_queue.join_tcp, join_tcp)
        rung_set(&self.dp.write_queue.join_udp, join_udp)
        self.dp.tun_errno = 0
        self.dp.read_errors = 0
        self.forget_path_mtus()         # another address may have other ways to the peers
        self.stopped_watching = False

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
        cdef epoll_event events[2]
        with nogil:
            while self.dp.tun_errno == 0:
                ready = epoll_wait(self.dp.epoll_fd, events, 2, 0 if spins else <int> linger_ms)
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
        """Move a batch from each descriptor that is ready, with the table in force."""
        cdef uint32_t got = 0
        cdef int i
        add_word(&self.epoch, 1)
        self.dp.table = load_table(&self.current)
        for i in range(n):
            if events[i].data.fd == self.dp.tun_fd:
                got += outbound_batch(&self.dp)
            else:
                got += inbound_batch(&self.dp)
        add_word(&self.epoch, 1)
        return got

    def _stop_watching(self) -> None:
        """Watch nothing more: a TUN that is beyond use would wake us for ever, and datagrams have nowhere to go."""
        self.stopped_watching = True
        self.epoll.unregister(self.dp.tun_fd)
        self.epoll.unregister(self.dp.udp_fd)

    @property
    def segments(self) -> bool:
        """Whether runs are sent with UDP_SEGMENT: asked for, and not refused for any peer that had none taken since."""
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

    def publish(self, RouteTable table not None) -> None:
        """Put a table in force, from any thread but only one at a time; batches that start from now on use it."""
        self._allocate_peer_states(table.table.n_hops)
        old = self.table
        table.n_engines += 1            # first: from now on it must not be written
        store_table(&self.current, &table.table)
        self.table = table
        if old is not None:
            self.retired.append((old, load_word(&self.epoch)))
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

    def reclaim(self) -> int:
        """Let go of retired tables that no batch can be reading any more; return how many are left."""
        cdef uint64_t now = load_word(&self.epoch)
        cdef RouteTable table
        held = []
        for table, seen in self.retired:
            if seen % 2 and seen == now:
                held.append((table, seen))
            else:
                table.n_engines -= 1
        self.retired = held
        return len(held)

    def counters(self) -> dict:
        """Return what was forwarded and dropped in both directions, ICMP answers given and system calls made."""
        return {
            "out": direction_as_dict(&self.dp.out_counters),
            "in": direction_as_dict(&self.dp.in_counters),
            "icmp": {
                "sent": self.dp.icmp_counters.sent,
                "rate_limited": self.dp.icmp_counters.rate_limited,
                "failed": self.dp.icmp_counters.failed,
            },
            "system_calls": {
                "tun_reads": self.dp.calls.tun_reads,
                "tun_writes": self.dp.calls.tun_writes,
                "tun_join_errors": self.dp.calls.tun_join_errors,
                "udp_sends": self.dp.calls.udp_sends,
                "udp_receives": self.dp.calls.udp_receives,
                "udp_receive_errors": self.dp.calls.udp_receive_errors,
            },
        }

    def peer_counters(self, uint32_t peer) -> tuple:
        """Return (packets out, bytes out, packets in, bytes in) of a peer index since the engine was made."""
        cdef PeerState *counted
        if peer >> PEER_CHUNK_BITS >= PEER_CHUNKS_MAX or self.dp.peer_chunks[peer >> PEER_CHUNK_BITS] == NULL:
            return (0, 0, 0, 0)
        counted = state_of(&self.dp, peer)
        return (counted.packets_out, counted.bytes_out, counted.packets_in, counted.bytes_in)

    def close(self) -> None:
        """Close the epoll descriptor. The thread that polls must have stopped."""
        self.epoll.close()

    cdef int _allocate_peer_states(self, uint32_t n_hops) except -1:
        """Have counters for all next hops before the data thread can meet them. Chunks never move or go."""
        cdef uint32_t chunk
        if n_hops > <uint32_t> PEER_CHUNK * PEER_CHUNKS_MAX:
            raise ValueError(f"more than {PEER_CHUNK * PEER_CHUNKS_MAX - FIRST_PEER} peers")
        for chunk in range((n_hops + PEER_CHUNK - 1) >> PEER_CHUNK_BITS):
            if self.dp.peer_chunks[chunk] == NULL:
                self.dp.peer_chunks[chunk] = <PeerState *> calloc(PEER_CHUNK, sizeof(PeerState))
                if self.dp.peer_chunks[chunk] == NULL:
                    raise MemoryError
        return 0


def _empty_table() -> RouteTable:
    from array import array

    return RouteTable(RouteList(), array("I", [0, 0]))
