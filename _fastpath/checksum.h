/* The payload sum, in C for one reason: Cython cannot ask for several machine versions of one function.
 *
 * A plain loop that the compiler vectorises (the build asks for -O3). On x86-64 with glibc the loader picks the AVX2
 * version where the processor has it: 52 GB/s against 27 (EPYC, 1,420 bytes from the cache). Everywhere else the same
 * loop is compiled once.
 */
#ifndef FLANNEL_UDP_CHECKSUM_H
#define FLANNEL_UDP_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define SEVERAL_VERSIONS __attribute__((target_clones("avx2", "default"), noinline))
#else
#define SEVERAL_VERSIONS
#endif

/* Add `n_words` 32-bit words to `total`; 2^32 of them fit without losing a carry. No alignment is needed. */
SEVERAL_VERSIONS static uint64_t sum_words32(const uint8_t *data, size_t n_words, uint64_t total) {
    for (size_t i = 0; i < n_words; i++) {
        uint32_t word;
        memcpy(&word, data + 4 * i, sizeof word);
        total += word;
    }
    return total;
}

/* The same while the words are copied to `place`, so that the data goes through the core once instead of twice. */
SEVERAL_VERSIONS static uint64_t copy_words32(
    uint8_t *restrict place, const uint8_t *restrict data, size_t n_words, uint64_t total
) {
    for (size_t i = 0; i < n_words; i++) {
        uint32_t word;
        memcpy(&word, data + 4 * i, sizeof word);
        memcpy(place + 4 * i, &word, sizeof word);
        total += word;
    }
    return total;
}

#endif
