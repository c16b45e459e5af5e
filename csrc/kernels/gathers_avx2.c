/* Gathers with AVX2, four chains of sums.
 *
 *     for every 8 indices:
 *         gather:           sum += bits of table[indices]                             VGATHERDPS
 *         permute:          sum += bits of (8 floats around the first)[indices % 8]    VPERMPS
 *
 * A gather loads lane by lane, and on AMD from microcode: plain loads are faster. VPERMPS reads no more than the low
 * three bits of an index: 1 a cycle on Intel, 2 on AMD Zen 5. */
#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#include "gsp_gathers.h"

#define LANES 8
#define CHAINS 4

#define EVERY(gathered)                                                                            \
    __m256i sum[CHAINS] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), \
                           _mm256_setzero_si256()};                                                \
    for (int64_t at = 0; at < count; at += CHAINS * LANES)                                         \
        for (int i = 0; i < CHAINS; i++) {                                                         \
            const int32_t *here = indices + at + i * LANES;                                        \
            const __m256i index = _mm256_loadu_si256((const __m256i *)here);                       \
            sum[i] = _mm256_add_epi32(sum[i], _mm256_castps_si256(gathered));                      \
        }                                                                                          \
    return added(                                                                                  \
        _mm256_add_epi32(_mm256_add_epi32(sum[0], sum[1]), _mm256_add_epi32(sum[2], sum[3])))

static uint32_t added(__m256i lanes) {
    uint32_t lane[LANES], sum = 0;
    _mm256_storeu_si256((__m256i *)lane, lanes);
    for (int i = 0; i < LANES; i++) sum += lane[i];
    return sum;
}

uint32_t gspi_gather__avx2(const int32_t *indices, int64_t count, float *table) {
    EVERY(_mm256_i32gather_ps(table, index, 4));
}

uint32_t gspi_permute__avx2(const int32_t *indices, int64_t count, float *table) {
    EVERY(_mm256_permutevar8x32_ps(_mm256_loadu_ps(table + (*here & -LANES)), index));
}
#endif
