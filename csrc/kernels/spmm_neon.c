/* SpMM in float32 with NEON: strips of eight rows, registers along the samples.
 *
 *     for every two rows r of a strip, every step:
 *         x = row position[r] of the tile
 *         for every sample of the tile:       sums[r][sample] += values[r] * x[sample]
 *
 * As spmm_avx2.c, with 32 registers of 4 floats. FMLA takes its weight from a lane of a register, so that values need
 * no broadcast: one load brings those of all rows that are taken at once, which are as many as have 16 sums. For each
 * FMLA there is one load of x; two of either a cycle (Cortex-A76, Neoverse N1) make a step of 16 samples take eight
 * cycles, and nine loads in ten bring x. Rows that share their columns load x once for four FMLAs, 16 samples
 * at a time: multiply-adds are the bound then. FMLA: latency 4, so 8 sums would do to hide it. */
#if defined(__aarch64__)
#include "spmm_strips.h"

/* Floats of `rows` values as a register, whose other lanes are of no meaning. */
GSPI_VECTOR gspi_v load_values(const float *values, int rows) {
    return rows == 4   ? vld1q_f32(values)
           : rows == 2 ? vcombine_f32(vld1_f32(values), vdup_n_f32(0.0f))
                       : vld1q_dup_f32(values);
}

/* sum + x * value[lane]; the lane is known when this is compiled. */
GSPI_VECTOR gspi_v add_lane(gspi_v sum, gspi_v x, gspi_v value, int lane) {
    switch (lane) {
    case 0: return vfmaq_laneq_f32(sum, x, value, 0);
    case 1: return vfmaq_laneq_f32(sum, x, value, 1);
    case 2: return vfmaq_laneq_f32(sum, x, value, 2);
    default: return vfmaq_laneq_f32(sum, x, value, 3);
    }
}

/* `rows` rows from `first` on of one strip, `registers` registers each, the first of them `left`
 * of the tile; `stack` rows share their columns. */
GSPI_VECTOR void add_rows(const gsp_plan *plan, const gspi_strip *strip, int first, int rows,
                          const char *tile, char *sums, bool begin, const gspi_out *out, int left,
                          int registers, int stack) {
    const uint64_t from = strip[0].first * GSPI_STRIP_ROWS + (uint64_t)first,
                   to = strip[1].first * GSPI_STRIP_ROWS + (uint64_t)first;
    const float *values = (const float *)(const void *)plan->packed + from;
    const uint8_t *positions = plan->positions + from, *const last = plan->positions + to;
    const size_t stride = plan->x_stride;
    float *row[4];
    gspi_v sum[4][GSPI_TILE_REGISTERS];
    for (int r = 0; r < rows; r++) {
        row[r] = (float *)(void *)(sums + strip->rows[first + r] * stride);
        for (int v = 0; v < registers; v++)
            sum[r][v] = begin ? v_set1(0.0f) : v_load(row[r] + v * V_LANES);
    }
    for (; positions < last; positions += GSPI_STRIP_ROWS, values += GSPI_STRIP_ROWS) {
        const gspi_v some = load_values(values, rows);
        uint32_t bytes = 0; /* one load for all positions */
        memcpy(&bytes, positions, (size_t)rows);
        for (int top = 0; top < rows; top += stack) {
            const float *at =
                (const float *)(const void *)(tile + (bytes >> 8 * top & 0xff) * stride);
            for (int v = 0; v < registers; v++) {
                const gspi_v x = v_load(at + v * V_LANES);
                for (int r = top; r < top + stack; r++) sum[r][v] = add_lane(sum[r][v], x, some, r);
                /* Or GCC loads x for all sums first, for which registers do not suffice. */
                if (v % 4 == 3) __asm__ volatile("" ::: "memory");
            }
        }
    }
    if (out != NULL) {
        finish_strip(out, strip->rows + first, rows, sum, left, registers);
        return;
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < registers; v++) v_store(row[r] + v * V_LANES, sum[r][v]);
}

/* Rows at once: as many as leave registers for x and values. Wide tiles of shared columns go in pieces. */
GSPI_VECTOR void add_strips(const gsp_plan *plan, const gspi_strip *strip, const gspi_strip *end,
                            const char *tile, char *sums, bool begin, const gspi_out *out,
                            int registers, int stack) {
    const int piece = stack > 1 ? 4 : registers, rows = 16 / piece;
    for (; strip < end; strip++)
        for (int first = 0; first < GSPI_STRIP_ROWS; first += rows)
            for (int v = 0; v < registers; v += piece)
                add_rows(plan, strip, first, rows, tile + v * 16, sums + v * 16, begin, out, v,
                         piece, stack);
}

#define ADD(name, vectors, stack)                                                                  \
    static void name(const gsp_plan *plan, const gspi_strip *strip, const gspi_strip *end,         \
                     const char *tile, char *sums, bool begin, const gspi_out *out) {              \
        add_strips(plan, strip, end, tile, sums, begin, out, 4 * (vectors), stack);                \
    }
ADD(strips_1, 1, 1)
ADD(strips_2, 2, 1)
ADD(stacks_1, 1, GSPI_STACK_ROWS)
ADD(stacks_2, 2, GSPI_STACK_ROWS)

void gsp_f32_spmm_strips__neon(const gsp_plan *plan, const gspi_product *product, int64_t first,
                               int64_t last) {
    static gspi_strips *const add[] = {strips_1, strips_2};
    spmm_strips(plan, product, first, last, add);
}

void gsp_f32_spmm_stacks__neon(const gsp_plan *plan, const gspi_product *product, int64_t first,
                               int64_t last) {
    static gspi_strips *const add[] = {stacks_1, stacks_2};
    spmm_strips(plan, product, first, last, add);
}
#endif
