/* Products on several threads: the same bits as on one, and no element of y touched by two of them, which
 * ThreadSanitizer sees (make tsan). */
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
    gsp_context_destroy(context);
    return gsp_test_done("threads");
}
