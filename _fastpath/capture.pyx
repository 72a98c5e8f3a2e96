"""Note the packets of a datapath whose engine has a ring."""

from libc.string cimport memset

from flannel_udp._fastpath.capture_ring cimport (
    IN_INNER,
    IN_OUTER,
    OUT_INNER,
    OUT_OUTER,
    RECORD_MAY_FRAGMENT,
    Place,
    Record,
    note,
    takes,
)
from flannel_udp._fastpath.drops cimport KEEP
from flannel_udp._fastpath.family cimport FAMILY_6
from flannel_udp._fastpath.outer_address cimport name_outer_end
from flannel_udp._fastpath.sendqueue cimport OUTER_TOS, TO_FRAGMENT
from flannel_udp._fastpath.wire cimport VNET_GSO_NONE, VirtioNetHeader, ntohs


cdef void begin_record(
    const Datapath *dp, Record *record, Place place, DropReason reason, uint64_t time_ns, uint32_t n
) noexcept nogil:
    memset(record, 0, sizeof(Record))
    record.time_ns = time_ns
    record.place = <uint8_t> place
    record.reason = <uint8_t> reason
    record.family = <uint8_t> dp.family
    record.encapsulation = <uint8_t> dp.encapsulation
    record.n = <uint16_t> n
    if dp.family == FAMILY_6:
        memcpy(record.own_addr, dp.outer_addr6, sizeof(dp.outer_addr6))
    else:
        memcpy(record.own_addr, &dp.outer_addr, sizeof(dp.outer_addr))


cdef void name_peer(Record *record, const Packet *packet) noexcept nogil:
    """Note the underlay address that stands with a packet."""
    if packet.outer_addr6 != NULL:
        memcpy(record.peer_addr, packet.outer_addr6, 16)
    else:
        memcpy(record.peer_addr, &packet.outer_addr, sizeof(packet.outer_addr))


cdef void note_original(Datapath *dp, Record *record, const Original *original) noexcept nogil:
    cdef iovec[2] pieces
    pieces[0].iov_base = <void *> original.saved
    pieces[0].iov_len = original.n_saved
    pieces[1].iov_base = original.data + original.n_saved
    pieces[1].iov_len = original.len - original.n_saved
    note(dp.ring, record, pieces, 2, 0)


cdef void capture_read(
    Datapath *dp, const Original *original, uint16_t segment_bytes, const Packet *packet, DropReason reason
) noexcept nogil:
    cdef Record record
    cdef Packet named = packet[0]
    if dp.ring == NULL or not takes(dp.ring, OUT_INNER, reason):
        return
    begin_record(dp, &record, OUT_INNER, reason, original.time_ns, 1)
    name_outer_end(dp, dp.family, &named)
    name_peer(&record, &named)
    record.segment_bytes = segment_bytes
    note_original(dp, &record, original)


cdef void capture_run(Datapath *dp, const Run *run, uint32_t lane, DropReason reason, uint32_t n) noexcept nogil:
    cdef Record record
    cdef Packet named
    cdef iovec piece
    cdef uint64_t time_ns = read_ns(CLOCK_REALTIME)
    cdef uint32_t at = 0
    named.next_hop = run.next_hop
    name_outer_end(dp, dp.family, &named)
    while n != 0:
        piece.iov_base = run.data + at
        piece.iov_len = min(run.segment_len, run.n_bytes - at)
        at += run.segment_len
        n -= 1
        if not takes(dp.ring, OUT_OUTER, reason):
            continue
        begin_record(dp, &record, OUT_OUTER, reason, time_ns, 1)
        name_peer(&record, &named)
        record.outer_tos = <uint8_t> (run.how & OUTER_TOS)
        record.flags = <uint8_t> (RECORD_MAY_FRAGMENT if run.how & TO_FRAGMENT else 0)
        record.source_port = ntohs(dp.lane_ports[lane])
        record.destination_port = ntohs(dp.port)
        note(dp.ring, &record, &piece, 1, 0)


cdef void capture_received(
    Datapath *dp, const Original *original, const Bundle *bundle, const Packet *packet, DropReason reason
) noexcept nogil:
    cdef Record record
    if not takes(dp.ring, IN_OUTER, reason):
        return
    begin_record(dp, &record, IN_OUTER, reason, original.time_ns, 1)
    name_peer(&record, packet)
    record.outer_tos = bundle.outer_tos
    record.source_port = ntohs(bundle.outer_port)
    record.destination_port = ntohs(dp.port)
    record.segment_bytes = packet.gso_size
    note_original(dp, &record, original)


cdef void capture_written(
    Datapath *dp, const Write *write, const iovec *pieces, uint32_t n_pieces, uint32_t n
) noexcept nogil:
    cdef Record record
    cdef VirtioNetHeader vnet
    if not takes(dp.ring, IN_INNER, KEEP):
        return
    begin_record(dp, &record, IN_INNER, KEEP, read_ns(CLOCK_REALTIME), n)
    name_peer(&record, &write.packet)
    if dp.vnet_bytes:
        memcpy(&vnet, pieces[0].iov_base, sizeof(vnet))
        record.segment_bytes = vnet.gso_size if vnet.gso_type != VNET_GSO_NONE else 0
    note(dp.ring, &record, pieces, n_pieces, dp.vnet_bytes)


cdef void capture_lost(Datapath *dp, const Write *write, DropReason reason, uint32_t n) noexcept nogil:
    cdef Record record
    cdef iovec piece
    if not takes(dp.ring, IN_INNER, reason):
        return
    begin_record(dp, &record, IN_INNER, reason, read_ns(CLOCK_REALTIME), n)
    name_peer(&record, &write.packet)
    piece.iov_base = write.packet.data
    piece.iov_len = write.packet.len
    note(dp.ring, &record, &piece, 1, 0)
