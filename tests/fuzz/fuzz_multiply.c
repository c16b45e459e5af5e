/* Every backend against a product in double: a matrix of any pattern, shape and dtype, x, bias, residual, strides
 * and activation, all taken from the input, multiplied by every kind of plan. A result may be as far from the exact
 * one as a sum of so many terms in float can be, and no further. */
#include <float.h>
#include <math.h>

#include "gsp_fuzz.h"

/* ------------------------------------------------------------------ matrix */

static gsp_shape take_shape(gsp_bytes *from) {
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
static float take_number(uint64_t *state) {
    if (gsp_test_below(state, 20) == 0) return 0;
    const double size = 1 + (double)gsp_test_below(state, 1 << 24) / (1 << 24);
    return (float)ldexp(gsp_test_below(state, 2) ? size : -size,
                        (int)gsp_test_below(state, 12) - 6);
}

/* The float as the dtype stores it, in `to`, and what is stored as a number. */
static double store(gsp_dtype dtype, float value, void *to) {
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
static double *take_matrix(gsp_context *context, gsp_bytes *from, gsp_sample *sample) {
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

/* ---------------------------------------------------------------- products */

static double activate(double y, const gsp_epilogue *epilogue) {
    switch (epilogue->activation) {
    case GSP_RELU: return y < 0 ? 0 : y;
    case GSP_SIGMOID: return 1 / (1 + exp(-y));
    case GSP_TANH: return tanh(y);
    case GSP_GELU: return 0.5 * y * erfc(-y * 0.70710678118654752440);
    case GSP_SILU: return y / (1 + exp(-y));
    case GSP_CLAMP: return fmin(fmax(y, epilogue->low), epilogue->high);
    default: return y;
    }
}

typedef struct {
    int64_t n;
    bool wide;
    gsp_strides strides;
    void *x, *bias, *residual, *y;
    gsp_epilogue epilogue;
} product;

static double number_at(const product *p, const void *array, int64_t i) {
    return p->wide ? ((const double *)array)[i] : (double)((const float *)array)[i];
}

static void *take_numbers(const product *p, int64_t count, uint64_t *state) {
    count = gspi_max(0, count);
    void *numbers = gsp_test_bytes((size_t)count * (p->wide ? 8 : 4));
    for (int64_t i = 0; i < count; i++) {
        const float value = take_number(state);
        if (p->wide) ((double *)numbers)[i] = (double)value;
        else ((float *)numbers)[i] = value;
    }
    return numbers;
}

static void check(const gsp_matrix *matrix, const uint8_t *mask, const double *dense,
                  const product *p) {
    const double eps = p->wide ? DBL_EPSILON : (double)FLT_EPSILON;
    const gsp_strides *at = &p->strides;
    for (int64_t row = 0; row < matrix->rows; row++)
        for (int64_t sample = 0; sample < p->n; sample++) {
            double exact = 0, size = 0;
            int64_t terms = 2;
            for (int64_t col = 0; col < matrix->cols; col++) {
                if (!mask[row * matrix->cols + col]) continue;
                const double term = dense[row * matrix->cols + col] *
                                    number_at(p, p->x, col * at->x_col + sample * at->x_sample);
                exact += term;
                size += fabs(term);
                terms++;
            }
            const int64_t place = row * at->y_row + sample * at->y_sample;
            double added = fabs(exact);
            for (int i = 0; i < 2; i++) {
                const void *addend = i ? p->epilogue.residual : p->epilogue.bias;
                if (addend == NULL) continue;
                const double more = number_at(p, addend, i ? place : row);
                exact += more;
                added += fabs(more);
            }
            /* No activation is steeper than 1.13; its own arithmetic rounds a few times. */
            const double bound = 1.2 * (2 * (double)terms * eps * size + 4 * eps * added) +
                                 8 * eps * fmax(1, fabs(exact));
            const double wanted = activate(exact, &p->epilogue);
            MUST(fabs(number_at(p, p->y, place) - wanted) <= bound);
        }
}

static void multiply(gsp_context *context, const gsp_sample *sample, const double *dense,
                     gsp_bytes *from) {
    const gsp_matrix *matrix = &sample->matrix;
    const int64_t rows = matrix->rows, cols = matrix->cols;
    static const int64_t numbers[] = {1, 1, 2, 3, 5, 8, 16, 17, 33, 65};
    const int64_t n = numbers[gsp_take_below(from, 10)], gap = gsp_take_below(from, 3);
    const int choice = (int)gsp_take(from, 1);
    const gsp_activation activation = (gsp_activation)gsp_take_below(from, GSP_CLAMP + 1);
    uint64_t state = gsp_take(from, 4) * 2 + 1;
    gsp_backend backends[GSP_BACKENDS];
    const int count = gsp_backends(backends);
    const bool x_along = gsp_take_below(from, 2), y_along = gsp_take_below(from, 2);
    for (int kind = 0; kind < 2; kind++) /* a plan for n, and that for 1 on n samples */
        for (int b = 0; b < count; b++) {
            gsp_plan *plan;
            MUST(gsp_plan_create(context, matrix, backends[b], kind ? 1 : n, &plan) == GSP_OK);
            const gsp_plan_info info = gsp_plan_describe(plan);
            product p = {.n = n, .wide = matrix->dtype == GSP_FLOAT64};
            const bool along = x_along && (info.columns || info.strided);
            const int64_t x_line = (along ? n : cols) + gap, y_line = (y_along ? n : rows) + gap;
            const int64_t y_count = y_line * (y_along ? rows : n) - gap;
            p.strides = (gsp_strides){along ? x_line : 1, along ? 1 : x_line, y_along ? y_line : 1,
                                      y_along ? 1 : y_line};
            p.x = take_numbers(&p, x_line * (along ? cols : n) - gap, &state);
            p.y = take_numbers(&p, y_count, &state);
            p.bias = take_numbers(&p, rows, &state);
            p.residual = take_numbers(&p, y_count, &state);
            p.epilogue = (gsp_epilogue){.bias = choice & 1 ? p.bias : NULL,
                                        .residual = choice & 2 ? p.residual : NULL,
                                        .activation = activation,
                                        .low = -1,
                                        .high = 3};
            MUST(gsp_multiply(plan, p.x, n, &p.strides, p.y, &p.epilogue) == GSP_OK);
            check(matrix, sample->mask, dense, &p);
            free(p.x);
            free(p.y);
            free(p.bias);
            free(p.residual);
            gsp_plan_destroy(plan);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    gsp_bytes from = {data, data + size};
    gsp_context *context;
    MUST(gsp_context_create(NULL, &context) == GSP_OK);
    gsp_sample sample;
    double *dense = take_matrix(context, &from, &sample);
    multiply(context, &sample, dense, &from);
    free(dense);
    gsp_sample_free(&sample);
    gsp_context_destroy(context);
    return 0;
}
