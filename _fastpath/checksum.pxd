"""The Internet checksum: RFC 1071 sum and RFC 1624 patch. Sums are kept in the order of the bytes in memory:
one's complement addition does not care (RFC 1071 section 2 (B)), so no byte is ever swapped."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from flannel_udp._fastpath.wire cimport be16, be32, htons

cdef extern from "checksum.h" nogil:
    uint64_t sum_words32(const uint8_t *data, size_t n_words, uint64_t total)
    uint64_t copy_words32(uint8_t *place, const uint8_t *data, size_t n_words, uint64_t total)


cdef inline uint64_t sum_bytes(const uint8_t *data, size_t n_bytes, uint64_t total) noexcept nogil:
    """Add the 16-bit words of `data` to `total`, four bytes at a time; a last odd byte is padded with zero."""
    cdef uint32_t word = 0
    total = sum_words32(data, n_bytes // 4, total)
    if n_bytes % 4:
        memcpy(&word, data + (n_bytes - n_bytes % 4), n_bytes % 4)
        total += word
    return total


cdef inline uint64_t copy_bytes(uint8_t *place, const uint8_t *data, size_t n_bytes, uint64_t total) noexcept nogil:
    """Copy `data` to `place`, and add it to `total` as `sum_bytes` does."""
    cdef uint32_t word = 0
    cdef size_t whole = n_bytes - n_bytes % 4
    total = copy_words32(place, data, n_bytes // 4, total)
    if n_bytes % 4:
        memcpy(&word, data + whole, n_bytes % 4)
        memcpy(place + whole, &word, n_bytes % 4)
        total += word
    return total


cdef inline uint64_t sum_header(const uint8_t *header, uint32_t n_words, uint64_t total) noexcept nogil:
    """Like `sum_bytes` for the few 32-bit words of a header, without a call."""
    cdef uint32_t word = 0
    cdef uint32_t i
    for i in range(n_words):
        memcpy(&word, header + 4 * i, 4)
        total += word
    return total


cdef inline uint64_t sum_pseudo_header(be32 src, be32 dst, uint8_t protocol, uint32_t l4_len) noexcept nogil:
    """The pseudo-header of TCP (RFC 9293 section 3.1) and UDP (RFC 768): addresses, protocol, length."""
    return <uint64_t> src + dst + htons(protocol) + htons(<uint16_t> l4_len)


cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    """Fold the carries back in until 16 bits are left (RFC 1071 section 1)."""
    total = <uint32_t> total + (total >> 32)    # at most 33 bits, and then 32
    total = <uint32_t> total + (total >> 32)
    total = <uint16_t> total + (total >> 16)    # at most 17 bits
    return <uint16_t> (<uint16_t> total + (total >> 16))


cdef inline be16 finish(uint64_t total) noexcept nogil:
    """The checksum field for data with this sum, its own checksum field counted as zero. Over good data it gives 0."""
    return <be16> (~fold(total) & 0xffff)


cdef inline be16 patch_checksum(be16 checksum, be16 old_word, be16 new_word) noexcept nogil:
    """The checksum after one 16-bit word of the data changed: RFC 1624 section 3, equation 3."""
    return finish(<uint64_t> (~checksum & 0xffff) + <uint64_t> (~old_word & 0xffff) + new_word)
