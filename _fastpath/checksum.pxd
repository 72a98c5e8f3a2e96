"""The Internet checksum: RFC 1071 sum and RFC 1624 patch. Sums are kept in the order of the bytes in memory:
one's complement addition does not care (RFC 1071 section 2 (B)), so no byte is ever swapped."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from flannel_udp._fastpath.wire cimport be16


cdef inline uint64_t sum_words(const uint8_t *data, size_t n_bytes, uint64_t total) noexcept nogil:
    """Add the 16-bit words of `data` to `total`, four bytes at a time; a last odd byte is padded with zero.

    The 64-bit total has room for the carries of 2^32 additions.
    """
    cdef uint32_t word = 0
    while n_bytes >= 4:
        memcpy(&word, data, 4)
        total += word
        data += 4
        n_bytes -= 4
    if n_bytes:
        word = 0
        memcpy(&word, data, n_bytes)
        total += word
    return total


cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    """Fold the carries back in until 16 bits are left (RFC 1071 section 1)."""
    total = <uint32_t> total + (total >> 32)
    total = <uint32_t> total + (total >> 32)
    total = <uint16_t> total + (total >> 16)
    total = <uint16_t> total + (total >> 16)
    return <uint16_t> (<uint16_t> total + (total >> 16))


cdef inline be16 checksum_of(const uint8_t *data, size_t n_bytes) noexcept nogil:
    """The checksum field for `data`, whose own checksum field is zero. Over good data it gives 0."""
    return <be16> (~fold(sum_words(data, n_bytes, 0)) & 0xffff)


cdef inline be16 patch_checksum(be16 checksum, be16 old_word, be16 new_word) noexcept nogil:
    """The checksum after one 16-bit word of the data changed: RFC 1624 section 3, equation 3."""
    cdef uint64_t total = <uint64_t> (~checksum & 0xffff) + <uint64_t> (~old_word & 0xffff) + new_word
    return <be16> (~fold(total) & 0xffff)
