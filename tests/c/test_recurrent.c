/* Recurrent layers: every backend against plain recursion in double, what is refused, and that a run asks for no
 * memory. */
#include <math.h>

#include "gsp_sample.h"

enum { MOST_WEIGHTS = 6, MOST_STEPS = 5 };

typedef struct {
    gsp_cell cell;
    int64_t layers, hidden, gates, features, steps, batch, samples;
    int directions;
    int64_t batch_sizes[MOST_STEPS];
    gsp_sample samples_of[2 * MOST_WEIGHTS];
    float *bias[2 * MOST_WEIGHTS];
    float *x, *h0, *c0;
} problem;

static float *take_floats(int64_t count, uint64_t *state) {
    float *floats = gsp_test_bytes((size_t)count * sizeof *floats);
    for (int64_t i = 0; i < count; i++) floats[i] = (float)(gsp_test_below(state, 129) - 64) / 64;
    return floats;
}

static void make_problem(gsp_context *context, uint64_t *state, problem *p) {
    *p = (problem){.cell = gsp_test_below(state, 2) ? GSP_GRU : GSP_LSTM,
                   .layers = 1 + gsp_test_below(state, 3),
                   .directions = 1 + (int)gsp_test_below(state, 2),
                   .hidden = 1 + gsp_test_below(state, 40),
                   .features = 1 + gsp_test_below(state, 40),
                   .steps = 1 + gsp_test_below(state, MOST_STEPS),
                   .batch = 1 + gsp_test_below(state, gsp_test_below(state, 2) ? 6 : 40)};
    p->gates = p->cell == GSP_LSTM ? 4 : 3;
    int64_t here = p->batch;
    for (int64_t step = 0; step < p->steps; step++) {
        p->batch_sizes[step] = here;
        p->samples += here;
        if (gsp_test_below(state, 2)) here -= gsp_test_below(state, here);
    }
    for (int64_t i = 0; i < 2 * p->layers * p->directions; i++) {
        const int64_t below = i / 2 < p->directions ? p->features : p->directions * p->hidden;
        gsp_shape shape = {.pattern = {.kind = GSP_IRREGULAR},
                           .rows = p->gates * p->hidden,
                           .cols = i % 2 ? p->hidden : below};
        if (gsp_test_below(state, 2))
            shape.pattern = (gsp_pattern){.kind = GSP_BLOCK, .block_rows = 1, .block_cols = 3};
        EXPECT_INT(gsp_sample_make(context, &shape, GSP_FLOAT32, gsp_test_random(state),
                                   &p->samples_of[i]),
                   GSP_OK);
        p->bias[i] = gsp_test_below(state, 3) ? take_floats(shape.rows, state) : NULL;
    }
    const int64_t states = p->layers * p->directions * p->batch * p->hidden;
    p->x = take_floats(p->samples * p->features, state);
    p->h0 = gsp_test_below(state, 3) ? take_floats(states, state) : NULL;
    p->c0 = gsp_test_below(state, 3) ? take_floats(states, state) : NULL;
}

static void free_problem(problem *p) {
    for (int64_t i = 0; i < 2 * p->layers * p->directions; i++) {
        gsp_sample_free(&p->samples_of[i]);
        free(p->bias[i]);
    }
    free(p->x);
    free(p->h0);
    free(p->c0);
}

/* ------------------------------------------------------------------ oracle */

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static double sum_of(const problem *p, int64_t i, int64_t row, const double *x) {
    const gsp_matrix *matrix = &p->samples_of[i].matrix;
    double sum = p->bias[i] == NULL ? 0 : (double)p->bias[i][row];
    for (int64_t col = 0; col < matrix->cols; col++)
        sum += (double)((const float *)p->samples_of[i].weights)[row * matrix->cols + col] * x[col];
    return sum;
}

/* One step of one sequence. h and c [hidden]. */
static void step_once(const problem *p, int64_t weight, const double *x, double *h, double *c) {
    double before[64];
    memcpy(before, h, (size_t)p->hidden * sizeof *h);
    for (int64_t unit = 0; unit < p->hidden; unit++) {
        double a[4], b[4];
        for (int64_t gate = 0; gate < p->gates; gate++) {
            a[gate] = sum_of(p, 2 * weight, gate * p->hidden + unit, x);
            b[gate] = sum_of(p, 2 * weight + 1, gate * p->hidden + unit, before);
        }
        if (p->cell == GSP_LSTM) {
            c[unit] = sigmoid(a[1] + b[1]) * c[unit] + sigmoid(a[0] + b[0]) * tanh(a[2] + b[2]);
            h[unit] = sigmoid(a[3] + b[3]) * tanh(c[unit]);
        } else {
            const double z = sigmoid(a[1] + b[1]);
            h[unit] = (1 - z) * tanh(a[2] + sigmoid(a[0] + b[0]) * b[2]) + z * before[unit];
        }
    }
}

/* y [samples][directions * hidden] of the last layer, and the states, in double. */
static double *run_oracle(const problem *p, double *h_n, double *c_n) {
    double *x = gsp_test_bytes((size_t)(p->samples * p->features) * sizeof *x), *y = NULL;
    for (int64_t i = 0; i < p->samples * p->features; i++) x[i] = (double)p->x[i];
    int64_t width = p->features;
    for (int64_t layer = 0; layer < p->layers; layer++) {
        y = gsp_test_bytes((size_t)(p->samples * p->directions * p->hidden) * sizeof *y);
        for (int direction = 0; direction < p->directions; direction++) {
            const int64_t weight = layer * p->directions + direction;
            for (int64_t s = 0; s < p->batch; s++) {
                double *h = h_n + (weight * p->batch + s) * p->hidden;
                double *c = c_n + (weight * p->batch + s) * p->hidden;
                for (int64_t unit = 0; unit < p->hidden; unit++) {
                    const int64_t at = (weight * p->batch + s) * p->hidden + unit;
                    h[unit] = p->h0 == NULL ? 0 : (double)p->h0[at];
                    c[unit] = p->c0 == NULL ? 0 : (double)p->c0[at];
                }
                for (int64_t i = 0; i < p->steps; i++) {
                    const int64_t step = direction ? p->steps - 1 - i : i;
                    if (s >= p->batch_sizes[step]) continue;
                    int64_t at = s;
                    for (int64_t t = 0; t < step; t++) at += p->batch_sizes[t];
                    step_once(p, weight, x + at * width, h, c);
                    memcpy(y + (at * p->directions + direction) * p->hidden, h,
                           (size_t)p->hidden * sizeof *h);
                }
            }
        }
        free(x);
        x = y;
        width = p->directions * p->hidden;
    }
    return y;
}

/* ------------------------------------------------------------------- tests */

static void expect_near(const float *got, const double *exact, int64_t count) {
    double worst = 0;
    for (int64_t i = 0; i < count; i++) {
        const double off = fabs((double)got[i] - exact[i]);
        if (!(off <= worst)) worst = off;
    }
    EXPECT(worst <
           1e-3); /* what a wrong element makes of y is more; tests/test_recurrent.py has bounds */
    if (!(worst < 1e-3)) fprintf(stderr, "  off by %g\n", worst);
}

/* Samples that plan i is made for; sometimes those of the upper layers for one only. */
static int64_t samples_of(const problem *p, int64_t i, bool some_for_one) {
    if (i % 2 == 0) return p->samples;
    return some_for_one && i > 2 ? 1 : p->batch;
}

static void check_problem(gsp_context *context, gsp_test_memory *memory, const problem *p,
                          gsp_backend backend, bool in_place) {
    const int64_t count = p->layers * p->directions, states = count * p->batch * p->hidden;
    const int64_t outputs = p->samples * p->directions * p->hidden;
    gsp_recurrent_layer weights[MOST_WEIGHTS];
    gsp_plan *plans[2 * MOST_WEIGHTS];
    for (int64_t i = 0; i < 2 * count; i++)
        EXPECT_INT(gsp_plan_create(context, &p->samples_of[i].matrix, backend,
                                   samples_of(p, i, in_place), &plans[i]),
                   GSP_OK);
    for (int64_t i = 0; i < count; i++)
        weights[i] = (gsp_recurrent_layer){plans[2 * i], plans[2 * i + 1], p->bias[2 * i],
                                           p->bias[2 * i + 1]};
    const gsp_recurrent recurrent = {p->cell, p->layers, p->directions, weights};
    const size_t state_bytes = (size_t)states * sizeof(float);
    float *h_n = gsp_test_bytes(state_bytes), *c_n = gsp_test_bytes(state_bytes);
    float *y = gsp_test_bytes((size_t)outputs * sizeof *y);
    gsp_sequences sequences = {.steps = p->steps,
                               .batch = p->batch,
                               .batch_sizes = p->batch_sizes,
                               .x = p->x,
                               .h0 = p->h0,
                               .c0 = p->c0,
                               .y = y,
                               .h_n = h_n,
                               .c_n = c_n};
    if (in_place && p->h0 != NULL && p->c0 != NULL) {
        memcpy(h_n, p->h0, state_bytes);
        memcpy(c_n, p->c0, state_bytes);
        sequences.h0 = h_n;
        sequences.c0 = c_n;
    }
    size_t bytes = 0;
    EXPECT_INT(gsp_recurrent_workspace(&recurrent, &sequences, &bytes), GSP_OK);
    char *workspace = gspi_alloc(context, bytes, 1);
    memset(workspace, 0xff, bytes); /* NaN */
    const int64_t requests = memory->requests;
    EXPECT_INT(gsp_recurrent_run(&recurrent, &sequences, workspace), GSP_OK);
    EXPECT_INT(memory->requests, requests);
    gspi_free(context, workspace);

    double *exact_h = gsp_test_bytes((size_t)states * sizeof *exact_h);
    double *exact_c = gsp_test_bytes((size_t)states * sizeof *exact_c);
    double *exact = run_oracle(p, exact_h, exact_c);
    expect_near(y, exact, outputs);
    expect_near(h_n, exact_h, states);
    if (p->cell == GSP_LSTM) expect_near(c_n, exact_c, states);
    free(exact);
    free(exact_h);
    free(exact_c);
    free(y);
    free(h_n);
    free(c_n);
    for (int64_t i = 0; i < 2 * count; i++) gsp_plan_destroy(plans[i]);
}

static void test_random_layers(void) {
    gsp_test_memory memory = {.fail_at = -1};
    const gsp_allocator allocator = {gsp_test_allocate, gsp_test_release, &memory};
    gsp_context *context;
    EXPECT_INT(gsp_context_create(&allocator, &context), GSP_OK);
    gsp_backend backends[GSP_BACKENDS];
    const int count = gsp_backends(backends);
    uint64_t state = 9;
    for (int round = 0; round < 60; round++) {
        problem p;
        make_problem(context, &state, &p);
        for (int b = 0; b < count; b++) check_problem(context, &memory, &p, backends[b], round % 2);
        free_problem(&p);
    }
    gsp_context_destroy(context);
    EXPECT_INT(memory.outstanding, 0);
}

static void test_refusals(void) {
    enum { HIDDEN = 5, FEATURES = 3 };
    gsp_context *context;
    EXPECT_INT(gsp_context_create(NULL, &context), GSP_OK);
    gsp_sample made[3];
    gsp_plan *plans[3];
    for (int i = 0; i < 3; i++) {
        const gsp_shape shape = {.pattern = {.kind = GSP_IRREGULAR},
                                 .rows = 4 * HIDDEN,
                                 .cols = i == 0 ? FEATURES : HIDDEN};
        EXPECT_INT(
            gsp_sample_make(context, &shape, i == 2 ? GSP_FLOAT64 : GSP_FLOAT32, 4, &made[i]),
            GSP_OK);
        EXPECT_INT(gsp_plan_create(context, &made[i].matrix, GSP_SCALAR, 1, &plans[i]), GSP_OK);
    }
    const gsp_recurrent_layer right = {plans[0], plans[1], NULL, NULL};
    const int64_t falling[] = {3, 2}, rising[] = {2, 3}, negative[] = {2, -1};
    const gsp_sequences two = {.steps = 2, .batch = 3, .batch_sizes = falling};
    const struct {
        gsp_status status;
        gsp_recurrent recurrent;
        gsp_recurrent_layer weights[2];
        gsp_sequences sequences;
    } cases[] = {
        {GSP_OK, {GSP_LSTM, 1, 1, NULL}, {right}, two},
        {GSP_OK, {GSP_LSTM, 1, 2, NULL}, {right, right}, two},
        {GSP_ERROR_SHAPE, {(gsp_cell)2, 1, 1, NULL}, {right}, two},
        {GSP_ERROR_SHAPE, {GSP_GRU, 1, 1, NULL}, {right}, two},
        {GSP_ERROR_SHAPE, {GSP_LSTM, 0, 1, NULL}, {right}, two},
        {GSP_ERROR_SHAPE, {GSP_LSTM, 1, 3, NULL}, {right, right}, two},
        {GSP_ERROR_SHAPE, {GSP_LSTM, 2, 1, NULL}, {right, right}, two},
        {GSP_ERROR_SHAPE, {GSP_LSTM, 1, 1, NULL}, {{plans[1], plans[0], NULL, NULL}}, two},
        {GSP_ERROR_DTYPE, {GSP_LSTM, 1, 1, NULL}, {{plans[0], plans[2], NULL, NULL}}, two},
        {GSP_ERROR_SHAPE, {GSP_LSTM, 1, 1, NULL}, {right}, {.steps = 0, .batch = 3}},
        {GSP_ERROR_SHAPE, {GSP_LSTM, 1, 1, NULL}, {right}, {.steps = 1, .batch = -1}},
        {GSP_ERROR_SHAPE, {GSP_LSTM, 1, 1, NULL}, {right}, {2, 2, rising, 0, 0, 0, 0, 0, 0}},
        {GSP_ERROR_SHAPE, {GSP_LSTM, 1, 1, NULL}, {right}, {2, 2, negative, 0, 0, 0, 0, 0, 0}},
        {GSP_ERROR_SHAPE, {GSP_LSTM, 1, 1, NULL}, {right}, {2, 4, falling, 0, 0, 0, 0, 0, 0}},
        {GSP_ERROR_SHAPE, {GSP_LSTM, 1, 1, NULL}, {right}, {.steps = 2, .batch = INT64_MAX}},
        {GSP_ERROR_SHAPE, {GSP_LSTM, 1, 1, NULL}, {right}, {.steps = 1, .batch = INT64_MAX / 2}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        gsp_recurrent recurrent = cases[i].recurrent;
        recurrent.weights = cases[i].weights;
        size_t bytes;
        EXPECT_INT(gsp_recurrent_workspace(&recurrent, &cases[i].sequences, &bytes),
                   cases[i].status);
        if (cases[i].status != GSP_OK)
            EXPECT_INT(gsp_recurrent_run(&recurrent, &cases[i].sequences, NULL), cases[i].status);
    }
    for (int i = 0; i < 3; i++) {
        gsp_plan_destroy(plans[i]);
        gsp_sample_free(&made[i]);
    }
    gsp_context_destroy(context);
}

int main(void) {
    test_random_layers();
    test_refusals();
    return gsp_test_done("recurrent");
}
