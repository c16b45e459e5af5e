/* Probes with AVX2. A loop has 8 chains, none of which waits for another.
 *
 *     for every 8 registers of memory:           8 items
 *         read, ahead:      sum[i] ^= memory[i]
 *         permute:          sum[i] = sum[i][positions]            VPERMPS
 *         step:             sum[i] += weight * weight[positions]
 *         fma:              sum[i] += weight * weight             VFMADD
 *         load_fma:         sum[i] += weight * memory[i]
 *
 * FMA and loads 2 a cycle; permutes 1 a cycle on Intel, on a port of its own, 2 on AMD Zen 5. */
#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#include "gsp_probe.h"

#define LANES 8
#define CHAINS 8
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

float gspi_probe__avx2(gspi_probe_kind kind, const float *memory, size_t bytes, int64_t rounds) {
    const size_t count = bytes / sizeof *memory;
    const __m256 weight = _mm256_load_ps(memory);
    __m256i positions = _mm256_xor_si256(_mm256_castps_si256(weight), _mm256_set1_epi32(5));
    __m256 sum[CHAINS];
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm256_setzero_ps();
    switch (kind) {
    case GSPI_PROBE_READ: EVERY(sum[i] = _mm256_xor_ps(sum[i], _mm256_load_ps(here)));
    case GSPI_PROBE_AHEAD:
        EVERY(if (i % 2 == 0) _mm_prefetch((const char *)(here + AHEAD), _MM_HINT_T0);
              sum[i] = _mm256_xor_ps(sum[i], _mm256_load_ps(here)));
    case GSPI_PROBE_PERMUTE: EVERY(sum[i] = _mm256_permutevar8x32_ps(sum[i], positions));
    case GSPI_PROBE_STEP:
        /* For all that the compiler knows, the positions are others each time. */
        EVERY(__asm__("" : "+x"(positions));
              sum[i] =
                  _mm256_fmadd_ps(_mm256_permutevar8x32_ps(weight, positions), weight, sum[i]));
    case GSPI_PROBE_FMA: EVERY(sum[i] = _mm256_fmadd_ps(weight, weight, sum[i]));
    case GSPI_PROBE_LOAD_FMA: EVERY(sum[i] = _mm256_fmadd_ps(weight, _mm256_load_ps(here), sum[i]));
    case GSPI_PROBE_PAIRS:
    case GSPI_PROBE_BYTES: break; /* not here */
    }
    for (int i = 1; i < CHAINS; i++) sum[0] = _mm256_xor_ps(sum[0], sum[i]);
    return _mm256_cvtss_f32(sum[0]);
}
#endif
