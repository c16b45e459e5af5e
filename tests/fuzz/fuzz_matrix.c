/* gsp_validate on untrusted arrays, and everything that trusts it. Two ways to make a matrix: a valid one with
 * a few numbers changed, which gets deep, and one whose every number is input. What is found valid must
 * decode, encode to itself, and multiply on every backend, all in bounds. */
#include "gsp_fuzz.h"

/* Decodes the matrix, encodes the result again, and wants the same arrays. */
static void round_trip(gsp_context *context, const gsp_matrix *matrix, const gsp_lengths *lengths) {
    const size_t area = (size_t)matrix->rows * (size_t)matrix->cols;
    const size_t size = gsp_dtype_size(matrix->dtype);
    void *weights = gsp_test_bytes(area * size);
    MUST(gsp_decode(context, matrix, weights) == GSP_OK);

    /* The mask: decode a copy whose values are all ones. N:M matrices hold the padding of rows as zeros. */
    void *ones = gsp_test_bytes(lengths->values), *marks = gsp_test_bytes(area * size);
    memset(ones, 0xff, lengths->values);
    gsp_matrix marked = *matrix;
    marked.values = ones;
    MUST(gsp_decode(context, &marked, marks) == GSP_OK);
    uint8_t *mask = gsp_test_bytes(area);
    for (size_t i = 0; i < area; i++) mask[i] = ((const uint8_t *)marks)[i * size] != 0;

    uint32_t *indptr = gsp_test_bytes(lengths->indptr);
    gsp_matrix again = *matrix;
    /* N:M: a slot that stands for no element would be marked too. */
    if (matrix->pattern.kind != GSP_NM) {
        MUST(gsp_measure(context, mask, &again, indptr) == GSP_OK);
        MUST(again.units == matrix->units && again.index_bytes == matrix->index_bytes);
        MUST(memcmp(indptr, matrix->indptr, lengths->indptr) == 0);
        void *values = gsp_test_bytes(lengths->values), *indices = gsp_test_bytes(lengths->indices);
        again.indptr = indptr;
        MUST(gsp_encode(context, weights, mask, &again, values, indices) == GSP_OK);
        /* The packing of a group may be another one: compare what it stands for. */
        again.values = values;
        again.indices = indices;
        void *back = gsp_test_bytes(area * size);
        MUST(gsp_validate(context, &again, lengths, NULL) == GSP_OK);
        MUST(gsp_decode(context, &again, back) == GSP_OK);
        MUST(memcmp(back, weights, area * size) == 0);
        free(back);
        free(values);
        free(indices);
    }
    free(indptr);
    free(mask);
    free(marks);
    free(ones);
    free(weights);
}

static void use(gsp_context *context, const gsp_matrix *matrix, const gsp_lengths *lengths) {
    const size_t area = (size_t)matrix->rows * (size_t)matrix->cols;
    if (area > 1 << 20) return;
    round_trip(context, matrix, lengths);

    uint32_t *cols = gsp_test_bytes(lengths->values / gsp_dtype_size(matrix->dtype) * sizeof *cols);
    MUST(gsp_columns(context, matrix, cols) == GSP_OK);
    free(cols);

    gsp_backend backends[GSP_BACKENDS];
    const int count = gsp_backends(backends);
    for (int b = 0; b < count; b++)
        for (int64_t n = 1; n <= 3; n += 2) {
            gsp_plan *plan;
            MUST(gsp_plan_create(context, matrix, backends[b], n, &plan) == GSP_OK);
            const size_t size = matrix->dtype == GSP_FLOAT64 ? 8 : 4;
            void *x = gsp_test_bytes((size_t)(matrix->cols * n) * size);
            void *y = gsp_test_bytes((size_t)(matrix->rows * n) * size);
            MUST(gsp_multiply(plan, x, n, NULL, y, NULL) == GSP_OK);
            free(x);
            free(y);
            gsp_plan_destroy(plan);
        }
}

/* Changes one number of the matrix or of its arrays. */
static void change(gsp_bytes *from, gsp_sample *sample) {
    gsp_matrix *matrix = &sample->matrix;
    struct {
        void *data;
        size_t bytes, step;
    } arrays[] = {
        {sample->values, sample->lengths.values, 1},
        {sample->indices, sample->lengths.indices,
         matrix->index_bytes > 4 ? 1 : matrix->index_bytes},
        {sample->indptr, sample->lengths.indptr, 4},
        {sample->row_order, sample->lengths.row_order, 4},
        {sample->scales, sample->lengths.scales, 4},
    };
    const int64_t what = gsp_take_below(from, 24);
    switch (what) {
    case 0: matrix->rows += gsp_take_below(from, 5) - 2; return;
    case 1: matrix->cols += gsp_take_below(from, 5) - 2; return;
    case 2: matrix->units = gsp_take(from, (int)gsp_take_below(from, 9)); return;
    case 3: matrix->index_bytes = (uint32_t)gsp_take_below(from, 9); return;
    case 4: matrix->dtype = (gsp_dtype)gsp_take_below(from, 7); return;
    case 5: matrix->pattern = gsp_take_pattern(from); return;
    case 6: matrix->rows = (int64_t)gsp_take(from, 8); return;
    case 7: matrix->row_order = NULL; return;
    default: break;
    }
    const size_t step = arrays[what % 5].step, bytes = arrays[what % 5].bytes;
    if (step == 0 || bytes < step) return;
    uint8_t *at = (uint8_t *)arrays[what % 5].data + gsp_take(from, 4) % (bytes / step) * step;
    if (gsp_take_below(from, 2)) {
        at[0] = (uint8_t)(at[0] + gsp_take_below(from, 5) - 2);
    } else {
        for (size_t i = 0; i < step; i++) at[i] = (uint8_t)gsp_take(from, 1);
    }
}

static void changed_matrix(gsp_context *context, gsp_bytes *from) {
    const gsp_shape *shape = &gsp_shapes[gsp_take_below(from, GSP_SHAPES)];
    const gsp_dtype dtype = (gsp_dtype)gsp_take_below(from, GSP_INT8 + 1);
    gsp_sample sample;
    MUST(gsp_sample_make(context, shape, dtype, gsp_take(from, 1), &sample) == GSP_OK);
    const int64_t changes = gsp_take_below(from, 4);
    for (int64_t i = 0; i < changes; i++) change(from, &sample);
    gsp_fault fault = {0};
    const gsp_status status = gsp_validate(context, &sample.matrix, &sample.lengths, &fault);
    MUST(changes > 0 || status == GSP_OK);
    if (status == GSP_OK) use(context, &sample.matrix, &sample.lengths);
    gsp_sample_free(&sample);
}

static void raw_matrix(gsp_context *context, gsp_bytes *from) {
    gsp_matrix matrix = {
        .pattern = gsp_take_pattern(from),
        .rows = gsp_take_below(from, 10),
        .cols = gsp_take_below(from, 20),
        .dtype = (gsp_dtype)gsp_take_below(from, 6),
        .index_bytes = (uint32_t)gsp_take_below(from, 9),
    };
    gsp_lengths lengths;
    if (gsp_sizes(&matrix, &lengths) != GSP_OK) return;
    if (gsp_take_below(from, 8) > 0)
        matrix.index_bytes = gsp_index_bytes(&matrix.pattern, matrix.cols);

    uint32_t row_order[10];
    const int64_t turn = gsp_take_below(from, 10);
    for (uint32_t row = 0; row < 10; row++)
        row_order[row] = (uint32_t)((row + turn) % gspi_max(1, matrix.rows));
    if (gsp_take_below(from, 3) == 0) matrix.row_order = row_order;

    uint32_t *indptr = gsp_test_bytes(lengths.indptr);
    for (size_t i = 1; i < lengths.indptr / sizeof *indptr; i++)
        indptr[i] = indptr[i - 1] + (uint32_t)gsp_take_below(from, 3);
    matrix.units = indptr[lengths.indptr / sizeof *indptr - 1];
    MUST(gsp_sizes(&matrix, &lengths) == GSP_OK);
    if (lengths.values > 1 << 20) {
        free(indptr);
        return;
    }
    uint8_t *values = gsp_test_bytes(lengths.values), *indices = gsp_test_bytes(lengths.indices);
    float *scales = gsp_test_bytes(lengths.scales);
    /* Low bytes of indices, small as the matrix is; N:M packs several into a byte. */
    const size_t step = matrix.pattern.kind == GSP_NM ? 1 : gspi_max(1, matrix.index_bytes);
    for (size_t i = 0; i < lengths.indices; i += step)
        indices[i] = (uint8_t)(step == 1 ? gsp_take(from, 1) : gsp_take(from, 1) % 32);
    for (size_t i = 0; i < lengths.values; i++) values[i] = (uint8_t)gsp_take(from, 1);
    matrix.values = values;
    matrix.indices = indices;
    matrix.indptr = indptr;
    if (matrix.dtype == GSP_INT8) matrix.scales = scales;
    if (gsp_validate(context, &matrix, &lengths, NULL) == GSP_OK) use(context, &matrix, &lengths);
    free(values);
    free(indices);
    free(indptr);
    free(scales);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    gsp_bytes from = {data, data + size};
    gsp_context *context;
    MUST(gsp_context_create(NULL, &context) == GSP_OK);
    if (gsp_take_below(&from, 2)) changed_matrix(context, &from);
    else raw_matrix(context, &from);
    gsp_context_destroy(context);
    return 0;
}
