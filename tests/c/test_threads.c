/* Products and recurrent layers on several threads: the same bits as on one, and no element of y touched by two of
 * them, which ThreadSanitizer sees (make tsan). */
#include <pthread.h>

#include "gsp_sample.h"

#if defined(__SANITIZE_THREAD__)
enum { MOST_THREADS = 2 }; /* it is slow, and sees races without their happening */
#else
enum { MOST_THREADS = 7 };
#endif

/* Of so many rows and columns, or of some fewer rows. */
static const gsp_shape shapes[] = {
    GSP_SHAPE(16, 16, GSP_INTERLEAVED, 0, 0, false),
    GSP_SHAPE(20, 20, GSP_CONTIGUOUS, 1, 0, true),
    GSP_SHAPE(16, 1, GSP_INTERLEAVED, 5, 0, true),
    {{.kind = GSP_BLOCK, .block_rows = 1, .block_cols = 16}, 7, 0, false},
    {{.kind = GSP_BLOCK, .block_rows = 16, .block_cols = 1}, 7, 0, false},
    {{.kind = GSP_BLOCK, .block_rows = 4, .block_cols = 4}, 7, 0, false},
    {{.kind = GSP_NM, .nm_n = 2, .nm_m = 4}, 9, 0, false},
};

typedef struct {
    const gsp_plan *plan;
    gsp_context *context;
    int64_t samples;
    const float *x;
    const gsp_epilogue *epilogue;
    const float *expected;
    size_t size; /* of y, in elements */
    bool same;
} caller;

static void multiply(const caller *c, float *y) {
    for (size_t i = 0; i < c->size; i++) y[i] = -1e30f;
    /* As if one product had just been: this one is worth threads. */
    gspi_is_busy(c->context);
    if (gsp_multiply(c->plan, c->x, c->samples, NULL, y, c->epilogue) != GSP_OK) y[0] = 1e30f;
}

static void *multiply_again(void *argument) {
    caller *c = argument;
    float *y = gsp_test_bytes(c->size * sizeof *y);
    multiply(c, y);
    c->same = memcmp(y, c->expected, c->size * sizeof *y) == 0;
    free(y);
    return NULL;
}

static void check_product(gsp_context *context, const gsp_sample *sample, gsp_backend backend,
                          int64_t n, int64_t samples) {
    const int64_t rows = sample->matrix.rows, cols = sample->matrix.cols;
    gsp_plan *plan = NULL;
    EXPECT_INT(gsp_plan_create(context, &sample->matrix, backend, n, &plan), GSP_OK);
    if (plan == NULL) return;
    float *x = gsp_test_bytes((size_t)(cols * samples) * sizeof *x),
          *bias = gsp_test_bytes((size_t)rows * sizeof *bias),
          *y = gsp_test_bytes((size_t)(rows * samples) * sizeof *y);
    uint64_t state = 7;
    for (int64_t i = 0; i < cols * samples; i++) x[i] = (float)gsp_test_below(&state, 1000) / 999;
    for (int64_t i = 0; i < rows; i++) bias[i] = (float)gsp_test_below(&state, 1000) / 999;
    const gsp_epilogue epilogue = {.bias = bias, .activation = GSP_TANH};
    caller callers[2] = {
        {plan, context, samples, x, &epilogue, y, (size_t)(rows * samples), false}};
    gsp_context_set_threads(context, 1);
    multiply(&callers[0], y);
    for (int threads = 2; threads <= MOST_THREADS; threads += 5) {
        gsp_context_set_threads(context, threads);
        multiply_again(&callers[0]);
        EXPECT(callers[0].same);
    }
    /* Two at once. */
    callers[1] = callers[0];
    pthread_t other;
    EXPECT_INT(pthread_create(&other, NULL, multiply_again, &callers[1]), 0);
    multiply_again(&callers[0]);
    pthread_join(other, NULL);
    EXPECT(callers[0].same && callers[1].same);
    free(x);
    free(bias);
    free(y);
    gsp_plan_destroy(plan);
}

/* ------------------------------------------------------------- recurrent */

enum { HIDDEN = 256, STEPS = 9, BATCH = 20 };

typedef struct {
    gsp_context *context;
    gsp_recurrent recurrent;
    gsp_sequences sequences;
    float *expected; /* y, then h_n and c_n */
    bool same;
} layer_caller;

static size_t layer_size(const layer_caller *c) {
    return (size_t)((c->sequences.steps + 2) * c->sequences.batch * HIDDEN);
}

/* y, h_n and c_n of one layer, in one array. */
static float *run_layer(const layer_caller *c) {
    float *y = gsp_test_bytes(layer_size(c) * sizeof *y);
    gsp_sequences sequences = c->sequences;
    sequences.y = y;
    sequences.h_n = y + sequences.steps * sequences.batch * HIDDEN;
    sequences.c_n = (float *)sequences.h_n + sequences.batch * HIDDEN;
    size_t bytes = 0;
    gsp_status status = gsp_recurrent_workspace(&c->recurrent, &sequences, &bytes);
    void *workspace = gspi_alloc(c->context, bytes, 1);
    gspi_is_busy(c->context);
    if (status == GSP_OK) status = gsp_recurrent_run(&c->recurrent, &sequences, workspace);
    if (status != GSP_OK) y[0] = 1e30f;
    gspi_free(c->context, workspace);
    return y;
}

static void *run_layer_again(void *argument) {
    layer_caller *c = argument;
    float *y = run_layer(c);
    c->same = memcmp(y, c->expected, layer_size(c) * sizeof *y) == 0;
    free(y);
    return NULL;
}

static void check_layer(gsp_context *context, const gsp_sample *input, const gsp_sample *hidden,
                        gsp_backend backend, int64_t batch) {
    gsp_plan *plans[2] = {NULL, NULL};
    EXPECT_INT(gsp_plan_create(context, &input->matrix, backend, STEPS * batch, &plans[0]), GSP_OK);
    EXPECT_INT(gsp_plan_create(context, &hidden->matrix, backend, batch, &plans[1]), GSP_OK);
    const gsp_recurrent_layer weights = {plans[0], plans[1], NULL, NULL};
    float *x = gsp_test_bytes((size_t)(STEPS * batch * HIDDEN) * sizeof *x);
    uint64_t state = 3;
    for (int64_t i = 0; i < STEPS * batch * HIDDEN; i++)
        x[i] = (float)gsp_test_below(&state, 1000) / 4999;
    layer_caller callers[2] = {{.context = context,
                                .recurrent = {GSP_LSTM, 1, 1, &weights},
                                .sequences = {.steps = STEPS, .batch = batch, .x = x}}};
    gsp_context_set_threads(context, 1);
    callers[0].expected = run_layer(&callers[0]);
    for (int threads = 2; threads <= MOST_THREADS; threads += 5) {
        gsp_context_set_threads(context, threads);
        run_layer_again(&callers[0]);
        EXPECT(callers[0].same);
    }
    callers[1] = callers[0];
    pthread_t other;
    EXPECT_INT(pthread_create(&other, NULL, run_layer_again, &callers[1]), 0);
    run_layer_again(&callers[0]);
    pthread_join(other, NULL);
    EXPECT(callers[0].same && callers[1].same);
    free(callers[0].expected);
    free(x);
    gsp_plan_destroy(plans[0]);
    gsp_plan_destroy(plans[1]);
}

static void test_layers(gsp_context *context, const gsp_backend *backends, int count) {
    const gsp_shape shape = {
        {.kind = GSP_BLOCK, .block_rows = 1, .block_cols = 4}, 4 * HIDDEN, HIDDEN, false};
    gsp_sample samples[2];
    for (uint64_t i = 0; i < 2; i++)
        EXPECT_INT(gsp_sample_make(context, &shape, GSP_FLOAT32, i, &samples[i]), GSP_OK);
    for (int b = 0; b < count; b++) {
        check_layer(context, &samples[0], &samples[1], backends[b], 1);
        if (backends[b] != GSP_SCALAR)
            check_layer(context, &samples[0], &samples[1], backends[b], BATCH);
    }
    for (int i = 0; i < 2; i++) gsp_sample_free(&samples[i]);
}

int main(void) {
    gsp_context *context;
    EXPECT_INT(gsp_context_create(NULL, &context), GSP_OK);
    gsp_backend backends[GSP_BACKENDS];
    const int count = gsp_backends(backends);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int few = 0; few < 2; few++) {
            gsp_shape shape = shapes[s];
            shape.rows = (few ? 110 : 400) - shape.rows;
            shape.cols = few ? 320 : 640;
            gsp_sample sample;
            EXPECT_INT(gsp_sample_make(context, &shape, GSP_FLOAT32, s, &sample), GSP_OK);
            for (int b = 0; b < count; b++) {
                /* Enough work for threads to take part: by rows, by samples, by rows of columns. */
                const bool scalar = backends[b] == GSP_SCALAR;
                if (!few) check_product(context, &sample, backends[b], 1, scalar ? 1 : 8);
                if (few) check_product(context, &sample, backends[b], 1, 32 * MOST_THREADS);
                if (few) check_product(context, &sample, backends[b], 65, scalar ? 5 : 65);
            }
            gsp_sample_free(&sample);
        }
    test_layers(context, backends, count);
    gsp_context_destroy(context);
    return gsp_test_done("threads");
}
