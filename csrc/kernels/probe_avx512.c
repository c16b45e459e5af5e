/* Probes with AVX-512. A loop has 16 chains, none of which waits for another.
 *
 *     for every 16 registers of memory:          16 items
 *         read, ahead:      sum[i] ^= memory[i]
 *         permute:          sum[i] = sum[i][positions]            VPERMT2PS
 *         step:             both of permute and fma
 *         fma:              sum[i] += weight * weight             VFMADD
 *         load_fma:         sum[i] += weight * memory[i]
 *
 * FMA 2 a cycle; permutes 1 a cycle on Intel, on a port that FMA uses too, 2 on AMD Zen 5; loads 2 a cycle. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>

#include "gsp_probe.h"

#define LANES 16
#define CHAINS 16
#define AHEAD (4096 / sizeof(float))

/* Does `work` for every register of the memory, `rounds` times; i is the chain and `here` the register. */
#define EVERY(work)                                                                                \
    for (int64_t round = 0; round < rounds; round++)                                               \
        for (size_t at = 0; at < count; at += CHAINS * LANES)                                      \
            for (int i = 0; i < CHAINS; i++) {                                                     \
                const float *here = memory + at + i * LANES;                                       \
                (void)here;                                                                        \
                work;                                                                              \
            }                                                                                      \
    break

float gspi_probe__avx512(gspi_probe_kind kind, const float *memory, size_t bytes, int64_t rounds) {
    const size_t count = bytes / sizeof *memory;
    const __m512 weight = _mm512_load_ps(memory);
    const __m512i positions = _mm512_xor_si512(_mm512_castps_si512(weight), _mm512_set1_epi32(17));
    __m512 sum[CHAINS], table[CHAINS];
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_setzero_ps(), table[i] = weight;
    switch (kind) {
    case GSPI_PROBE_READ: EVERY(sum[i] = _mm512_xor_ps(sum[i], _mm512_load_ps(here)));
    case GSPI_PROBE_AHEAD:
        EVERY(_mm_prefetch((const char *)(here + AHEAD), _MM_HINT_T0);
              sum[i] = _mm512_xor_ps(sum[i], _mm512_load_ps(here)));
    case GSPI_PROBE_PERMUTE: EVERY(sum[i] = _mm512_permutex2var_ps(sum[i], positions, weight));
    case GSPI_PROBE_STEP:
        /* VPERMT2PS writes over its table, so the table is the chain. */
        EVERY(table[i] = _mm512_permutex2var_ps(table[i], positions, weight);
              sum[i % 8] = _mm512_fmadd_ps(weight, weight, sum[i % 8]));
    case GSPI_PROBE_FMA: EVERY(sum[i] = _mm512_fmadd_ps(weight, weight, sum[i]));
    case GSPI_PROBE_LOAD_FMA: EVERY(sum[i] = _mm512_fmadd_ps(weight, _mm512_load_ps(here), sum[i]));
    case GSPI_PROBE_PAIRS:
    case GSPI_PROBE_BYTES: break; /* not here */
    }
    for (int i = 1; i < CHAINS; i++)
        sum[0] = _mm512_xor_ps(sum[0], _mm512_xor_ps(sum[i], table[i]));
    return _mm512_reduce_max_ps(sum[0]);
}
#endif
