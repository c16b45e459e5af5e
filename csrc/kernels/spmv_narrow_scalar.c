/* SpMV with x in 8 or 16 bits, plainly: the oracle that faster kernels are held to.
 *
 *     bfloat16:    y[row] = bfloat16(activation(sum of value * x[col] + bias + residual))
 *     int8:        y[row] = activation(float(sum of value * (q[col] - zero)) * scale * scales[row] + bias + residual)
 *
 * for all elements of a row, one sample after the other, x and y with any strides. Sums of bfloat16 are float, in
 * ascending order of x; sums of int8 are 64-bit integers, and exact. */
#include "gsp_narrow.h"

static float sum_of_bfloat16(const gsp_plan *plan, const gspi_product *product, int64_t row,
                             int64_t sample) {
    const uint16_t *x = (const uint16_t *)product->x + sample * product->x_sample;
    const float *values = (const float *)(const void *)plan->packed;
    float sum = 0;
    for (uint64_t e = plan->start[row]; e < plan->start[row + 1]; e++)
        sum += values[e] * gspi_from_bfloat16(x[plan->tables[e] * product->x_col]);
    return sum;
}

static float sum_of_int8(const gsp_plan *plan, const gspi_product *product, int64_t row,
                         int64_t sample) {
    const float *x = (const float *)product->x + sample * product->x_sample;
    const float *values = (const float *)(const void *)plan->packed;
    const gspi_quantum *quantum = &product->quanta[sample];
    int64_t sum = 0;
    for (uint64_t e = plan->start[row]; e < plan->start[row + 1]; e++)
        sum += (int64_t)values[e] * gspi_quantized(x[plan->tables[e] * product->x_col], quantum);
    return (float)sum * quantum->scale * plan->scales[row];
}

#define ROWS(name, type, sum_of, widen, narrow)                                                    \
    void gsp_##name##_spmv_rows__scalar(const gsp_plan *plan, const gspi_product *product,         \
                                        int64_t first, int64_t last) {                             \
        const gsp_epilogue *epilogue = product->epilogue;                                          \
        const type *bias = epilogue->bias, *residual = epilogue->residual;                         \
        for (int64_t sample = 0; sample < product->samples; sample++)                              \
            for (int64_t row = first; row < last; row++) {                                         \
                const int64_t at = row * product->y_row + sample * product->y_sample;              \
                float y = sum_of(plan, product, row, sample);                                      \
                if (bias != NULL) y += widen(bias[row]);                                           \
                if (residual != NULL) y += widen(residual[at]);                                    \
                gspi_f32_finish__scalar(&y, 1, NULL, NULL, 0, NULL, epilogue);                     \
                ((type *)product->y)[at] = narrow(y);                                              \
            }                                                                                      \
    }

ROWS(bf16, uint16_t, sum_of_bfloat16, gspi_from_bfloat16, gspi_to_bfloat16)
ROWS(i8, float, sum_of_int8, , )

gspi_quantum gspi_measure__scalar(const float *x, int64_t x_col, int64_t cols) {
    float low = 0, high = 0, wrong = 0;
    for (int64_t col = 0; col < cols; col++) {
        const float here = x[col * x_col];
        low = here < low ? here : low;
        high = here > high ? here : high;
        wrong += here * 0; /* infinite times 0 is NaN */
    }
    return gspi_quantum_of(low, high, wrong);
}
