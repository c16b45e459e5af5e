/* SpMM in float32 with AVX2 and FMA: strips of eight rows, registers along the samples.
 *
 *     for every two rows r of a strip, every step:
 *         x = row position[r] of the tile
 *         for every sample of the tile:       sums[r][sample] += values[r] * x[sample]
 *
 * As spmm_avx512.c, with 16 registers of 8 floats: two rows at once in tiles of 32 samples, four in those of 16 (8
 * sums, so that no VFMADD waits for the one before). For each element there is one broadcast load and one load of x to
 * every VFMADD; two loads a cycle are the bound. Rows that share their columns go four at a time, 16 samples after
 * another. */
#if defined(__AVX2__) && defined(__FMA__)
#include "spmm_strips.h"

#define INLINE static inline __attribute__((always_inline))

/* `rows` rows from `first` on of one strip, `registers` registers each, the first of them `left`
 * of the tile; `stack` rows share their columns. */
INLINE void add_rows(const gsp_plan *plan, const gspi_strip *strip, int first, int rows,
                     const char *tile, char *sums, bool begin, const gspi_out *out, int left,
                     int registers, int stack) {
    const uint64_t from = strip[0].first * GSPI_STRIP_ROWS + (uint64_t)first,
                   to = strip[1].first * GSPI_STRIP_ROWS + (uint64_t)first;
    const float *values = (const float *)(const void *)plan->packed + from;
    const uint8_t *positions = plan->positions + from, *const last = plan->positions + to;
    const size_t stride = plan->x_stride;
    float *row[4];
    __m256 sum[4][GSPI_TILE_REGISTERS], x[GSPI_TILE_REGISTERS];
    for (int r = 0; r < rows; r++) {
        row[r] = (float *)(void *)(sums + strip->rows[first + r] * stride);
        for (int v = 0; v < registers; v++)
            sum[r][v] = begin ? _mm256_setzero_ps() : _mm256_load_ps(row[r] + v * 8);
    }
    for (; positions < last; positions += GSPI_STRIP_ROWS, values += GSPI_STRIP_ROWS)
        for (int top = 0; top < rows; top += stack) {
            const size_t at = positions[top] * stride;
            const float *from = (const float *)(const void *)(tile + at);
            for (int v = 0; v < registers; v++) x[v] = _mm256_load_ps(from + v * 8);
            for (int r = top; r < top + stack; r++) {
                const __m256 value = _mm256_broadcast_ss(values + r);
                for (int v = 0; v < registers; v++)
                    sum[r][v] = _mm256_fmadd_ps(value, x[v], sum[r][v]);
            }
        }
    if (out != NULL) {
        finish_strip(out, strip->rows + first, rows, sum, left, registers);
        return;
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < registers; v++) _mm256_store_ps(row[r] + v * 8, sum[r][v]);
}

/* Rows at once: as many as leave registers for x and values. Wide tiles of shared columns go in pieces. */
INLINE void add_strips(const gsp_plan *plan, const gspi_strip *strip, const gspi_strip *end,
                       const char *tile, char *sums, bool begin, const gspi_out *out, int registers,
                       int stack) {
    const int piece = stack > 1 ? 2 : registers, rows = 8 / piece;
    for (; strip < end; strip++)
        for (int first = 0; first < GSPI_STRIP_ROWS; first += rows)
            for (int v = 0; v < registers; v += piece)
                add_rows(plan, strip, first, rows, tile + v * 32, sums + v * 32, begin, out, v,
                         piece, stack);
}

#define ADD(name, vectors, stack)                                                                  \
    static void name(const gsp_plan *plan, const gspi_strip *strip, const gspi_strip *end,         \
                     const char *tile, char *sums, bool begin, const gspi_out *out) {              \
        add_strips(plan, strip, end, tile, sums, begin, out, 2 * (vectors), stack);                \
    }
ADD(strips_1, 1, 1)
ADD(strips_2, 2, 1)
ADD(stacks_1, 1, GSPI_STACK_ROWS)
ADD(stacks_2, 2, GSPI_STACK_ROWS)

void gsp_f32_spmm_strips__avx2(const gsp_plan *plan, const gspi_product *product, int64_t first,
                               int64_t last) {
    static gspi_strips *const add[] = {strips_1, strips_2};
    spmm_strips(plan, product, first, last, add);
}

void gsp_f32_spmm_stacks__avx2(const gsp_plan *plan, const gspi_product *product, int64_t first,
                               int64_t last) {
    static gspi_strips *const add[] = {stacks_1, stacks_2};
    spmm_strips(plan, product, first, last, add);
}
#endif
