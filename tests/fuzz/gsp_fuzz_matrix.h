/* What fuzzers of products share: a matrix of any pattern, shape, density and dtype with its weights in double,
 * numbers, an epilogue, and how far a sum may be from the exact one. */
#ifndef GSP_FUZZ_MATRIX_H
#define GSP_FUZZ_MATRIX_H

#include <float.h>
#include <math.h>

#include "gsp_fuzz.h"
#include "kernels/gsp_narrow.h"

/* Near the edges of registers, or any. */
static inline int64_t take_size(gsp_bytes *from) {
    static const uint32_t edges[] = {1, 2, 4, 8, 16, 32, 64};
    const int64_t near = gsp_take_below(from, 4);
    return near ? (int64_t)edges[gsp_take_below(from, 7)] * near + gsp_take_below(from, 3) - 1
                : gsp_take_below(from, 200);
}

/* A pattern of any kind for so many rows, and columns of which there is one at least. */
static inline gsp_shape take_shape(gsp_bytes *from, int64_t rows, int64_t cols) {
    static const uint32_t banks[] = {1, 2, 3, 4, 7, 8, 16, 32};
    gsp_shape shape = {
        .pattern = {.kind = (gsp_kind)gsp_take_below(from, 4)}, .rows = rows, .cols = cols};
    gsp_pattern *pattern = &shape.pattern;
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

/* A sample of this shape whose weights are numbers of any size up to 64 times `unit`, a power of two that float16
 * has, and the same weights in double. */
static inline double *take_weights(gsp_context *context, gsp_bytes *from, gsp_shape shape,
                                   gsp_dtype dtype, float unit, gsp_sample *sample) {
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
        sample->scales[row] = take_number(&state) * unit / 64;
    for (size_t i = 0; i < area; i++) {
        if (!sample->mask[i]) continue;
        const float number = take_number(&state) * (dtype == GSP_INT8 ? 1 : unit);
        dense[i] = store(dtype, number, (char *)sample->weights + i * size);
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

/* The same for any shape and dtype. */
static inline double *take_matrix(gsp_context *context, gsp_bytes *from, gsp_sample *sample) {
    const int64_t rows = take_size(from), cols = gspi_max(1, take_size(from));
    const gsp_shape shape = take_shape(from, rows, cols);
    const gsp_dtype dtype = (gsp_dtype)gsp_take_below(from, GSP_INT8 + 1);
    return take_weights(context, from, shape, dtype, 1, sample);
}

/* Numbers as x and y have them: float64, float32 or bfloat16. */
static inline double number_at(gsp_dtype type, const void *array, int64_t i) {
    return type == GSP_FLOAT64    ? ((const double *)array)[i]
           : type == GSP_BFLOAT16 ? (double)gspi_from_bfloat16(((const uint16_t *)array)[i])
                                  : (double)((const float *)array)[i];
}

static inline void *take_numbers(gsp_dtype type, int64_t count, uint64_t *state) {
    const size_t size = gsp_dtype_size(type);
    count = gspi_max(0, count);
    char *numbers = gsp_test_bytes((size_t)count * size);
    for (int64_t i = 0; i < count; i++) store(type, take_number(state), numbers + (size_t)i * size);
    return numbers;
}

/* bias and residual are used or not. */
static inline gsp_epilogue take_epilogue(gsp_bytes *from, const void *bias, const void *residual) {
    const int choice = (int)gsp_take(from, 1);
    return (gsp_epilogue){.bias = choice & 1 ? bias : NULL,
                          .residual = choice & 2 ? residual : NULL,
                          .activation = (gsp_activation)gsp_take_below(from, GSP_CLAMP + 1),
                          .low = -1,
                          .high = 3};
}

/* The sum of one element of y, begun with {0}. */
typedef struct {
    double exact, size; /* of all terms, and of their absolute values */
    int64_t terms;
} sum_of_terms;

static inline void add_term(sum_of_terms *sum, double term) {
    sum->exact += term;
    sum->size += fabs(term);
    sum->terms++;
}

/* Whether y is as near to the exact result as a sum of these terms, rounded to float (double) at every step in any
 * order, must be. `row` and `place`: of its bias and its residual. */
static inline bool is_near(gsp_dtype type, double y, sum_of_terms sum, const gsp_epilogue *epilogue,
                           int64_t row, int64_t place) {
    const double eps = type == GSP_FLOAT64 ? DBL_EPSILON : (double)FLT_EPSILON;
    double exact = sum.exact, added = fabs(exact);
    for (int i = 0; i < 2; i++) {
        const void *addend = i ? epilogue->residual : epilogue->bias;
        if (addend == NULL) continue;
        const double more = number_at(type, addend, i ? place : row);
        exact += more;
        added += fabs(more);
    }
    /* No activation is steeper than 1.13; its own arithmetic rounds a few times. */
    const double bound = 1.2 * (2 * (double)(sum.terms + 2) * eps * sum.size + 4 * eps * added) +
                         8 * eps * fmax(1, fabs(exact));
    const double wanted = gsp_sample_activate(exact, epilogue);
    const double rounded = type == GSP_BFLOAT16 ? 0x1p-8 * (fabs(wanted) + bound) : 0;
    return fabs(y - wanted) <= bound + rounded;
}

#endif
