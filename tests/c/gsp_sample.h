/* Small matrices of every kind for the C tests and the fuzzers: random masks that are valid by construction
 * (bundle by bundle), random weights, and both encoded. Independent of the functions that choose masks. */
#ifndef GSP_SAMPLE_H
#define GSP_SAMPLE_H

#include <math.h>

#include "gsp_test.h"

typedef struct gsp_shape {
    gsp_pattern pattern;
    int64_t rows, cols;
    bool scatter;
} gsp_shape;

#define GSP_SHAPE(b, k, l, m, n, s)                                                                \
    {{.kind = GSP_GS, .banks = b, .per_row = k, .layout = l}, m, n, s}

/* Horizontal, vertical and hybrid, both layouts, short last groups, uneven banks, wide indices, nothing. */
static const gsp_shape gsp_shapes[] = {
    GSP_SHAPE(4, 4, GSP_INTERLEAVED, 5, 16, false),
    GSP_SHAPE(4, 4, GSP_CONTIGUOUS, 3, 18, true),
    GSP_SHAPE(4, 1, GSP_INTERLEAVED, 8, 16, false),
    GSP_SHAPE(4, 1, GSP_CONTIGUOUS, 7, 19, true),
    GSP_SHAPE(8, 2, GSP_INTERLEAVED, 13, 33, true),
    GSP_SHAPE(16, 4, GSP_CONTIGUOUS, 9, 65, false),
    GSP_SHAPE(16, 16, GSP_INTERLEAVED, 17, 64, true),
    GSP_SHAPE(2, 2, GSP_INTERLEAVED, 33, 600, false),
    GSP_SHAPE(2, 1, GSP_CONTIGUOUS, 3, 70000, false),
    GSP_SHAPE(1, 1, GSP_INTERLEAVED, 3, 5, false),
    GSP_SHAPE(3, 1, GSP_INTERLEAVED, 0, 7, false),
    {{.kind = GSP_IRREGULAR}, 7, 31, false},
    {{.kind = GSP_IRREGULAR}, 2, 70000, false},
    {{.kind = GSP_IRREGULAR}, 0, 0, false},
    {{.kind = GSP_BLOCK, .block_rows = 1, .block_cols = 4}, 5, 18, false},
    {{.kind = GSP_BLOCK, .block_rows = 4, .block_cols = 1}, 10, 7, false},
    {{.kind = GSP_BLOCK, .block_rows = 3, .block_cols = 2}, 8, 9, false},
    {{.kind = GSP_NM, .nm_n = 2, .nm_m = 4}, 6, 16, false},
    {{.kind = GSP_NM, .nm_n = 1, .nm_m = 16}, 3, 32, false},
};
#define GSP_SHAPES ((int)(sizeof gsp_shapes / sizeof *gsp_shapes))

/* Exactly so many bytes, zero: one more is out of bounds, and the sanitizer says so. */
static inline void *gsp_test_bytes(size_t bytes) {
    void *given = calloc(bytes, 1);
    if (given == NULL && bytes > 0) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return given;
}

static inline void gsp_test_shuffle(uint64_t *state, uint32_t *items, int64_t count) {
    for (int64_t i = 0; i < count; i++) items[i] = (uint32_t)i;
    for (int64_t i = count - 1; i > 0; i--) {
        const int64_t j = gsp_test_below(state, i + 1);
        const uint32_t other = items[j];
        items[j] = items[i];
        items[i] = other;
    }
}

/* The mask of one group of a GS pattern: n bundles, each of which deals the banks out to the rows; a row takes
 * a column of its bank that it does not have yet. */
static inline void gsp_sample_group(const gsp_shape *shape, uint64_t *state, const uint32_t *order,
                                    int64_t first, int64_t rows, uint8_t *mask) {
    const gsp_pattern *pattern = &shape->pattern;
    const int64_t banks = pattern->banks, per_row = pattern->per_row;
    const int64_t n = gsp_test_below(state, gspi_min(shape->cols / banks, 40) + 1);
    uint32_t *deal = gsp_test_bytes((size_t)banks * sizeof *deal);
    for (int64_t bundle = 0; bundle < n; bundle++) {
        gsp_test_shuffle(state, deal, banks);
        for (int64_t slot = 0; slot < rows * per_row; slot++) {
            uint8_t *row = mask + order[first + slot / per_row] * shape->cols;
            int64_t col;
            do col = gsp_test_below(state, shape->cols);
            while (gsp_bank_of(pattern, shape->cols, col) != deal[slot] || row[col]);
            row[col] = 1;
        }
    }
    free(deal);
}

/* Writes a valid mask [rows, cols] and, with scatter, a random row order [rows]. */
static inline void gsp_sample_mask(const gsp_shape *shape, uint64_t *state, uint8_t *mask,
                                   uint32_t *row_order) {
    const gsp_pattern *pattern = &shape->pattern;
    const int64_t rows = shape->rows, cols = shape->cols;
    memset(mask, 0, (size_t)(rows * cols));
    for (int64_t row = 0; row < rows; row++) row_order[row] = (uint32_t)row;
    if (shape->scatter) gsp_test_shuffle(state, row_order, rows);
    const int64_t full = gsp_group_rows(pattern);
    for (int64_t first = 0; first < rows; first += full) switch (pattern->kind) {
        case GSP_GS:
            gsp_sample_group(shape, state, row_order, first, gspi_min(full, rows - first), mask);
            break;
        case GSP_IRREGULAR:
            for (int64_t count = gsp_test_below(state, 20); count > 0; count--)
                mask[first * cols + gsp_test_below(state, cols)] = 1;
            break;
        case GSP_BLOCK:
            for (int64_t left = 0; left < cols; left += pattern->block_cols) {
                if (gsp_test_below(state, 3) != 0) continue;
                for (int64_t row = first; row < gspi_min(first + full, rows); row++)
                    for (int64_t col = left; col < gspi_min(left + pattern->block_cols, cols);
                         col++)
                        mask[row * cols + col] = 1;
            }
            break;
        case GSP_NM:
            for (int64_t left = 0; left < cols; left += pattern->nm_m)
                for (uint32_t count = 0; count < pattern->nm_n; count++)
                    mask[first * cols + left +
                         gsp_test_below(state, gspi_min(pattern->nm_m, cols - left))] = 1;
            break;
        }
}

/* A matrix with everything that it was made from. All arrays are the sample's own. */
typedef struct gsp_sample {
    gsp_matrix matrix;
    gsp_lengths lengths;
    uint8_t *mask;
    void *weights; /* [rows, cols] of the dtype, any bits; 0 outside the mask */
    uint32_t *row_order, *indptr;
    void *values, *indices;
    float *scales;
} gsp_sample;

/* One of the weights [rows, cols], with its scale. */
static inline double gsp_sample_weight(const gsp_sample *sample, int64_t flat) {
    const void *weights = sample->weights;
    switch (sample->matrix.dtype) {
    case GSP_FLOAT64: return ((const double *)weights)[flat];
    case GSP_FLOAT32: return (double)((const float *)weights)[flat];
    case GSP_INT8:
        return ((const int8_t *)weights)[flat] * (double)sample->scales[flat / sample->matrix.cols];
    case GSP_BFLOAT16: {
        const uint32_t bits = (uint32_t)((const uint16_t *)weights)[flat] << 16;
        float real;
        memcpy(&real, &bits, sizeof real);
        return (double)real;
    }
    case GSP_FLOAT16: break;
    }
    const int bits = ((const uint16_t *)weights)[flat]; /* normal, or 0 */
    const double size =
        (bits & 0x7fff) == 0 ? 0 : ldexp(1024 + (bits & 0x3ff), (bits >> 10 & 31) - 25);
    return bits & 0x8000 ? -size : size;
}

/* The activation of an epilogue. */
static inline double gsp_sample_activate(double y, const gsp_epilogue *epilogue) {
    switch (epilogue->activation) {
    case GSP_NONE: break;
    case GSP_RELU: return y < 0 ? 0 : y;
    case GSP_SIGMOID: return 1 / (1 + exp(-y));
    case GSP_TANH: return tanh(y);
    case GSP_GELU: return 0.5 * y * erfc(-y * 0.70710678118654752440);
    case GSP_SILU: return y / (1 + exp(-y));
    case GSP_CLAMP: return fmin(fmax(y, epilogue->low), epilogue->high);
    }
    return y;
}

static inline void gsp_sample_free(gsp_sample *sample) {
    free(sample->mask);
    free(sample->weights);
    free(sample->row_order);
    free(sample->indptr);
    free(sample->values);
    free(sample->indices);
    free(sample->scales);
}

/* value / 64 as a float16. */
static inline uint16_t gsp_sample_half(int8_t value) {
    const unsigned size = (unsigned)(value < 0 ? -value : value), sign = value < 0 ? 0x8000 : 0;
    if (size == 0) return 0;
    const unsigned power = 31u - (unsigned)__builtin_clz(size);
    return (uint16_t)(sign | (power + 15 - 6) << 10 | (size << (10 - power) & 0x3ff));
}

/* Encodes random weights. The status is that of the first call that failed; free the sample either way. */
static inline gsp_status gsp_sample_make(gsp_context *context, const gsp_shape *shape,
                                         gsp_dtype dtype, uint64_t seed, gsp_sample *sample) {
    const size_t rows = (size_t)shape->rows, area = rows * (size_t)shape->cols;
    const size_t size = gsp_dtype_size(dtype);
    uint64_t state = seed * 2 + 1;
    *sample = (gsp_sample){
        .matrix = {.pattern = shape->pattern,
                   .rows = shape->rows,
                   .cols = shape->cols,
                   .dtype = dtype},
        .mask = gsp_test_bytes(area),
        .weights = gsp_test_bytes(area * size),
        .row_order = gsp_test_bytes(rows * sizeof(uint32_t)),
        .indptr = gsp_test_bytes(((size_t)gsp_groups(&shape->pattern, shape->rows) + 1) *
                                 sizeof(uint32_t)),
        .scales = gsp_test_bytes(rows * sizeof(float)),
    };
    gsp_sample_mask(shape, &state, sample->mask, sample->row_order);
    if (shape->scatter) sample->matrix.row_order = sample->row_order;
    for (size_t i = 0; i < area; i++) {
        if (!sample->mask[i]) continue;
        /* Small multiples of 1/64, so that sums are exact in float and int8 is in range. */
        const int8_t value = (int8_t)gsp_test_below(&state, 256);
        const float real = (float)value / 64;
        const double wide = (double)real;
        uint32_t bits;
        memcpy(&bits, &real, sizeof bits);
        const uint16_t half =
            dtype == GSP_BFLOAT16 ? (uint16_t)(bits >> 16) : gsp_sample_half(value);
        const void *from = dtype == GSP_FLOAT64   ? (const void *)&wide
                           : dtype == GSP_FLOAT32 ? (const void *)&real
                           : dtype == GSP_INT8    ? (const void *)&value
                                                  : (const void *)&half;
        memcpy((char *)sample->weights + i * size, from, size);
    }
    if (dtype == GSP_INT8) {
        for (size_t row = 0; row < rows; row++) sample->scales[row] = 1.0f / 64;
        sample->matrix.scales = sample->scales;
    }
    GSP_TRY(gsp_measure(context, sample->mask, &sample->matrix, sample->indptr));
    sample->matrix.indptr = sample->indptr;
    GSP_TRY(gsp_sizes(&sample->matrix, &sample->lengths));
    sample->matrix.values = sample->values = gsp_test_bytes(sample->lengths.values);
    sample->matrix.indices = sample->indices = gsp_test_bytes(sample->lengths.indices);
    return gsp_encode(context, sample->weights, sample->mask, &sample->matrix, sample->values,
                      sample->indices);
}

#endif
