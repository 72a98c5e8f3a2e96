"""The checksum functions of `checksum.pxd` for tests; the packet path uses them inline."""

from flannel_udp._fastpath.wire cimport ntohs


def checksum(const unsigned char[::1] data not None) -> int:
    """Return the RFC 1071 checksum of `data` in host order."""
    if data.shape[0] == 0:
        return 0xffff
    return ntohs(finish(sum_bytes(&data[0], <size_t> data.shape[0], 0)))


def patch(unsigned short checksum, unsigned short old_word, unsigned short new_word) -> int:
    """Return `checksum` after `old_word` became `new_word` (RFC 1624); all in host order."""
    return ntohs(patch_checksum(htons(checksum), htons(old_word), htons(new_word)))
