"""What a datapath has counted, as Python has it."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from flannel_udp._fastpath.datapath cimport PEER_CHUNK_BITS, PEER_CHUNKS_MAX, PeerState, state_of
from flannel_udp._fastpath.drops cimport (
    DROP_REASONS,
    OUTER_IS_IPV6,
    SAMPLES_KEPT,
    DirectionCounters,
    DropSample,
    read_sample,
)
from flannel_udp._fastpath.wire cimport IPV6_HEADER_BYTES, be32

from flannel_udp._fastpath.drops import DropReason


cdef dict counters_as_dict(const Datapath *dp):
    return {
        "out": direction_as_dict(&dp.out_counters),
        "in": direction_as_dict(&dp.in_counters),
        "icmp": {
            "sent": dp.icmp_counters.sent,
            "rate_limited": dp.icmp_counters.rate_limited,
            "failed": dp.icmp_counters.failed,
        },
        "system_calls": {
            "tun_reads": dp.calls.tun_reads,
            "tun_read_errors": dp.calls.tun_read_errors,
            "tun_writes": dp.calls.tun_writes,
            "tun_join_errors": dp.calls.tun_join_errors,
            "udp_sends": dp.calls.udp_sends,
            "udp_receives": dp.calls.udp_receives,
            "udp_receive_errors": dp.calls.udp_receive_errors,
        },
        "offloaded_in": {
            "partial_checksums": dp.offloaded_in.partial_checksums,
            "super_packets": dp.offloaded_in.super_packets,
        },
    }


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


cdef list samples_as_rows(const Datapath *dp):
    return direction_as_rows("out", &dp.out_counters) + direction_as_rows("in", &dp.in_counters)


cdef list direction_as_rows(str direction, const DirectionCounters *counters):
    cdef DropSample sample
    cdef uint32_t i
    rows = []
    for reason in DropReason:
        if not 0 < reason < DROP_REASONS or not counters.drops[<int> reason]:
            continue
        for i in range(<uint32_t> SAMPLES_KEPT):
            if read_sample(&counters.samples[<int> reason][i], &sample):
                rows.append((direction, reason.name.lower(), *sample_as_row(&sample)))
    return rows


cdef tuple sample_as_row(const DropSample *sample):
    cdef const uint8_t *ipv6 = <const uint8_t *> sample.addresses6
    cdef const uint8_t *ipv4 = <const uint8_t *> &sample.addresses
    cdef be32 outer_ipv4 = <be32> sample.rest
    cdef uint64_t n_bytes = sample.rest >> 32 & 0xffff
    version = sample.rest >> 56
    if version == 6 and n_bytes >= IPV6_HEADER_BYTES:
        source, destination = ipv6[:16], ipv6[16:32]
    else:
        source, destination = ipv4[:4], ipv4[4:8]
    if outer_ipv4 == <be32> OUTER_IS_IPV6:
        outer = ipv6[32:48]
    else:
        outer = (<const uint8_t *> &outer_ipv4)[:4] if outer_ipv4 else b""
    return (
        sample.time_ns,
        sample.sequence // 2,
        outer,
        version,
        source,
        destination,
        sample.rest >> 48 & 0xff,
        n_bytes,
    )


cdef inline bint is_counted(const Datapath *dp, uint32_t peer) noexcept:
    """Whether there are counters of a peer index."""
    return peer >> PEER_CHUNK_BITS < PEER_CHUNKS_MAX and dp.peer_chunks[peer >> PEER_CHUNK_BITS] != NULL


cdef tuple peer_counters_as_tuple(Datapath *dp, uint32_t peer):
    cdef PeerState *counted
    if not is_counted(dp, peer):
        return (0, 0, 0, 0, 0)
    counted = state_of(dp, peer)
    return (counted.packets_out, counted.bytes_out, counted.packets_in, counted.bytes_in, counted.refused_out)


cdef list active_peers(Datapath *dp, uint32_t first, uint32_t n):
    cdef PeerState *state
    cdef uint64_t packets_out, packets_in, bytes_out, bytes_in
    cdef uint32_t peer
    active = []
    for peer in range(first, first + n):
        if not is_counted(dp, peer):
            break
        state = state_of(dp, peer)
        packets_out, packets_in = state.packets_out + state.refused_out, state.packets_in
        if packets_out != state.sampled_out or packets_in != state.sampled_in:
            bytes_out, bytes_in = state.bytes_out, state.bytes_in
            active.append((
                peer, packets_out - state.sampled_out, packets_in - state.sampled_in, state.longest_out,
                bytes_out - state.sampled_bytes_out, bytes_in - state.sampled_bytes_in,
            ))
            state.sampled_out, state.sampled_in, state.longest_out = packets_out, packets_in, 0
            state.sampled_bytes_out, state.sampled_bytes_in = bytes_out, bytes_in
    return active
