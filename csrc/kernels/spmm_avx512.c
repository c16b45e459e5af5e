/* SpMM in float32 with AVX-512: strips of four rows, registers along the samples.
 *
 *     for every step of a strip:
 *         for r in 0 .. 3:                            x = row at[r] of the tile
 *             for every sample of the tile:           sums[r][sample] += values[r] * x[sample]
 *
 * A tile has 16, 32, 48 or 64 samples, so the sums take 4 to 16 registers. For each step one load brings four values
 * to every quarter of a register, whence VPERMILPS copies each all over (two a cycle, and no load as a broadcast would
 * be); the VFMADDs take x from the first cache: two loads a cycle at best, which is what bounds the kernel. The four
 * positions come through a vector register, one step early: on an AMD Zen 5 a scalar load among vector loads costs
 * as much as two of them (75 against 83 GMAC/s), and the loads of x must not wait for it. Strips of a block pattern
 * share their x, so that a load serves four VFMADDs, which are the bound then.
 *
 * That x should lie in packed tiles which the first cache holds is an old idea of dense products (Goto and van de
 * Geijn, 2008); here the matrix is what streams. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "spmm_fours.h"

#define INLINE static inline __attribute__((always_inline))

/* Positions of a step, in a vector register that the compiler must not turn into a scalar load. */
INLINE __m128i load_positions(const gspi_step *step) {
    __m128i at = _mm_loadl_epi64((const __m128i *)(const void *)step->at);
    __asm__("" : "+v"(at));
    return at;
}

INLINE void add_strips(const unsigned char *strips, const unsigned char *end, const char *tile,
                       char *sums, bool begin, int vectors, bool shared) {
    while (strips < end) {
        const gspi_strip *strip = (const gspi_strip *)(const void *)strips;
        const gspi_step *step = (const gspi_step *)(const void *)(strip + 1);
        const gspi_step *const last = step + strip->steps;
        float *row[4];
        for (int r = 0; r < 4; r++) row[r] = (float *)(void *)(sums + strip->rows[r]);
        __m512 sum[4][GSPI_TILE_VECTORS];
        for (int r = 0; r < 4; r++)
            for (int v = 0; v < vectors; v++)
                sum[r][v] = begin ? _mm512_setzero_ps() : _mm512_load_ps(row[r] + v * 16);
        __m128i next = load_positions(step);
        for (; step < last; step++) {
            const uint64_t at = (uint64_t)_mm_cvtsi128_si64(next);
            next = load_positions(step + 1);
            const __m512 values = _mm512_broadcast_f32x4(_mm_loadu_ps(step->values));
            const __m512 value[4] = {
                _mm512_permute_ps(values, 0x00), _mm512_permute_ps(values, 0x55),
                _mm512_permute_ps(values, 0xaa), _mm512_permute_ps(values, 0xff)};
            if (shared) {
                const float *x = (const float *)(const void *)(tile + (uint16_t)at);
                for (int v = 0; v < vectors; v++) {
                    const __m512 here = _mm512_load_ps(x + v * 16);
                    for (int r = 0; r < 4; r++)
                        sum[r][v] = _mm512_fmadd_ps(value[r], here, sum[r][v]);
                }
            } else {
                for (int r = 0; r < 4; r++) {
                    const float *x = (const float *)(const void *)(tile + (uint16_t)(at >> 16 * r));
                    for (int v = 0; v < vectors; v++)
                        sum[r][v] =
                            _mm512_fmadd_ps(value[r], _mm512_load_ps(x + v * 16), sum[r][v]);
                }
            }
        }
        for (int r = 0; r < 4; r++)
            for (int v = 0; v < vectors; v++) _mm512_store_ps(row[r] + v * 16, sum[r][v]);
        strips = (const unsigned char *)last;
    }
}

#define ADD(name, vectors, shared)                                                                 \
    static void name(const unsigned char *strips, const unsigned char *end, const char *tile,      \
                     char *sums, bool begin) {                                                     \
        add_strips(strips, end, tile, sums, begin, vectors, shared);                               \
    }
ADD(fours_1, 1, false)
ADD(fours_2, 2, false)
ADD(fours_3, 3, false)
ADD(fours_4, 4, false)
ADD(stacks_1, 1, true)
ADD(stacks_2, 2, true)
ADD(stacks_3, 3, true)
ADD(stacks_4, 4, true)

void gsp_f32_spmm_fours__avx512(const gsp_plan *plan, const gspi_product *product, int64_t first,
                                int64_t last) {
    static gspi_strips *const add[] = {fours_1, fours_2, fours_3, fours_4};
    spmm_fours(plan, product, first, last, add);
}

void gsp_f32_spmm_stacks__avx512(const gsp_plan *plan, const gspi_product *product, int64_t first,
                                 int64_t last) {
    static gspi_strips *const add[] = {stacks_1, stacks_2, stacks_3, stacks_4};
    spmm_fours(plan, product, first, last, add);
}
#endif
