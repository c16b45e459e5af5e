/* SpMV with narrow values: what is the same for every instruction set and form: how samples are grouped, and the way
 * of sums to y. A strip is V_LANES rows. */
#ifndef SPMV_NARROW_H
#define SPMV_NARROW_H

#include "gsp_activation.h"
#include "gsp_narrow.h"
#include "spmv_tables.h"

/* Packed bytes that stay in L2 while all groups of samples go over them. */
#define NARROW_BLOCK 262144
/* Samples of a group at most. */
#define NARROW_AT_ONCE 8

/* `samples` samples of a product, from `sample` on, over the units [first, last). */
typedef void narrow_loop(const gsp_plan *plan, const gspi_product *product, int64_t sample,
                         int64_t samples, int64_t first, int64_t last);

/* All samples, up to `most` at once. Which are grouped depends on their number only. */
static inline void narrow_groups(const gsp_plan *plan, const gspi_product *product, int64_t first,
                                 int64_t last, int64_t most, narrow_loop *loop) {
    const int64_t groups = gspi_ceil_div(product->samples, most);
    const uint64_t items = NARROW_BLOCK / gspi_item_bytes(plan);
    for (int64_t begin = first, end; begin < last; begin = end) {
        end = groups == 1 ? last : begin + 1;
        while (end < last && plan->start[end] - plan->start[begin] < items) end++;
        for (int64_t group = 0; group < groups; group++) {
            const int64_t sample = group * product->samples / groups,
                          next = (group + 1) * product->samples / groups;
            loop(plan, product, sample, next - sample, begin, end);
        }
    }
}

/* A kernel whose loop is compiled for each number of samples. */
#define NARROW_KERNEL(name, most, cases)                                                           \
    static void name##_samples(const gsp_plan *plan, const gspi_product *product, int64_t sample,  \
                               int64_t samples, int64_t first, int64_t last) {                     \
        switch (samples) { cases }                                                                 \
    }                                                                                              \
    void name(const gsp_plan *plan, const gspi_product *product, int64_t first, int64_t last) {    \
        narrow_groups(plan, product, first, last, most, name##_samples);                           \
    }
#define NARROW_CASE(samples, loop, ...)                                                            \
    case samples: loop(plan, product, sample, first, last, samples, ##__VA_ARGS__); break;

/* Elements of an array of y's type that belong to the rows of places [place, place + count). */
GSPI_VECTOR gspi_v narrow_take(const gsp_plan *plan, const void *array, int64_t step, int64_t place,
                               int64_t count) {
    const uint32_t *rows = plan->row_map;
    float lanes[V_LANES] = {0};
    for (int64_t i = 0; i < count; i++) {
        const int64_t at = (rows == NULL ? place + i : rows[place + i]) * step;
        lanes[i] = plan->operand == GSP_BFLOAT16 ? gspi_from_bfloat16(((const uint16_t *)array)[at])
                                                 : ((const float *)array)[at];
    }
    return v_loadu(lanes);
}

/* A register as whole numbers, and half of one. */
typedef uint32_t narrow_words __attribute__((vector_size(sizeof(gspi_v))));
typedef uint16_t narrow_halves __attribute__((vector_size(sizeof(gspi_v) / 2)));

/* gspi_to_bfloat16 of each lane. */
GSPI_VECTOR narrow_halves narrow_round(gspi_v v) {
    const narrow_words bits = (narrow_words)v, rounded = bits + 0x7fff + (bits >> 16 & 1);
    const narrow_words nan = (narrow_words)((bits & 0x7fffffff) > 0x7f800000);
    return __builtin_convertvector(((nan & (bits | 0x400000)) | (~nan & rounded)) >> 16,
                                   narrow_halves);
}

/* Writes the results of a strip, of which `count` are there, to their rows of y. Of a whole strip each lane goes from
 * the register to its row: by way of the stack it would wait for the store that it is loaded from. */
#define NARROW_PUT(name, type, vector)                                                             \
    GSPI_VECTOR void name(const uint32_t *rows, int64_t place, int64_t count, int64_t step,        \
                          type *y, vector v) {                                                     \
        if (count == V_LANES && rows == NULL && step == 1) {                                       \
            memcpy(y + place, &v, sizeof v);                                                       \
        } else if (count == V_LANES && rows != NULL) {                                             \
            rows += place;                                                                         \
            for (int i = 0; i < V_LANES; i++) y[rows[i] * step] = v[i];                            \
        } else {                                                                                   \
            type lanes[V_LANES];                                                                   \
            memcpy(lanes, &v, sizeof v);                                                           \
            for (int64_t i = 0; i < count; i++)                                                    \
                y[(rows == NULL ? place + i : rows[place + i]) * step] = lanes[i];                 \
        }                                                                                          \
    }
NARROW_PUT(narrow_put_floats, float, gspi_v)
NARROW_PUT(narrow_put_halves, uint16_t, narrow_halves)

/* Scales, bias, residual and activation of the sums of a unit of some samples, [sample][strip], and their way to y.
 * What is the same for all samples of a strip is done once. Not inlined: or GCC keeps the sums of the loop before it in
 * memory. */
static __attribute__((noinline)) void
narrow_finish_unit(const gsp_plan *plan, const gspi_product *product, int64_t sample,
                   int64_t samples, int64_t unit, int64_t strips, const gspi_v *sums) {
    const gsp_epilogue epilogue = *product->epilogue; /* which no store can change */
    const uint32_t *rows = plan->row_map;
    const bool halves = plan->operand == GSP_BFLOAT16;
    const size_t size = halves ? sizeof(uint16_t) : sizeof(float);
    for (int64_t strip = 0; strip < strips; strip++) {
        const int64_t place = (unit * strips + strip) * V_LANES, step = product->y_row;
        const int64_t count = gspi_min(plan->matrix.rows - place, V_LANES);
        if (count <= 0) return;
        const gspi_v zero = v_set1(0.0f);
        const gspi_v scales = plan->scales == NULL ? zero : v_loadu(plan->scales + place);
        const gspi_v bias =
            epilogue.bias == NULL ? zero : narrow_take(plan, epilogue.bias, 1, place, count);
        for (int64_t s = 0; s < samples; s++) {
            const size_t at = (size_t)((sample + s) * product->y_sample) * size;
            void *y = (char *)product->y + at;
            gspi_v sum = sums[s * strips + strip];
            if (plan->scales != NULL)
                sum = v_mul(v_mul(sum, v_set1(product->quanta[sample + s].scale)), scales);
            if (epilogue.bias != NULL) sum = v_add(sum, bias);
            if (epilogue.residual != NULL)
                sum = v_add(sum, narrow_take(plan, (const char *)epilogue.residual + at, step,
                                             place, count));
            if (epilogue.activation != GSP_NONE) sum = v_activate(sum, &epilogue);
            if (halves) narrow_put_halves(rows, place, count, step, y, narrow_round(sum));
            else narrow_put_floats(rows, place, count, step, y, sum);
        }
    }
}

/* ----------------------------------------------------------- x in 8 bits */

/* Measures a sample and gives it, V_LANES entries at a time, as q. */
GSPI_VECTOR gspi_quantum narrow_measure(const float *x, int64_t cols) {
    gspi_v low = v_set1(0.0f), high = low, wrong = low;
    const gspi_v zero = low;
    for (int64_t col = 0; col < cols; col += V_LANES) {
        const gspi_v here = v_load_some(x + col, v_mask(cols - col));
        low = v_min(here, low);
        high = v_max(here, high);
        wrong = v_fma(here, zero, wrong); /* infinite times 0 is NaN */
    }
    float lows[V_LANES], highs[V_LANES], wrongs[V_LANES];
    v_storeu(lows, low);
    v_storeu(highs, high);
    v_storeu(wrongs, wrong);
    for (int i = 1; i < V_LANES; i++) {
        lows[0] = lows[i] < lows[0] ? lows[i] : lows[0];
        highs[0] = highs[i] > highs[0] ? highs[i] : highs[0];
        wrongs[0] += wrongs[i];
    }
    return gspi_quantum_of(lows[0], highs[0], wrongs[0]);
}

GSPI_VECTOR gspi_v narrow_quantize(gspi_v x, const gspi_quantum *quantum) {
    const gspi_v step = v_add(v_round(v_mul(x, v_set1(quantum->inverse))), v_set1(quantum->zero));
    return v_min(v_max(step, v_set1(0.0f)), v_set1(255.0f));
}

#endif
