/* Gathers and scatters with AVX-512, four chains of sums.
 *
 *     for every 16 indices:
 *         gather:           sum += bits of table[indices]                               VGATHERDPS
 *         permute:          sum += bits of (32 floats around the first)[indices % 32]    VPERMI2PS
 *         scatter:          table[indices] = numbers of the slots                        VSCATTERDPS
 *
 * A gather loads lane by lane, a scatter stores so, and on AMD from microcode: plain loads are faster. Of lanes with
 * the same index the last one is stored. VPERMI2PS reads no more than the low five bits of an index: 1 a cycle on
 * Intel, 2 on AMD Zen 5. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>

#include "gsp_gathers.h"

#define LANES 16
#define CHAINS 4
#define REACH (2 * LANES)

#define EVERY(gathered)                                                                            \
    __m512i sum[CHAINS] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), \
                           _mm512_setzero_si512()};                                                \
    for (int64_t at = 0; at < count; at += CHAINS * LANES)                                         \
        for (int i = 0; i < CHAINS; i++) {                                                         \
            const int32_t *here = indices + at + i * LANES;                                        \
            const __m512i index = _mm512_loadu_si512(here);                                        \
            sum[i] = _mm512_add_epi32(sum[i], _mm512_castps_si512(gathered));                      \
        }                                                                                          \
    return added(                                                                                  \
        _mm512_add_epi32(_mm512_add_epi32(sum[0], sum[1]), _mm512_add_epi32(sum[2], sum[3])))

/* _mm512_reduce_add_epi32 adds as int, which must not overflow. */
static uint32_t added(__m512i lanes) {
    uint32_t lane[LANES], sum = 0;
    _mm512_storeu_si512(lane, lanes);
    for (int i = 0; i < LANES; i++) sum += lane[i];
    return sum;
}

uint32_t gspi_gather__avx512(const int32_t *indices, int64_t count, float *table) {
    EVERY(_mm512_i32gather_ps(index, table, 4));
}

static inline __m512 look_up(const float *entries, __m512i index) {
    return _mm512_permutex2var_ps(_mm512_loadu_ps(entries), index,
                                  _mm512_loadu_ps(entries + LANES));
}

uint32_t gspi_permute__avx512(const int32_t *indices, int64_t count, float *table) {
    EVERY(look_up(table + (*here & -REACH), index));
}

uint32_t gspi_scatter__avx512(const int32_t *indices, int64_t count, float *table) {
    __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t at = 0; at < count; at += LANES) {
        _mm512_i32scatter_ps(table, _mm512_loadu_si512(indices + at), _mm512_castsi512_ps(number),
                             4);
        number = _mm512_add_epi32(number, _mm512_set1_epi32(LANES));
    }
    return 0;
}
#endif
