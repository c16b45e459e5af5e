/* Out of memory: every public function that allocates is run with an allocator that fails at the first, the
 * second, the third request, until it succeeds. Each time it must say GSP_ERROR_MEMORY and give everything
 * back. (Leaks that the counter does not see, and accesses after a failure, are the sanitizers' to find.) */
#include "gsp_sample.h"

/* A task allocates through the context only and gives everything back itself. */
typedef gsp_status task(gsp_context *context, const void *argument);

static void run_out_of_memory(const char *name, task *work, const void *argument) {
    for (int64_t fail_at = 0;; fail_at++) {
        gsp_test_memory memory = {.fail_at = fail_at};
        const gsp_allocator allocator = {gsp_test_allocate, gsp_test_release, &memory};
        gsp_context *context = NULL;
        gsp_status status = gsp_context_create(&allocator, &context);
        if (status == GSP_OK) status = work(context, argument);
        gsp_context_destroy(context);
        EXPECT_INT(memory.outstanding, 0);
        if (memory.requests <= fail_at) {
            /* There were not that many requests: nothing failed. */
            EXPECT_INT(status, GSP_OK);
            return;
        }
        EXPECT_INT(status, GSP_ERROR_MEMORY);
        if (status != GSP_ERROR_MEMORY || memory.outstanding != 0) {
            fprintf(stderr, "in %s, request %lld\n", name, (long long)fail_at);
            return;
        }
    }
}

/* ------------------------------------------------------------------ choose */

typedef struct {
    const gsp_shape *shape;
    gsp_method method;
    bool certify;
} choosing;

static void fill_scores(float *scores, int64_t count) {
    uint64_t state = 99;
    for (int64_t i = 0; i < count; i++) scores[i] = (float)gsp_test_below(&state, 1000);
}

static gsp_status choose(gsp_context *context, const void *argument) {
    const choosing *how = argument;
    const gsp_shape *shape = how->shape;
    const int64_t area = shape->rows * shape->cols;
    float *scores = gsp_test_bytes((size_t)area * sizeof *scores);
    fill_scores(scores, area);
    gsp_choice choice = {
        .scores = scores,
        .rows = shape->rows,
        .cols = shape->cols,
        .pattern = shape->pattern,
        .scatter = shape->scatter,
        .max_per_group = -1,
        .max_keep = -1,
        .mask = gsp_test_bytes((size_t)area),
        .row_order = shape->scatter ? gsp_test_bytes((size_t)shape->rows * sizeof(uint32_t)) : NULL,
        .bundles = gsp_test_bytes((size_t)shape->rows * sizeof(uint32_t)),
    };
    gsp_prices *prices = NULL;
    const int64_t keep = shape->pattern.kind == GSP_NM ? area : area / 4;
    const gsp_status status =
        gsp_choose(context, &choice, 1, keep, how->method, how->certify ? &prices : NULL, NULL);
    if (status == GSP_OK) gsp_prices_destroy(context, prices);
    free(scores);
    free(choice.mask);
    free(choice.row_order);
    free(choice.bundles);
    return status;
}

static gsp_status choose_two(gsp_context *context, const void *argument) {
    const gsp_shape *shapes = argument;
    gsp_choice choices[2];
    float *scores[2];
    for (int i = 0; i < 2; i++) {
        const int64_t rows = shapes[i].rows, area = rows * shapes[i].cols;
        scores[i] = gsp_test_bytes((size_t)area * sizeof **scores);
        fill_scores(scores[i], area);
        choices[i] = (gsp_choice){
            .scores = scores[i],
            .rows = rows,
            .cols = shapes[i].cols,
            .pattern = shapes[i].pattern,
            .scatter = shapes[i].scatter,
            .max_per_group = -1,
            .max_keep = -1,
            .mask = gsp_test_bytes((size_t)area),
            .row_order = shapes[i].scatter ? gsp_test_bytes((size_t)rows * sizeof(uint32_t)) : NULL,
            .bundles = gsp_test_bytes((size_t)rows * sizeof(uint32_t)),
        };
    }
    const gsp_status status = gsp_choose(context, choices, 2, 150, GSP_EXACT, NULL, NULL);
    for (int i = 0; i < 2; i++) {
        free(scores[i]);
        free(choices[i].mask);
        free(choices[i].row_order);
        free(choices[i].bundles);
    }
    return status;
}

static gsp_status check(gsp_context *context, const void *argument) {
    const gsp_sample *sample = argument;
    const gsp_matrix *matrix = &sample->matrix;
    gsp_violation violations[4];
    size_t count = 1;
    const gsp_status status = gsp_check(context, sample->mask, matrix->rows, matrix->cols,
                                        &matrix->pattern, matrix->row_order, violations, 4, &count);
    if (status == GSP_OK) EXPECT_INT(count, 0);
    return status;
}

static gsp_status complete(gsp_context *context, const void *argument) {
    const gsp_sample *sample = argument;
    const gsp_matrix *matrix = &sample->matrix;
    const size_t area = (size_t)matrix->rows * (size_t)matrix->cols;
    uint8_t *mask = gsp_test_bytes(area);
    /* Every third element is missing; the mask that it came from shows that it can be completed. */
    for (size_t i = 0; i < area; i++) mask[i] = sample->mask[i] && i % 3 != 0;
    int64_t group;
    const gsp_status status = gsp_complete(context, mask, matrix->rows, matrix->cols,
                                           &matrix->pattern, matrix->row_order, &group);
    if (status == GSP_OK)
        for (size_t i = 0; i < area; i++) EXPECT(mask[i] || !sample->mask[i] || i % 3 == 0);
    free(mask);
    return status;
}

/* ------------------------------------------------------------------ encode */

static gsp_status encode(gsp_context *context, const void *argument) {
    gsp_sample sample;
    const gsp_status status = gsp_sample_make(context, argument, GSP_FLOAT32, 1, &sample);
    gsp_sample_free(&sample);
    return status;
}

static gsp_status validate(gsp_context *context, const void *argument) {
    const gsp_sample *sample = argument;
    return gsp_validate(context, &sample->matrix, &sample->lengths, NULL);
}

static gsp_status decode(gsp_context *context, const void *argument) {
    const gsp_sample *sample = argument;
    const size_t area = (size_t)sample->matrix.rows * (size_t)sample->matrix.cols;
    float *weights = gsp_test_bytes(area * sizeof *weights);
    const gsp_status status = gsp_decode(context, &sample->matrix, weights);
    if (status == GSP_OK) EXPECT(memcmp(weights, sample->weights, area * sizeof *weights) == 0);
    free(weights);
    return status;
}

static gsp_status columns(gsp_context *context, const void *argument) {
    const gsp_sample *sample = argument;
    uint32_t *cols =
        gsp_test_bytes(sample->lengths.values); /* a float and a column have one size */
    const gsp_status status = gsp_columns(context, &sample->matrix, cols);
    free(cols);
    return status;
}

/* -------------------------------------------------------- plan and multiply */

typedef struct {
    const gsp_sample *sample;
    gsp_backend backend;
    int64_t n;
} planning;

static gsp_status plan(gsp_context *context, const void *argument) {
    const planning *how = argument;
    const gsp_matrix *matrix = &how->sample->matrix;
    gsp_plan *made;
    const gsp_status status = gsp_plan_create(context, matrix, how->backend, how->n, &made);
    if (status != GSP_OK) return status;
    float *x = gsp_test_bytes((size_t)(matrix->cols * how->n) * sizeof *x);
    float *y = gsp_test_bytes((size_t)(matrix->rows * how->n) * sizeof *y);
    /* Products do not allocate, so they do not fail. */
    EXPECT_INT(gsp_multiply(made, x, how->n, NULL, y, NULL), GSP_OK);
    free(x);
    free(y);
    gsp_plan_destroy(made);
    return GSP_OK;
}

int main(void) {
    gsp_context *plain;
    EXPECT_INT(gsp_context_create(NULL, &plain), GSP_OK);
    gsp_backend backends[GSP_BACKENDS];
    const int backend_count = gsp_backends(backends);

    for (int i = 0; i < GSP_SHAPES; i++) {
        const gsp_shape *shape = &gsp_shapes[i];
        if (shape->cols < 10000) {
            for (int method = GSP_EXACT; method <= GSP_GREEDY; method++)
                for (int certify = 0; certify < 2; certify++) {
                    const choosing how = {shape, (gsp_method)method, certify};
                    run_out_of_memory("choose", choose, &how);
                }
        }
        run_out_of_memory("encode", encode, shape);

        gsp_sample sample;
        EXPECT_INT(gsp_sample_make(plain, shape, GSP_FLOAT32, 5, &sample), GSP_OK);
        run_out_of_memory("check", check, &sample);
        run_out_of_memory("complete", complete, &sample);
        run_out_of_memory("validate", validate, &sample);
        run_out_of_memory("decode", decode, &sample);
        run_out_of_memory("columns", columns, &sample);
        for (int b = 0; b < backend_count; b++)
            for (int64_t n = 1; n <= 33; n += 16) {
                const planning how = {&sample, backends[b], n};
                run_out_of_memory("plan", plan, &how);
            }
        gsp_sample_free(&sample);
    }
    const gsp_shape two[] = {gsp_shapes[0], gsp_shapes[4]};
    run_out_of_memory("choose two", choose_two, two);
    gsp_context_destroy(plain);
    return gsp_test_done("memory");
}
