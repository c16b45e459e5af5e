/* The probe of what SpMV in bfloat16 does with AVX-512 VBMI and BF16. A loop has 16 tables and 8 sums, none of which
 * waits for another.
 *
 *     for every 16 registers of memory:          16 items
 *         table[i] = table[i][positions]                              VPERMT2W: 32 of 64 entries
 *         sum[i % 8] += table[i] * weight, two products a lane        VDPBF16PS
 *
 * Two of each a cycle on AMD Zen 5; on Intel a look-up takes two cycles, a product one or two. */
#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
#include <immintrin.h>

#include "gsp_probe.h"

#define LANES 16
#define TABLES 16
#define SUMS 8

float gspi_probe__avx512bf16(gspi_probe_kind kind, const float *memory, size_t bytes,
                             int64_t rounds) {
    (void)kind;
    const size_t count = bytes / sizeof *memory;
    const __m512i entries = _mm512_load_si512(memory);
    const __m512i positions = _mm512_xor_si512(entries, _mm512_set1_epi32(17));
    __m512i table[TABLES];
    __m512 sum[SUMS];
    for (int i = 0; i < TABLES; i++) table[i] = entries;
    for (int i = 0; i < SUMS; i++) sum[i] = _mm512_setzero_ps();
    for (int64_t round = 0; round < rounds; round++)
        for (size_t at = 0; at < count; at += TABLES * LANES)
            for (int i = 0; i < TABLES; i++) {
                table[i] = _mm512_permutex2var_epi16(table[i], positions, entries);
                sum[i % SUMS] =
                    _mm512_dpbf16_ps(sum[i % SUMS], (__m512bh)entries, (__m512bh)entries);
            }
    for (int i = 1; i < TABLES; i++) table[0] = _mm512_xor_si512(table[0], table[i]);
    for (int i = 1; i < SUMS; i++) sum[0] = _mm512_xor_ps(sum[0], sum[i]);
    return _mm512_reduce_max_ps(_mm512_xor_ps(sum[0], _mm512_castsi512_ps(table[0])));
}
#endif
