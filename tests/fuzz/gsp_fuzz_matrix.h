/* What fuzzers of products share: a matrix of any pattern, shape, density and dtype, and its weights in double. */
#ifndef GSP_FUZZ_MATRIX_H
#define GSP_FUZZ_MATRIX_H

#include <float.h>
#include <math.h>

#include "gsp_fuzz.h"

static inline gsp_shape take_shape(gsp_bytes *from) {
    static const uint32_t banks[] = {1, 2, 3, 4, 7, 8, 16, 32};
    static const uint32_t edges[] = {1, 2, 4, 8, 16, 32, 64};
    gsp_shape shape = {.pattern = {.kind = (gsp_kind)gsp_take_below(from, 4)}};
    gsp_pattern *pattern = &shape.pattern;
    /* Sizes near the edges of registers, or any. */
    const int64_t near = gsp_take_below(from, 4);
    int64_t *const sizes[] = {&shape.rows, &shape.cols};
    for (int i = 0; i < 2; i++)
        *sizes[i] =
            near ? (int64_t)edges[gsp_take_below(from, 7)] * near + gsp_take_below(from, 3) - 1
                 : gsp_take_below(from, 200);
    shape.cols = gspi_max(1, shape.cols);
    if (pattern->kind == GSP_GS) {
        pattern->layout = (gsp_layout)gsp_take_below(from, 2);
        /* One in four is gs(cpu). */
        pattern->banks = gsp_take_below(from, 4) ? banks[gsp_take_below(from, 8)]
                                                 : (uint32_t)gspi_ceil_div(shape.cols, 32);
        if (pattern->banks > shape.cols) pattern->banks = 1;
        pattern->per_row = pattern->banks;
        if (gsp_take_below(from, 2)) {
            pattern->per_row = 1 + (uint32_t)gsp_take_below(from, pattern->banks);
            while (pattern->banks % pattern->per_row != 0) pattern->per_row--;
        }
        shape.scatter = gsp_take_below(from, 2);
    }
    pattern->block_rows = 1 + (uint32_t)gsp_take_below(from, gsp_take_below(from, 2) ? 4 : 40);
    pattern->block_cols = 1 + (uint32_t)gsp_take_below(from, gsp_take_below(from, 2) ? 4 : 40);
    pattern->nm_n = 1 + (uint32_t)gsp_take_below(from, 3);
    pattern->nm_m = pattern->nm_n + (uint32_t)gsp_take_below(from, 20);
    return shape;
}

/* Between 2^-6 and 2^6, of both signs; now and then 0. */
static inline float take_number(uint64_t *state) {
    if (gsp_test_below(state, 20) == 0) return 0;
    const double size = 1 + (double)gsp_test_below(state, 1 << 24) / (1 << 24);
    return (float)ldexp(gsp_test_below(state, 2) ? size : -size,
                        (int)gsp_test_below(state, 12) - 6);
}

/* The float as the dtype stores it, in `to`, and what is stored as a number. */
static inline double store(gsp_dtype dtype, float value, void *to) {
    if (dtype == GSP_FLOAT64) {
        const double wide = (double)value * (1 + 0x1p-40);
        memcpy(to, &wide, sizeof wide);
        return wide;
    }
    if (dtype == GSP_INT8) {
        const int8_t whole = (int8_t)(value < -127 ? -127 : value > 127 ? 127 : value);
        memcpy(to, &whole, 1);
        return whole;
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (dtype == GSP_FLOAT16) { /* cut off; exponents fit */
        const uint16_t half =
            (uint16_t)((bits >> 16 & 0x8000) |
                       (value == 0 ? 0 : ((bits & 0x7fffffff) >> 13) - (112 << 10)));
        memcpy(to, &half, sizeof half);
        bits &= 0xffffe000;
    } else if (dtype == GSP_BFLOAT16) {
        const uint16_t half = (uint16_t)(bits >> 16);
        memcpy(to, &half, sizeof half);
        bits &= 0xffff0000;
    } else {
        memcpy(to, &bits, sizeof bits);
    }
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

/* A sample whose weights are numbers of any size, and the same weights in double. */
static inline double *take_matrix(gsp_context *context, gsp_bytes *from, gsp_sample *sample) {
    const gsp_shape shape = take_shape(from);
    const gsp_dtype dtype = (gsp_dtype)gsp_take_below(from, GSP_INT8 + 1);
    uint64_t state = gsp_take(from, 4) * 2 + 1;
    MUST(gsp_sample_make(context, &shape, dtype, state, sample) == GSP_OK);
    gsp_matrix *matrix = &sample->matrix;
    const size_t area = (size_t)(shape.rows * shape.cols), size = gsp_dtype_size(dtype);
    if (shape.pattern.kind == GSP_IRREGULAR && gsp_take_below(from, 2)) {
        /* Rows from empty to full. */
        for (size_t i = 0; i < area; i++)
            sample->mask[i] = (uint64_t)gsp_test_below(&state, shape.rows) < i / (size_t)shape.cols;
    }
    double *dense = gsp_test_bytes(area * sizeof *dense);
    memset(sample->weights, 0, area * size);
    for (int64_t row = 0; row < shape.rows && dtype == GSP_INT8; row++)
        sample->scales[row] = take_number(&state);
    for (size_t i = 0; i < area; i++) {
        if (!sample->mask[i]) continue;
        dense[i] = store(dtype, take_number(&state), (char *)sample->weights + i * size);
        if (dtype == GSP_INT8) dense[i] *= (double)sample->scales[i / (size_t)shape.cols];
    }
    MUST(gsp_measure(context, sample->mask, matrix, sample->indptr) == GSP_OK);
    MUST(gsp_sizes(matrix, &sample->lengths) == GSP_OK);
    free(sample->values);
    free(sample->indices);
    matrix->values = sample->values = gsp_test_bytes(sample->lengths.values);
    matrix->indices = sample->indices = gsp_test_bytes(sample->lengths.indices);
    MUST(gsp_encode(context, sample->weights, sample->mask, matrix, sample->values,
                    sample->indices) == GSP_OK);
    return dense;
}

#endif
