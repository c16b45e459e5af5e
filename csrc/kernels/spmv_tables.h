/* SpMV by register tables: what is the same for every instruction set and type of values: prefetching, the positions
 * of a quad, and the way of sums to y. A strip is V_LANES rows, or V_LANES / 4 where each row has four lanes. */
#ifndef SPMV_TABLES_H
#define SPMV_TABLES_H

#include "gsp_kernels.h"
#include "gsp_vector.h"

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

/* The four sums of a unit across. */
GSPI_VECTOR void store_across(const gsp_plan *plan, const gspi_product *product, int64_t sample,
                              int64_t unit, const gspi_v sum[4]) {
    if (plan->per_row > 1) {
        store(plan, product, sample, unit * V_LANES, v_sum_fours(sum));
        return;
    }
    for (int i = 0; i < 4; i++) store(plan, product, sample, (4 * unit + i) * V_LANES, sum[i]);
}

/* The sum of a unit along. */
GSPI_VECTOR void store_along(const gsp_plan *plan, const gspi_product *product, int64_t sample,
                             int64_t unit, gspi_v sum) {
    store(plan, product, sample, (3 * plan->fours + unit) * V_LANES, sum);
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
