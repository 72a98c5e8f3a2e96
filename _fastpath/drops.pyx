"""Every reason to drop a packet, one sentence each."""

from libc cimport errno

SENTENCES = {
    DropReason.TOO_SHORT: "shorter than an IPv4 header of 20 bytes",
    DropReason.NOT_IPV4: "the IP version is not 4",
    DropReason.BAD_HEADER_LEN: "the header length is below 20 bytes or beyond the packet",
    DropReason.BAD_TOTAL_LEN: "the total length is not the length of the packet",
    DropReason.BAD_HEADER_CHECKSUM: "the checksum of the IPv4 header is wrong",
    DropReason.BAD_OFFLOAD: "what the virtio-net header says of the packet is not so",
    DropReason.CONGESTION_LOST: "congestion was marked on a packet that cannot carry the mark (RFC 6040)",
    DropReason.NOT_UNICAST: "the destination is a multicast or broadcast address",
    DropReason.NO_ROUTE: "no lease covers the destination",
    DropReason.OWN_SUBNET: "the destination is in our own subnet, where nothing has this address",
    DropReason.TTL_EXPIRED: "the time to live ran out",
    DropReason.UNKNOWN_PEER: "the sender's address is no registered peer's public IP",
    DropReason.SPOOFED_SOURCE: "the inner source lies in a lease that is not the sender's",
    DropReason.NOT_OUR_SUBNET: "the inner destination is not in our subnet",
    DropReason.LEASE_EXPIRED: "our lease ran out before the agent could renew it",
    DropReason.TOO_BIG: "larger than the underlay's path MTU (EMSGSIZE)",
    DropReason.UNREACHABLE: "the underlay has no way to the peer (ENETUNREACH, EHOSTUNREACH)",
    DropReason.REFUSED: "a firewall rule of this host forbids sending (EPERM)",
    DropReason.NO_MEMORY: "the kernel had no buffer left (ENOBUFS, ENOMEM)",
    DropReason.QUEUE_FULL: "the socket or the tunnel device stayed full (EAGAIN)",
    DropReason.DEVICE_DOWN: "the tunnel device or the external interface is down or gone",
    DropReason.SYSTEM_ERROR: "the kernel refused it for another reason",
}


cdef DropReason reason_of_errno(int error) noexcept nogil:
    if error == errno.EAGAIN:
        return QUEUE_FULL
    if error == errno.EMSGSIZE:
        return TOO_BIG
    if error == errno.ENETUNREACH or error == errno.EHOSTUNREACH:
        return UNREACHABLE
    if error == errno.EPERM or error == errno.EACCES:
        return REFUSED
    if error == errno.ENOBUFS or error == errno.ENOMEM:
        return NO_MEMORY
    # A TUN that is down answers EIO, one that was deleted EBADFD (linux, drivers/net/tun.c).
    if error == errno.EIO or error == errno.EBADFD or error == errno.ENETDOWN or error == errno.ENODEV:
        return DEVICE_DOWN
    return SYSTEM_ERROR
