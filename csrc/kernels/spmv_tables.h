/* SpMV by register tables: what is the same for every instruction set and type of values: prefetching, the positions
 * of a quad, and the way of sums to y. A strip is V_LANES rows, or V_LANES / 4 where each row has four lanes. */
#ifndef SPMV_TABLES_H
#define SPMV_TABLES_H

#include "gsp_kernels.h"
#include "gsp_vector.h"

#define QUAD (20 * V_LANES) /* bytes */
/* Quads come from L2 in most layers; asking for them this far ahead gains 10 to 20 % on Zen 5. */
#define SPMV_AHEAD 2560

/* Asks for the quad, of so many bytes, that lies SPMV_AHEAD behind this one. */
GSPI_VECTOR void prefetch(const unsigned char *quad, int bytes) {
    for (int line = 0; line < bytes; line += 64) __builtin_prefetch(quad + SPMV_AHEAD + line);
}

/* Writes the sums of places [place, place + V_LANES) of a sample, as far as there are rows. */
GSPI_VECTOR void store(const gsp_plan *plan, const gspi_product *product, int64_t sample,
                       int64_t place, gspi_v sum) {
    const int64_t left = plan->matrix.rows - place, y_row = product->y_row;
    if (left <= 0) return;
    float *y = (float *)product->y + sample * product->y_sample;
    if (y_row == 1 && plan->row_map == NULL) {
        if (left >= V_LANES) v_storeu(y + place, sum);
        else v_store_some(y + place, v_mask(left), sum);
        return;
    }
    float lanes[V_LANES];
    v_storeu(lanes, sum);
    const uint32_t *rows = plan->row_map;
    if (rows != NULL && left >= V_LANES && y_row == 1)
        for (int i = 0; i < V_LANES; i++) y[rows[place + i]] = lanes[i];
    else
        for (int64_t i = 0; i < gspi_min(left, V_LANES); i++)
            y[(rows == NULL ? place + i : rows[place + i]) * y_row] = lanes[i];
}

/* The sums of four strips. */
GSPI_VECTOR void store_four(const gsp_plan *plan, const gspi_product *product, int64_t sample,
                            int64_t unit, const gspi_v sum[4]) {
    if (plan->per_row > 1) {
        store(plan, product, sample, unit * V_LANES, v_sum_fours(sum));
        return;
    }
    for (int i = 0; i < 4; i++) store(plan, product, sample, (4 * unit + i) * V_LANES, sum[i]);
}

/* Adds `count` quads across to the sums of four strips, for each sample. */
typedef void add_across(const gspi_product *product, const uint32_t *tables,
                        const unsigned char *quad, uint64_t count, int width, int samples,
                        gspi_v sum[][4]);
/* Adds `count` quads along to the sums of one strip, sums[sample][lane]. */
typedef void add_along(const gspi_product *product, const uint32_t *tables,
                       const unsigned char *quad, uint64_t count, int samples,
                       float sums[][V_LANES]);

/* The rest of a unit that has quads along. Apart from the others, so that their loop has the registers to itself. */
static __attribute__((noinline)) void finish_along(const gsp_plan *plan,
                                                   const gspi_product *product, int64_t unit,
                                                   int samples, add_along *along,
                                                   float sums[4][GSPI_MAX_SAMPLES][V_LANES]) {
    const gspi_four *four = plan->fours + unit;
    const uint32_t *tables = plan->tables + four->table + four->across;
    const unsigned char *quad = plan->packed + (plan->start[unit] + four->across) * QUAD;
    for (int i = 0; i < 4; i++) {
        if (four->along[i] > 0) along(product, tables, quad, four->along[i], samples, sums[i]);
        for (int s = 0; s < samples; s++)
            store(plan, product, s, (4 * unit + i) * V_LANES, v_loadu(sums[i][s]));
        tables += 4 * four->along[i];
        quad += four->along[i] * QUAD;
    }
}

/* The units of a plan. `across` is inlined. */
GSPI_VECTOR void add_units(const gsp_plan *plan, const gspi_product *product, int64_t first,
                           int64_t last, int width, int samples, add_across *across,
                           add_along *along) {
    for (int64_t unit = first; unit < last; unit++) {
        const gspi_four *four = plan->fours + unit;
        gspi_v sum[GSPI_MAX_SAMPLES][4];
        for (int s = 0; s < samples; s++)
            for (int i = 0; i < 4; i++) sum[s][i] = v_set1(0);
        across(product, plan->tables + four->table, plan->packed + plan->start[unit] * QUAD,
               four->across, width, samples, sum);
        /* A copy, or GCC for NEON also stores them in every turn of the loop. */
        gspi_v all[GSPI_MAX_SAMPLES][4];
        for (int s = 0; s < samples; s++)
            for (int i = 0; i < 4; i++) all[s][i] = sum[s][i];
        if (plan->start[unit + 1] - plan->start[unit] == four->across) {
            for (int s = 0; s < samples; s++) store_four(plan, product, s, unit, all[s]);
            continue;
        }
        float sums[4][GSPI_MAX_SAMPLES][V_LANES];
        for (int s = 0; s < samples; s++)
            for (int i = 0; i < 4; i++) v_storeu(sums[i][s], all[s][i]);
        finish_along(plan, product, unit, samples, along, sums);
    }
}

#if defined(__AVX512F__)
/* The positions of the four steps of a quad, in the low byte of each lane (what is above is of no meaning), and bit 5
 * of each. */
GSPI_VECTOR void split(const unsigned char *quad, __m512i positions[4], __mmask16 upper[4]) {
    __m512i words = _mm512_load_si512(quad);
    __asm__("" : "+v"(words)); /* or GCC loads them once for every shift */
    positions[0] = words;
    positions[1] = _mm512_srli_epi32(words, 8);
    positions[2] = _mm512_srli_epi32(words, 16);
    positions[3] = _mm512_srli_epi32(words, 24);
    for (int i = 0; i < 4; i++)
        upper[i] = _mm512_test_epi32_mask(words, _mm512_set1_epi32(32 << 8 * i));
}
#endif

#endif
