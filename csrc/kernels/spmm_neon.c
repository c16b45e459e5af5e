/* SpMM in float32 with NEON: strips of four rows, registers along the samples.
 *
 *     for every row r of a strip, every step:
 *         x = row at[r] of the tile
 *         for every sample of the tile:       sums[r][sample] += values[r] * x[sample]
 *
 * As spmm_avx2.c, with 32 registers of 4 floats. FMLA takes its weight from a lane of a register, so that values need
 * no broadcast: one load brings those of all rows that are taken at once, which are as many as have 16 to 24 sums. For
 * each FMLA there is one load of x; two of either a cycle (Cortex-A76, Neoverse N1) make a step of 16 samples take
 * eight cycles, and nine loads in ten bring x. Rows that share their columns load x once for four FMLAs, 16 samples
 * at a time: multiply-adds are the bound then. FMLA: latency 4, so 8 sums would do to hide it. */
#if defined(__aarch64__)
#include "spmm_fours.h"

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

/* `rows` rows from `first` on of one strip, `registers` registers each. */
GSPI_VECTOR void add_rows(const gspi_strip *strip, int first, int rows, const char *tile,
                          char *sums, bool begin, int registers, bool shared) {
    const gspi_step *step = (const gspi_step *)(const void *)(strip + 1);
    const gspi_step *const last = step + strip->steps;
    float *row[4];
    gspi_v sum[4][GSPI_MOST_REGISTERS];
    for (int r = 0; r < rows; r++) {
        row[r] = (float *)(void *)(sums + strip->rows[first + r]);
        for (int v = 0; v < registers; v++)
            sum[r][v] = begin ? v_set1(0.0f) : v_load(row[r] + v * V_LANES);
    }
    for (; step < last; step++) {
        const gspi_v values = load_values(step->values + first, rows);
        if (shared) {
            const float *x = (const float *)(const void *)(tile + step->at[0]);
            for (int v = 0; v < registers; v++) {
                const gspi_v here = v_load(x + v * V_LANES);
                for (int r = 0; r < rows; r++) sum[r][v] = add_lane(sum[r][v], here, values, r);
            }
        } else {
            uint64_t at;
            memcpy(&at, step->at, sizeof at);
            for (int r = 0; r < rows; r++) {
                const float *x =
                    (const float *)(const void *)(tile + (uint16_t)(at >> 16 * (first + r)));
                for (int v = 0; v < registers; v++) {
                    sum[r][v] = add_lane(sum[r][v], v_load(x + v * V_LANES), values, r);
                    /* Or GCC loads x for all sums first, for which registers do not suffice. */
                    if (v % 4 == 3) __asm__ volatile("" ::: "memory");
                }
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < registers; v++) v_store(row[r] + v * V_LANES, sum[r][v]);
}

/* Rows at once: as many as leave registers for x and values. Wide tiles of shared columns go in pieces. */
GSPI_VECTOR void add_strips(const unsigned char *strips, const unsigned char *end, const char *tile,
                            char *sums, bool begin, int registers, bool shared) {
    const int rows = registers == 4 ? 4 : registers <= 12 ? 2 : 1;
    while (strips < end) {
        const gspi_strip *strip = (const gspi_strip *)(const void *)strips;
        if (shared)
            for (int v = 0; v < registers; v += 4)
                add_rows(strip, 0, 4, tile + v * 16, sums + v * 16, begin, 4, true);
        else
            for (int r = 0; r < 4; r += rows)
                add_rows(strip, r, rows, tile, sums, begin, registers, false);
        strips += sizeof *strip + strip->steps * sizeof(gspi_step);
    }
}

#define ADD(name, vectors, shared)                                                                 \
    static void name(const unsigned char *strips, const unsigned char *end, const char *tile,      \
                     char *sums, bool begin) {                                                     \
        add_strips(strips, end, tile, sums, begin, 4 * (vectors), shared);                         \
    }
ADD(fours_1, 1, false)
ADD(fours_2, 2, false)
ADD(fours_3, 3, false)
ADD(fours_4, 4, false)
ADD(stacks_1, 1, true)
ADD(stacks_2, 2, true)
ADD(stacks_3, 3, true)
ADD(stacks_4, 4, true)

void gsp_f32_spmm_fours__neon(const gsp_plan *plan, const gspi_product *product, int64_t first,
                              int64_t last) {
    static gspi_strips *const add[] = {fours_1, fours_2, fours_3, fours_4};
    spmm_fours(plan, product, first, last, add);
}

void gsp_f32_spmm_stacks__neon(const gsp_plan *plan, const gspi_product *product, int64_t first,
                               int64_t last) {
    static gspi_strips *const add[] = {stacks_1, stacks_2, stacks_3, stacks_4};
    spmm_fours(plan, product, first, last, add);
}
#endif
