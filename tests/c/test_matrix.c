/* Encoding in C: what is decoded is what was encoded, what is encoded is valid, and what is broken is refused. */
#include "gsp_sample.h"

static void test_round_trip(gsp_context *context) {
    for (int i = 0; i < GSP_SHAPES; i++)
        for (int dtype = GSP_FLOAT64; dtype <= GSP_INT8; dtype++)
            for (uint64_t seed = 0; seed < 5; seed++) {
                const gsp_shape *shape = &gsp_shapes[i];
                const size_t area = (size_t)shape->rows * (size_t)shape->cols;
                const size_t size = gsp_dtype_size((gsp_dtype)dtype);
                gsp_sample sample;
                EXPECT_INT(gsp_sample_make(context, shape, (gsp_dtype)dtype, seed, &sample),
                           GSP_OK);
                gsp_fault fault;
                EXPECT_INT(gsp_validate(context, &sample.matrix, &sample.lengths, &fault), GSP_OK);

                uint8_t *weights = gsp_test_bytes(area * size);
                memset(weights, 0xff, area * size);
                EXPECT_INT(gsp_decode(context, &sample.matrix, weights), GSP_OK);
                EXPECT(memcmp(weights, sample.weights, area * size) == 0);
                free(weights);
                gsp_sample_free(&sample);
            }
}

/* A mask with one element too many or too few in one place is never encoded (irregular masks may be any). */
static void test_invalid_masks(gsp_context *context) {
    for (int i = 0; i < GSP_SHAPES; i++) {
        const gsp_shape *shape = &gsp_shapes[i];
        const int64_t area = shape->rows * shape->cols;
        if (shape->pattern.kind != GSP_GS || shape->pattern.banks == 1 || area == 0) continue;
        gsp_sample sample;
        EXPECT_INT(gsp_sample_make(context, shape, GSP_FLOAT32, 7, &sample), GSP_OK);
        for (int64_t flat = 0; flat < area; flat += 1 + area / 500) {
            sample.mask[flat] ^= 1;
            gsp_matrix matrix = sample.matrix;
            const gsp_status status = gsp_measure(context, sample.mask, &matrix, sample.indptr);
            /* A short group of one row may hold any count of single elements. */
            if (shape->pattern.per_row > 1) EXPECT_INT(status, GSP_ERROR_MASK);
            else EXPECT(status == GSP_ERROR_MASK || status == GSP_OK);
            sample.mask[flat] ^= 1;
        }
        gsp_sample_free(&sample);
    }
}

/* Lengths that do not fit are refused before anything is read: the arrays here are shorter than they say. */
static void test_lengths(gsp_context *context) {
    for (int i = 0; i < GSP_SHAPES; i++) {
        gsp_sample sample;
        EXPECT_INT(gsp_sample_make(context, &gsp_shapes[i], GSP_INT8, 3, &sample), GSP_OK);
        for (int part = 0; part < 4; part++) {
            gsp_lengths wrong = sample.lengths;
            size_t *length = part == 0   ? &wrong.values
                             : part == 1 ? &wrong.indices
                             : part == 2 ? &wrong.indptr
                                         : &wrong.scales;
            *length += 1;
            EXPECT(gsp_validate(context, &sample.matrix, &wrong, NULL) != GSP_OK);
            if (*length > 1) {
                *length -= 2;
                EXPECT(gsp_validate(context, &sample.matrix, &wrong, NULL) != GSP_OK);
            }
        }
        gsp_matrix huge = sample.matrix;
        huge.units = UINT64_MAX / 2;
        EXPECT(gsp_validate(context, &huge, &sample.lengths, NULL) != GSP_OK);
        huge = sample.matrix;
        huge.rows = INT64_MAX;
        EXPECT(gsp_validate(context, &huge, &sample.lengths, NULL) != GSP_OK);
        huge = sample.matrix;
        huge.cols = -1;
        EXPECT(gsp_validate(context, &huge, &sample.lengths, NULL) != GSP_OK);
        gsp_sample_free(&sample);
    }
}

/* Arrays without elements may be NULL, from the mask to y. */
static void test_nothing(gsp_context *context) {
    static const gsp_pattern patterns[] = {
        {.kind = GSP_GS, .banks = 4, .per_row = 4},
        {.kind = GSP_GS, .banks = 4, .per_row = 1},
        {.kind = GSP_IRREGULAR},
        {.kind = GSP_BLOCK, .block_rows = 2, .block_cols = 3},
        {.kind = GSP_NM, .nm_n = 2, .nm_m = 4},
    };
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
        for (int64_t cols = 0; cols < 6; cols += 5) {
            gsp_matrix matrix = {.pattern = patterns[i], .cols = cols, .dtype = GSP_INT8};
            uint32_t indptr[1] = {7};
            gsp_lengths lengths;
            EXPECT_INT(gsp_measure(context, NULL, &matrix, indptr), GSP_OK);
            EXPECT(indptr[0] == 0 && matrix.units == 0);
            EXPECT_INT(gsp_sizes(&matrix, &lengths), GSP_OK);
            EXPECT(lengths.values == 0 && lengths.indices == 0 && lengths.indptr == 4);
            EXPECT_INT(gsp_encode(context, NULL, NULL, &matrix, NULL, NULL), GSP_OK);
            EXPECT_INT(gsp_validate(context, &matrix, &lengths, NULL), GSP_OK);
            EXPECT_INT(gsp_decode(context, &matrix, NULL), GSP_OK);
            EXPECT_INT(gsp_columns(context, &matrix, NULL), GSP_OK);
            size_t violations = 1;
            EXPECT_INT(gsp_check(context, NULL, 0, cols, &patterns[i], NULL, NULL, 0, &violations),
                       GSP_OK);
            EXPECT_INT(violations, 0);
            int64_t group = 0;
            EXPECT_INT(gsp_complete(context, NULL, 0, cols, &patterns[i], NULL, &group), GSP_OK);
            EXPECT_INT(group, -1);
            gsp_plan *plan = NULL;
            EXPECT_INT(gsp_plan_create(context, &matrix, GSP_SCALAR, 1, &plan), GSP_OK);
            const float x[5] = {0};
            EXPECT_INT(gsp_multiply(plan, x, 1, NULL, NULL, NULL), GSP_OK);
            gsp_plan_destroy(plan);
        }
}

int main(void) {
    gsp_context *context;
    EXPECT_INT(gsp_context_create(NULL, &context), GSP_OK);
    test_round_trip(context);
    test_invalid_masks(context);
    test_lengths(context);
    test_nothing(context);
    gsp_context_destroy(context);
    return gsp_test_done("matrix");
}
