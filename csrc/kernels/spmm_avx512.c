/* SpMM in float32 with AVX-512: strips of eight rows, registers along the samples.
 *
 *     for every step of a strip:
 *         for r in 0 .. 7:                            x = row position[r] of the tile
 *             for every sample of the tile:           sums[r][sample] += values[r] * x[sample]
 *
 * A tile has 16 or 32 samples, so the sums take 8 or 16 registers. For each step one load brings eight values, and
 * VPERMPS copies each all over a register (two a cycle, and no load as a broadcast would be); the VFMADDs take x from
 * the first cache: two loads a cycle at best, which is what bounds the kernel. The eight positions come through a
 * vector register, where they are multiplied by the length of a row of the tile, and early: on an AMD Zen 5 a scalar
 * load among vector loads costs as much as two of them, and the loads of x must not wait for their addresses. Fours of
 * rows of a block pattern share their x, so that a load serves four VFMADDs, which are the bound then.
 *
 * That x should lie in packed tiles which the first cache holds is an old idea of dense products (Goto and van de
 * Geijn, 2008); here the matrix is what streams. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "spmm_strips.h"

#define INLINE static inline __attribute__((always_inline))
/* How far ahead values are prefetched; plans often lie in the third cache. */
#define AHEAD_BYTES 2048

/* Where the columns of a step begin in the tile: eight times 16 bits. */
INLINE __m128i load_offsets(const uint8_t *positions, __m128i stride) {
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)positions);
    return _mm_mullo_epi16(_mm_cvtepu8_epi16(bytes), stride);
}

INLINE float *row_of(char *sums, const gspi_strip *strip, int r, int shift) {
    return (float *)(void *)(sums + ((size_t)strip->rows[r] << shift));
}

/* `stack` rows share their columns. */
INLINE void add_strips(const gsp_plan *plan, const gspi_strip *strip, const gspi_strip *end,
                       const char *tile, char *sums, bool begin, const gspi_out *out, int vectors,
                       int stack) {
    __m512i lane[GSPI_STRIP_ROWS];
    for (int r = 0; r < GSPI_STRIP_ROWS; r++) {
        lane[r] = _mm512_set1_epi32(r);
        __asm__("" : "+v"(lane[r])); /* a register, not a load in every step */
    }
    const int shift = __builtin_ctz(plan->x_stride);
    const __m128i stride = _mm_set1_epi16((short)plan->x_stride);
    const float *values =
        (const float *)(const void *)plan->packed + strip->first * GSPI_STRIP_ROWS;
    const uint8_t *positions = plan->positions + strip->first * GSPI_STRIP_ROWS;
    __m128i offsets = load_offsets(positions, stride);
    uint64_t next[2] = {(uint64_t)_mm_cvtsi128_si64(offsets),
                        (uint64_t)_mm_extract_epi64(offsets, 1)};
    offsets = load_offsets(positions + GSPI_STRIP_ROWS, stride);
    for (; strip < end; strip++) {
        __m512 sum[GSPI_STRIP_ROWS][GSPI_TILE_REGISTERS];
        for (int r = 0; r < GSPI_STRIP_ROWS; r++)
            for (int v = 0; v < vectors; v++)
                sum[r][v] = begin ? _mm512_setzero_ps()
                                  : _mm512_load_ps(row_of(sums, strip, r, shift) + v * 16);
        const float *const last = values + (strip[1].first - strip[0].first) * GSPI_STRIP_ROWS;
        for (; values < last; values += GSPI_STRIP_ROWS) {
            const uint64_t at[2] = {next[0], next[1]};
            next[0] = (uint64_t)_mm_cvtsi128_si64(offsets);
            next[1] = (uint64_t)_mm_extract_epi64(offsets, 1);
            __asm__ volatile("" : "+r"(next[0]), "+r"(next[1])); /* now, not in the next step */
            positions += GSPI_STRIP_ROWS;
            offsets = load_offsets(positions + GSPI_STRIP_ROWS, stride);
            _mm_prefetch((const char *)values + AHEAD_BYTES, _MM_HINT_T0);
            const __m512 some = _mm512_castps256_ps512(_mm256_load_ps(values));
            for (int first = 0; first < GSPI_STRIP_ROWS; first += stack) {
                const uint16_t offset = (uint16_t)(at[first / 4] >> first % 4 * 16);
                const float *from = (const float *)(const void *)(tile + offset);
                __m512 x[GSPI_TILE_VECTORS];
                for (int v = 0; v < vectors; v++) x[v] = _mm512_load_ps(from + v * 16);
                for (int r = first; r < first + stack; r++) {
                    const __m512 value = _mm512_permutexvar_ps(lane[r], some);
                    for (int v = 0; v < vectors; v++)
                        sum[r][v] = _mm512_fmadd_ps(value, x[v], sum[r][v]);
                }
            }
        }
        if (out != NULL) {
            finish_strip(out, strip->rows, GSPI_STRIP_ROWS, sum, 0, vectors);
            continue;
        }
        for (int r = 0; r < GSPI_STRIP_ROWS; r++)
            for (int v = 0; v < vectors; v++)
                _mm512_store_ps(row_of(sums, strip, r, shift) + v * 16, sum[r][v]);
    }
}

#define ADD(name, vectors, stack)                                                                  \
    static void name(const gsp_plan *plan, const gspi_strip *strip, const gspi_strip *end,         \
                     const char *tile, char *sums, bool begin, const gspi_out *out) {              \
        add_strips(plan, strip, end, tile, sums, begin, out, vectors, stack);                      \
    }
ADD(strips_1, 1, 1)
ADD(strips_2, 2, 1)
ADD(stacks_1, 1, GSPI_STACK_ROWS)
ADD(stacks_2, 2, GSPI_STACK_ROWS)

void gsp_f32_spmm_strips__avx512(const gsp_plan *plan, const gspi_product *product, int64_t first,
                                 int64_t last) {
    static gspi_strips *const add[] = {strips_1, strips_2};
    spmm_strips(plan, product, first, last, add);
}

void gsp_f32_spmm_stacks__avx512(const gsp_plan *plan, const gspi_product *product, int64_t first,
                                 int64_t last) {
    static gspi_strips *const add[] = {stacks_1, stacks_2};
    spmm_strips(plan, product, first, last, add);
}
#endif
