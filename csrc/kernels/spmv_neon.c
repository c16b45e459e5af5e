/* SpMV in float32 with NEON, for one or two samples at once: register tables, tables in the first cache, and runs of
 * blocks.
 *
 *     for every strip of 4 rows:                     sum[4] = 0
 *         for every step of the strip:               table = x[tables[step] ..][0 .. width)
 *             for lane in 0 .. 3:                    sum[lane] += value[step][lane] * table[position[step][lane]]
 *         y[rows of the strip] = sum
 *
 * Steps, strips and quads as in spmv_avx512.c, with 4 lanes. Counted for a Neoverse N1 (its software optimization
 * guide), which starts two vector operations and two loads a cycle; nothing was measured.
 *
 * TBL looks 16 bytes up in one to four registers, so 8 floats are a table of two registers and 16 one of four. A TBL
 * of one register copies the position of each lane to its four bytes, and SLI makes bytes 4 p .. 4 p + 3 of it: two
 * operations for four positions, shared by all samples. The look-up is one with two registers and three with four, so
 * that a step takes 2 or 3 cycles with its FMLA. More registers, or TBX, would cost more than loads: four loads at
 * positions of up to 255, four UBFX for the positions and three operations to join the lanes are 3.3 cycles by the
 * four instructions that are decoded in each, and hardly pad. Which pays, the plan counts. */
#if defined(__aarch64__)
#include "spmv_tables.h"

#define AT_ONCE 2 /* samples */

/* All samples of a product, in pairs, with a loop that is compiled for two and for one. */
#define FOR_PAIRS(loop)                                                                            \
    gspi_product some = *product;                                                                  \
    for (int64_t left = product->samples; left > 0; left -= AT_ONCE) {                             \
        if (left > 1) loop(2);                                                                     \
        else loop(1);                                                                              \
        some.x = (const float *)some.x + AT_ONCE * some.x_sample;                                  \
        some.y = (float *)some.y + AT_ONCE * some.y_sample;                                        \
    }

/* ----------------------------------------------------------------- tables */

/* The bytes of a table of floats that hold the entries at the positions of one step of a quad. */
GSPI_VECTOR uint8x16_t bytes_of(const unsigned char *quad, int step) {
    const uint8x16_t lanes = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
    const uint8x16_t offsets = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
    const uint8x16_t places = vaddq_u8(lanes, vdupq_n_u8((uint8_t)step));
    return vsliq_n_u8(offsets, vqtbl1q_u8(vld1q_u8(quad), places), 2);
}

/* x at the positions of one step of a quad, with a load for each. */
GSPI_VECTOR gspi_v load_each(const float *x, const unsigned char *quad, int step) {
    uint64_t words[2];
    memcpy(words, quad, sizeof words);
    return (gspi_v){x[words[0] >> 8 * step & 0xff], x[words[0] >> (32 + 8 * step) & 0xff],
                    x[words[1] >> 8 * step & 0xff], x[words[1] >> (32 + 8 * step) & 0xff]};
}

/* A table of `width` floats from x on, as registers; none if it is too large. */
typedef struct {
    uint8x16_t part[4];
} table;

GSPI_VECTOR table load_table(const float *x, int width) {
    table t;
    for (int i = 0; i < 4; i++)
        t.part[i] = i * V_LANES < width && width <= 16
                        ? vreinterpretq_u8_f32(v_loadu(x + i * V_LANES))
                        : vdupq_n_u8(0);
    return t;
}

/* The entries of a table, `width` floats from x on, at the positions of one step of a quad. */
GSPI_VECTOR gspi_v look_up(const float *x, table t, const unsigned char *quad, int step,
                           int width) {
    if (width > 16) return load_each(x, quad, step);
    const uint8x16_t bytes = bytes_of(quad, step);
    const uint8x16x2_t two = {{t.part[0], t.part[1]}};
    const uint8x16x4_t four = {{t.part[0], t.part[1], t.part[2], t.part[3]}};
    return vreinterpretq_f32_u8(width == 8 ? vqtbl2q_u8(two, bytes) : vqtbl4q_u8(four, bytes));
}

GSPI_VECTOR void across(const gspi_product *product, const uint32_t *tables,
                        const unsigned char *quad, uint64_t count, int width, int samples,
                        gspi_v sum[][4]) {
    for (const float *x = product->x; count > 0; count--, quad += QUAD) {
        const float *here = x + *tables++, *values = (const float *)(quad + 4 * V_LANES);
        prefetch(quad, QUAD);
        for (int s = 0; s < samples; s++, here += product->x_sample) {
            const table t = load_table(here, width);
            for (int i = 0; i < 4; i++)
                sum[s][i] = v_fma(look_up(here, t, quad, i, width), v_load(values + i * V_LANES),
                                  sum[s][i]);
        }
    }
}

GSPI_VECTOR void along(const gspi_product *product, const uint32_t *tables,
                       const unsigned char *quad, uint64_t count, int width, int samples,
                       float sums[][V_LANES]) {
    gspi_v sum[AT_ONCE][4];
    for (int s = 0; s < samples; s++)
        for (int i = 0; i < 4; i++) sum[s][i] = i == 0 ? v_loadu(sums[s]) : v_set1(0.0f);
    for (const float *x = product->x; count > 0; count--, quad += QUAD, tables += 4) {
        const float *values = (const float *)(quad + 4 * V_LANES);
        prefetch(quad, QUAD);
        for (int i = 0; i < 4; i++)
            for (int s = 0; s < samples; s++) {
                const float *here = x + tables[i] + s * product->x_sample;
                sum[s][i] = v_fma(look_up(here, load_table(here, width), quad, i, width),
                                  v_load(values + i * V_LANES), sum[s][i]);
            }
    }
    for (int s = 0; s < samples; s++)
        v_storeu(sums[s], v_add(v_add(sum[s][0], sum[s][1]), v_add(sum[s][2], sum[s][3])));
}

/* A kernel, and its quads along. */
#define TABLES(name, width)                                                                        \
    static void along_##width(const gspi_product *product, const uint32_t *tables,                 \
                              const unsigned char *quad, uint64_t count, int samples,              \
                              float sums[][V_LANES]) {                                             \
        if (samples > 1) along(product, tables, quad, count, width, 2, sums);                      \
        else along(product, tables, quad, count, width, 1, sums);                                  \
    }                                                                                              \
    void name(const gsp_plan *plan, const gspi_product *product, int64_t first, int64_t last) {    \
        FOR_PAIRS(TABLES_##width)                                                                  \
    }
#define TABLES_8(samples) add_units(plan, &some, first, last, 8, samples, across, along_8)
#define TABLES_16(samples) add_units(plan, &some, first, last, 16, samples, across, along_16)
#define TABLES_256(samples) add_units(plan, &some, first, last, 256, samples, across, along_256)

TABLES(gsp_f32_spmv_tables8__neon, 8)
TABLES(gsp_f32_spmv_tables16__neon, 16)
TABLES(gsp_f32_spmv_loads256__neon, 256)

/* ----------------------------------------------------------------- blocks */

/* What a run's values are multiplied with: x from the run on, or one entry of x in every lane. */
GSPI_VECTOR gspi_v factor(const float *x, bool wide) { return wide ? v_loadu(x) : v_set1(*x); }

/* Sums the runs of one part, values[run][V_LANES] times x[run ..], for each sample. Four sums hide the latency of
 * FMLA. */
GSPI_VECTOR void part(const gspi_product *product, const uint32_t *runs, int64_t count,
                      const float *values, bool wide, int samples, gspi_v *total) {
    const float *x = product->x;
    gspi_v sum[AT_ONCE][4];
    for (int s = 0; s < samples; s++)
        for (int i = 0; i < 4; i++) sum[s][i] = v_set1(0.0f);
    int64_t run = 0;
    for (; run + 4 <= count; run += 4)
        for (int i = 0; i < 4; i++) {
            const gspi_v value = v_load(values + (run + i) * V_LANES);
            for (int s = 0; s < samples; s++)
                sum[s][i] = v_fma(factor(x + runs[run + i] + s * product->x_sample, wide), value,
                                  sum[s][i]);
        }
    for (; run < count; run++) {
        const gspi_v value = v_load(values + run * V_LANES);
        for (int s = 0; s < samples; s++)
            sum[s][0] =
                v_fma(factor(x + runs[run] + s * product->x_sample, wide), value, sum[s][0]);
    }
    for (int s = 0; s < samples; s++)
        total[s] = v_add(v_add(sum[s][0], sum[s][1]), v_add(sum[s][2], sum[s][3]));
}

/* Blocks at least as wide as half a register: a row's runs add up in the lanes, which are summed at its end. */
GSPI_VECTOR void wide(const gsp_plan *plan, const gspi_product *product, int64_t first,
                      int64_t last, int samples) {
    const int64_t height = plan->matrix.pattern.block_rows;
    for (int64_t unit = first; unit < last; unit++) {
        const int64_t begin = (int64_t)plan->start[unit],
                      count = (int64_t)plan->start[unit + 1] - begin;
        const float *values = (const float *)plan->packed + begin * height * V_LANES;
        for (int64_t r = 0; r < gspi_min(height, plan->matrix.rows - unit * height); r++) {
            gspi_v sum[AT_ONCE];
            part(product, plan->tables + begin, count, values + r * count * V_LANES, true, samples,
                 sum);
            float *y = (float *)product->y + (unit * height + r) * product->y_row;
            for (int s = 0; s < samples; s++) y[s * product->y_sample] = vaddvq_f32(sum[s]);
        }
    }
}

/* Blocks at least as tall as half a register: one entry of x for all lanes, each of which is a row. */
GSPI_VECTOR void tall(const gsp_plan *plan, const gspi_product *product, int64_t first,
                      int64_t last, int samples) {
    const int64_t height = plan->matrix.pattern.block_rows,
                  parts = gspi_parts(&plan->matrix.pattern, GSPI_TALL, V_LANES);
    for (int64_t unit = first; unit < last; unit++) {
        const int64_t begin = (int64_t)plan->start[unit],
                      count = (int64_t)plan->start[unit + 1] - begin;
        const float *values = (const float *)plan->packed + begin * parts * V_LANES;
        const int64_t rows = gspi_min(height, plan->matrix.rows - unit * height);
        for (int64_t place = 0; place * V_LANES < rows; place++) {
            const int64_t left = gspi_min(rows - place * V_LANES, V_LANES);
            gspi_v sum[AT_ONCE];
            part(product, plan->tables + begin, count, values + place * count * V_LANES, false,
                 samples, sum);
            float *y = (float *)product->y + (unit * height + place * V_LANES) * product->y_row;
            for (int s = 0; s < samples; s++, y += product->y_sample) {
                float lanes[V_LANES];
                v_storeu(lanes, sum[s]);
                for (int64_t i = 0; i < left; i++) y[i * product->y_row] = lanes[i];
            }
        }
    }
}

#define WIDE(samples) wide(plan, &some, first, last, samples)
#define TALL(samples) tall(plan, &some, first, last, samples)

void gsp_f32_spmv_wide__neon(const gsp_plan *plan, const gspi_product *product, int64_t first,
                             int64_t last) {
    FOR_PAIRS(WIDE)
}

void gsp_f32_spmv_tall__neon(const gsp_plan *plan, const gspi_product *product, int64_t first,
                             int64_t last) {
    FOR_PAIRS(TALL)
}
#endif
