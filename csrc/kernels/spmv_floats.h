/* SpMV by tables of floats, with values of 8 or 16 bits, for any vector instruction set: what bfloat16 and int8 run on
 * where the CPU does not multiply them.
 *
 *     for every four strips of V_LANES rows:         sum[lane] = 0, for each
 *         for every step:                            table = x[tables[step] ..][0 .. width)
 *             for every lane:                        sum[lane] += value[step][lane] * table[position[step][lane]]
 *         y[rows of the strip] = activation(scale * sum + bias + residual)
 *
 * x [samples][cols] in floats: bfloat16 widened, or whole numbers from -255 to 255, with which sums of int8 values
 * are exact as long as they stay below 2^24 (which the plan sees to). Four strips share the table and the bytes of
 * words, as in spmv_avx512.c; a slot takes 3 or 2 bytes instead of 5. bfloat16 is widened by a shift, int8 by a
 * conversion, once for all samples.
 *
 * A file that includes this defines look_up(x, words, byte), the entries at the positions in one byte of the
 * words, and widen(values, bytes), V_LANES values of so many bytes. */
#ifndef SPMV_FLOATS_H
#define SPMV_FLOATS_H

#include "spmv_narrow.h"

GSPI_VECTOR void floats(const gsp_plan *plan, const gspi_product *product, int64_t sample,
                        int64_t first, int64_t last, int samples, int bytes) {
    const float *x = (const float *)product->x + sample * product->x_sample;
    const int item_bytes = 4 * V_LANES * (1 + bytes);
    for (int64_t unit = first; unit < last; unit++) {
        const uint32_t *tables = plan->tables + plan->start[unit];
        const unsigned char *item = plan->packed + plan->start[unit] * (uint64_t)item_bytes;
        gspi_v sum[GSPI_MAX_SAMPLES][4], total[GSPI_MAX_SAMPLES * 4];
        for (int s = 0; s < samples; s++)
            for (int i = 0; i < 4; i++) sum[s][i] = v_set1(0.0f);
        for (uint64_t left = plan->start[unit + 1] - plan->start[unit]; left > 0; left--) {
            const float *table = x + *tables++;
            const unsigned char *values = item + 4 * V_LANES;
            prefetch(item, item_bytes);
            const gspi_words words = load_words(item);
            for (int i = 0; i < 4; i++) {
                const gspi_v value = widen(values + i * V_LANES * bytes, bytes);
                for (int s = 0; s < samples; s++)
                    sum[s][i] =
                        v_fma(look_up(table + s * product->x_sample, words, i), value, sum[s][i]);
            }
            item += item_bytes;
        }
        for (int s = 0; s < samples; s++)
            for (int i = 0; i < 4; i++) total[4 * s + i] = sum[s][i];
        narrow_finish_unit(plan, product, sample, samples, unit, 4, total);
    }
}

/* Rounds a sample to q - zero. */
GSPI_VECTOR gspi_quantum to_floats(const float *x, int64_t cols, float *to) {
    const gspi_quantum quantum = narrow_measure(x, cols);
    for (int64_t col = 0; col < cols; col += V_LANES) {
        const gspi_v_mask some = v_mask(cols - col);
        v_store_some(
            to + col, some,
            v_sub(narrow_quantize(v_load_some(x + col, some), &quantum), v_set1(quantum.zero)));
    }
    return quantum;
}

#endif
