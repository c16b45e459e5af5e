/* SpMM in float32 with AVX2 and FMA: strips of four rows, registers along the samples.
 *
 *     for every row r of a strip, every step:
 *         x = row at[r] of the tile
 *         for every sample of the tile:       sums[r][sample] += values[r] * x[sample]
 *
 * As spmm_avx512.c, with 16 registers of 8 floats: tiles of up to 16 samples take the four rows at once (8 sums, so
 * that no VFMADD waits for the one before), wider ones row after row (6 or 8 sums). For each element there is one
 * broadcast load and one load of x to every VFMADD; two loads a cycle are the bound. Rows that share their columns are
 * taken two at a time where they fit the registers. */
#if defined(__AVX2__) && defined(__FMA__)
#include "spmm_fours.h"

#define INLINE static inline __attribute__((always_inline))

/* `rows` rows from `first` on of one strip, `registers` registers each. */
INLINE void add_rows(const gspi_strip *strip, int first, int rows, const char *tile, char *sums,
                     bool begin, int registers, bool shared) {
    const gspi_step *step = (const gspi_step *)(const void *)(strip + 1);
    const gspi_step *const last = step + strip->steps;
    float *row[4];
    __m256 sum[4][2 * GSPI_TILE_VECTORS];
    for (int r = 0; r < rows; r++) {
        row[r] = (float *)(void *)(sums + strip->rows[first + r]);
        for (int v = 0; v < registers; v++)
            sum[r][v] = begin ? _mm256_setzero_ps() : _mm256_load_ps(row[r] + v * 8);
    }
    for (; step < last; step++) {
        if (shared) {
            const float *x = (const float *)(const void *)(tile + step->at[0]);
            for (int v = 0; v < registers; v++) {
                const __m256 here = _mm256_load_ps(x + v * 8);
                for (int r = 0; r < rows; r++)
                    sum[r][v] = _mm256_fmadd_ps(_mm256_broadcast_ss(step->values + first + r), here,
                                                sum[r][v]);
            }
        } else {
            for (int r = 0; r < rows; r++) {
                const float *x = (const float *)(const void *)(tile + step->at[first + r]);
                const __m256 value = _mm256_broadcast_ss(step->values + first + r);
                for (int v = 0; v < registers; v++)
                    sum[r][v] = _mm256_fmadd_ps(value, _mm256_load_ps(x + v * 8), sum[r][v]);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < registers; v++) _mm256_store_ps(row[r] + v * 8, sum[r][v]);
}

/* Rows at once: as many as leave registers for x and values. Wide tiles of shared columns go in pieces. */
INLINE void add_strips(const unsigned char *strips, const unsigned char *end, const char *tile,
                       char *sums, bool begin, int registers, bool shared) {
    while (strips < end) {
        const gspi_strip *strip = (const gspi_strip *)(const void *)strips;
        if (shared)
            for (int v = 0; v < registers; v += 2)
                add_rows(strip, 0, 4, tile + v * 32, sums + v * 32, begin, 2, true);
        else if (registers == 2) add_rows(strip, 0, 4, tile, sums, begin, registers, false);
        else if (registers == 4)
            for (int r = 0; r < 4; r += 2)
                add_rows(strip, r, 2, tile, sums, begin, registers, false);
        else
            for (int r = 0; r < 4; r++) add_rows(strip, r, 1, tile, sums, begin, registers, false);
        strips += sizeof *strip + strip->steps * sizeof(gspi_step);
    }
}

#define ADD(name, vectors, shared)                                                                 \
    static void name(const unsigned char *strips, const unsigned char *end, const char *tile,      \
                     char *sums, bool begin) {                                                     \
        add_strips(strips, end, tile, sums, begin, 2 * (vectors), shared);                         \
    }
ADD(fours_1, 1, false)
ADD(fours_2, 2, false)
ADD(fours_3, 3, false)
ADD(fours_4, 4, false)
ADD(stacks_1, 1, true)
ADD(stacks_2, 2, true)
ADD(stacks_3, 3, true)
ADD(stacks_4, 4, true)

void gsp_f32_spmm_fours__avx2(const gsp_plan *plan, const gspi_product *product, int64_t first,
                              int64_t last) {
    static gspi_strips *const add[] = {fours_1, fours_2, fours_3, fours_4};
    spmm_fours(plan, product, first, last, add);
}

void gsp_f32_spmm_stacks__avx2(const gsp_plan *plan, const gspi_product *product, int64_t first,
                               int64_t last) {
    static gspi_strips *const add[] = {stacks_1, stacks_2, stacks_3, stacks_4};
    spmm_fours(plan, product, first, last, add);
}
#endif
