/* LSTM and GRU over sequences.
 *
 *     for every layer, direction:
 *         for every run of steps:                 input = W_ih x, of all its samples at once
 *             for every step of the run:          product = W_hh h
 *                                                 h, c = gates(input of the step + product + bias);  y = h
 *
 * A run has 64 samples, a tile of SpMM, or one step: few enough that their sums are still in the second cache when the
 * steps take them. A sequence that has ended keeps its state, one that has not begun has its h0 and c0 there. Layers
 * write to y and to a like array of the workspace in turn, so that the last one ends in y.
 *
 * With a plan of W_hh for few samples, sums and states lie sample by sample; the states are h_n and c_n themselves.
 * With one for columns they lie unit by unit, as SpMM adds them up: x is turned once for a run, and h on its way to y,
 * so that four times as many sums need not be. */
#include <sched.h>
#include <stdatomic.h>

#include "gsp_recurrent.h"

/* Samples of one input product. */
#define RUN_SAMPLES 64

/* Parts of the workspace: where each begins, in bytes. */
typedef struct {
    size_t bytes;
    size_t x, input, product, bias, h, c, between;
} parts;

typedef struct {
    const gsp_recurrent *recurrent;
    const gsp_sequences *sequences;
    int64_t gates, hidden;
    int64_t samples, most; /* in all, and in one run of steps */
    bool by_unit; /* whether some layer is */
    int64_t run_line, batch_line; /* numbers from unit to unit, of a run and of a step */
    size_t size; /* of a number */
    parts at;
} shape;

static int64_t batch_of(const gsp_sequences *sequences, int64_t step) {
    return sequences->batch_sizes == NULL ? sequences->batch : sequences->batch_sizes[step];
}

/* The samples of a run of `*steps` steps from `step` on, forwards or backwards. */
static int64_t measure_run(const gsp_sequences *sequences, int64_t step, bool backward,
                           int64_t *steps) {
    const int64_t left = backward ? step + 1 : sequences->steps - step;
    int64_t samples = 0;
    for (*steps = 0; *steps < left; ++*steps) {
        const int64_t more = batch_of(sequences, backward ? step - *steps : step + *steps);
        if (*steps > 0 && samples + more > RUN_SAMPLES) break;
        samples += more;
    }
    return samples;
}

static bool is_by_unit(const gsp_recurrent_layer *layer) {
    return layer->hidden->entry->op == GSPI_SPMM;
}

/* ------------------------------------------------------------------ checks */

static gsp_status check_sequences(shape *s) {
    const gsp_sequences *sequences = s->sequences;
    GSP_CHECK(sequences->steps >= 1 && sequences->batch >= 0, GSP_ERROR_SHAPE);
    GSP_CHECK(sequences->batch <= INT64_MAX / 64, GSP_ERROR_SHAPE);
    if (sequences->batch_sizes == NULL)
        GSP_CHECK(!__builtin_mul_overflow(sequences->steps, sequences->batch, &s->samples),
                  GSP_ERROR_SHAPE);
    for (int64_t step = 0; sequences->batch_sizes != NULL && step < sequences->steps; step++) {
        const int64_t here = batch_of(sequences, step);
        const int64_t before = step == 0 ? sequences->batch : batch_of(sequences, step - 1);
        GSP_CHECK(here >= 0 && here <= before && (step > 0 || here == before), GSP_ERROR_SHAPE);
        GSP_CHECK(!__builtin_add_overflow(s->samples, here, &s->samples), GSP_ERROR_SHAPE);
    }
    s->most = gspi_min(s->samples, gspi_max(sequences->batch, RUN_SAMPLES));
    return GSP_OK;
}

static gsp_status check_weights(shape *s) {
    const gsp_recurrent *recurrent = s->recurrent;
    GSP_CHECK(recurrent->cell == GSP_LSTM || recurrent->cell == GSP_GRU, GSP_ERROR_SHAPE);
    GSP_CHECK(recurrent->layers >= 1 && (recurrent->directions == 1 || recurrent->directions == 2),
              GSP_ERROR_SHAPE);
    const gsp_plan *first = recurrent->weights[0].input;
    s->gates = recurrent->cell == GSP_LSTM ? 4 : 3;
    s->hidden = recurrent->weights[0].hidden->matrix.cols;
    s->size = first->matrix.dtype == GSP_FLOAT64 ? sizeof(double) : sizeof(float);
    for (int64_t i = 0; i < recurrent->layers * recurrent->directions; i++) {
        const int64_t features =
            i < recurrent->directions ? first->matrix.cols : recurrent->directions * s->hidden;
        const gsp_plan *plans[] = {recurrent->weights[i].input, recurrent->weights[i].hidden};
        for (int j = 0; j < 2; j++) {
            const gsp_matrix *matrix = &plans[j]->matrix;
            GSP_CHECK(matrix->rows == s->gates * s->hidden, GSP_ERROR_SHAPE);
            GSP_CHECK(matrix->cols == (j == 0 ? features : s->hidden), GSP_ERROR_SHAPE);
            GSP_CHECK((matrix->dtype == GSP_FLOAT64) == (s->size == sizeof(double)),
                      GSP_ERROR_DTYPE);
            GSP_CHECK(plans[j]->operand != GSP_BFLOAT16, GSP_ERROR_DTYPE);
            GSP_CHECK(plans[j]->context == first->context, GSP_ERROR_SHAPE);
        }
        s->by_unit = s->by_unit || is_by_unit(&recurrent->weights[i]);
    }
    return GSP_OK;
}

/* Adds rows of so many numbers to the workspace; false if it is too large. */
static bool add_part(shape *s, int64_t rows, int64_t line, size_t *begin) {
    size_t bytes;
    *begin = s->at.bytes;
    return gspi_mul((size_t)rows, (size_t)line, &bytes) && gspi_mul(bytes, s->size, &bytes) &&
           gspi_add(bytes, 63, &bytes) && gspi_add(s->at.bytes, bytes & ~(size_t)63, &s->at.bytes);
}

/* A line of whole registers. */
static int64_t whole(int64_t count) { return gspi_ceil_div(count, 16) * 16; }

static gsp_status measure(const gsp_recurrent *recurrent, const gsp_sequences *sequences,
                          shape *s) {
    *s = (shape){.recurrent = recurrent, .sequences = sequences};
    GSP_TRY(check_weights(s));
    GSP_TRY(check_sequences(s));
    const int64_t directions = recurrent->directions, hidden = s->hidden;
    const int64_t sums = s->gates * hidden, batch = sequences->batch;
    int64_t features = 0, states = 0;
    if (s->by_unit) {
        /* An odd number of cache lines, so that units do not fall on one another in the cache. */
        s->run_line = whole(s->most) | 16;
        s->batch_line = whole(batch);
        features = recurrent->weights[0].input->matrix.cols;
        if (recurrent->layers > 1) features = gspi_max(features, directions * hidden);
        states = hidden;
    }
    const int64_t between = recurrent->layers > 1 ? s->samples : 0;
    GSP_CHECK(add_part(s, features, s->run_line, &s->at.x) &&
                  add_part(s, sums, s->by_unit ? s->run_line : s->most, &s->at.input) &&
                  add_part(s, sums, s->by_unit ? s->batch_line : batch, &s->at.product) &&
                  add_part(s, 4, hidden, &s->at.bias) &&
                  add_part(s, states, s->batch_line, &s->at.h) &&
                  add_part(s, states, s->batch_line, &s->at.c) &&
                  add_part(s, between, directions * hidden, &s->at.between),
              GSP_ERROR_SHAPE);
    return GSP_OK;
}

gsp_status gsp_recurrent_workspace(const gsp_recurrent *recurrent, const gsp_sequences *sequences,
                                   size_t *bytes) {
    shape s;
    GSP_TRY(measure(recurrent, sequences, &s));
    *bytes = s.at.bytes;
    return GSP_OK;
}

/* --------------------------------------------------------------------- run */

#define ADD_BIASES(name, type)                                                                     \
    static void add_biases_##name(const gsp_recurrent_layer *layer, int64_t together,              \
                                  int64_t apart, type *sum) {                                      \
        const type *input = layer->input_bias, *hidden = layer->hidden_bias;                       \
        for (int64_t i = 0; i < together; i++)                                                     \
            sum[i] = (input == NULL ? 0 : input[i]) + (hidden == NULL ? 0 : hidden[i]);            \
        for (int64_t i = together; i < together + apart; i++) {                                    \
            sum[i] = input == NULL ? 0 : input[i];                                                 \
            sum[i + apart] = hidden == NULL ? 0 : hidden[i];                                       \
        }                                                                                          \
    }
ADD_BIASES(f64, double)
ADD_BIASES(f32, float)

/* The two biases of every gate as one, but those of the GRU's last. */
static void add_biases(const shape *s, const gsp_recurrent_layer *layer, void *sum) {
    const bool lstm = s->recurrent->cell == GSP_LSTM;
    const int64_t together = (lstm ? 4 : 2) * s->hidden, apart = lstm ? 0 : s->hidden;
    if (s->size == sizeof(double)) add_biases_f64(layer, together, apart, sum);
    else add_biases_f32(layer, together, apart, sum);
}

static const gspi_cell_kernels *cell_kernels(const shape *s, const gsp_plan *plan) {
    if (s->size == sizeof(double)) return &gspi_f64_cells__scalar;
    switch (plan->entry->backend) {
#ifdef GSP_HAVE_AVX512
    case GSP_AVX512: return &gspi_f32_cells__avx512;
#endif
#ifdef GSP_HAVE_AVX2
    case GSP_AVX2: return &gspi_f32_cells__avx2;
#endif
#ifdef GSP_HAVE_NEON
    case GSP_NEON: return &gspi_f32_cells__neon;
#endif
    default: return &gspi_f32_cells__scalar;
    }
}

/* One layer in one direction. */
typedef struct {
    const shape *s;
    const gsp_recurrent_layer *weights;
    const gspi_cell_kernels *kernels;
    bool by_unit, backward;
    const char *x; /* [samples][features] */
    char *y; /* [samples], y_sample numbers apart */
    int64_t y_sample;
    char *h, *c; /* where the caller has the states, [batch][hidden] */
    char *workspace;
} layer_work;

/* Turns a state of the caller to where the steps want it, or back. */
static void turn_state(const layer_work *w, char *state, char *kept, bool back) {
    const shape *s = w->s;
    if (state == NULL || state == kept) return;
    const int64_t batch = s->sequences->batch;
    if (back) w->kernels->turn(kept, s->batch_line, s->hidden, batch, state, s->hidden);
    else w->kernels->turn(state, s->hidden, batch, s->hidden, kept, s->batch_line);
}

/* ------------------------------------------------------------------ phases */

/* What a layer does, one after the other: the first two for every run, the others for every step. All of a phase must
 * be done before the next; parts of one phase may be done by different threads. */
typedef enum { TURN, INPUT, PRODUCT, GATES, END } phase;

typedef struct {
    const layer_work *w;
    phase phase;
    int64_t workers;
    int64_t step, left, run_left; /* steps that are left, in all and of the run */
    int64_t batch, at; /* samples of the step, and the first of them in y */
    int64_t run_first, run_samples;
    gspi_gates gates;
} course;

static bool turns_x(const layer_work *w) {
    return w->by_unit && w->weights->input->entry->op == GSPI_SPMM;
}

static void begin_run(course *c) {
    const bool backward = c->w->backward;
    c->run_samples = measure_run(c->w->s->sequences, c->step, backward, &c->run_left);
    c->run_first = backward ? c->at - c->run_samples : c->at;
    c->phase = turns_x(c->w) ? TURN : INPUT;
}

static void begin_step(course *c) {
    const layer_work *w = c->w;
    const shape *s = w->s;
    c->batch = batch_of(s->sequences, c->step);
    if (w->backward) c->at -= c->batch;
    const int64_t size = (int64_t)s->size, before = c->at - c->run_first;
    c->gates.samples = c->batch;
    c->gates.input =
        w->workspace + s->at.input + before * (w->by_unit ? 1 : s->gates * s->hidden) * size;
    c->gates.y = w->y + c->at * w->y_sample * size;
    c->phase = PRODUCT;
}

static void advance(course *c) {
    switch (c->phase) {
    case TURN: c->phase = INPUT; break;
    case INPUT: begin_step(c); break;
    case PRODUCT: c->phase = GATES; break;
    default:
        if (!c->w->backward) c->at += c->batch;
        c->step += c->w->backward ? -1 : 1;
        c->left--;
        c->run_left--;
        if (c->left == 0) c->phase = END;
        else if (c->run_left == 0) begin_run(c);
        else begin_step(c);
    }
}

static int64_t parts_of(const course *c) {
    const layer_work *w = c->w;
    if (c->workers == 1) return 1;
    switch (c->phase) {
    /* One at least, for the threads go on where the last part of a phase is done. */
    case TURN:
        return gspi_max(1, gspi_min(c->workers, gspi_ceil_div(w->weights->input->matrix.cols, 16)));
    case INPUT: return gspi_parts_for(w->weights->input, c->workers);
    case PRODUCT: return gspi_parts_for(w->weights->hidden, c->workers);
    default: return gspi_min(c->workers, gspi_ceil_div(w->s->hidden, 16));
    }
}

/* Where a part of so many numbers begins: whole registers. */
static int64_t cut(int64_t count, int64_t part, int64_t parts) {
    return gspi_min(count, gspi_ceil_div(count, 16) * part / parts * 16);
}

static void do_part(const course *c, int64_t part, int64_t parts) {
    const layer_work *w = c->w;
    const shape *s = w->s;
    const int64_t size = (int64_t)s->size, width = s->gates * s->hidden;
    const int64_t features = w->weights->input->matrix.cols;
    const char *x = w->x + c->run_first * features * size;
    char *turned = w->workspace + s->at.x, *input = w->workspace + s->at.input;
    char *product = w->workspace + s->at.product;
    switch (c->phase) {
    case TURN: {
        const int64_t from = cut(features, part, parts), to = cut(features, part + 1, parts);
        w->kernels->turn(x + from * size, features, c->run_samples, to - from,
                         turned + from * s->run_line * size, s->run_line);
        break;
    }
    case INPUT: {
        gsp_strides strides = {1, features, 1, width};
        if (w->by_unit) strides.y_row = s->run_line, strides.y_sample = 1;
        if (turns_x(w)) strides.x_col = s->run_line, strides.x_sample = 1;
        gspi_multiply_part(w->weights->input, turns_x(w) ? turned : x, c->run_samples, &strides,
                           input, part, parts);
        break;
    }
    case PRODUCT: {
        const gsp_strides strides = w->by_unit ? (gsp_strides){s->batch_line, 1, s->batch_line, 1}
                                               : (gsp_strides){1, s->hidden, 1, width};
        gspi_multiply_part(w->weights->hidden, c->gates.h, c->batch, &strides, product, part,
                           parts);
        break;
    }
    default: {
        const int64_t from = cut(s->hidden, part, parts), to = cut(s->hidden, part + 1, parts);
        gspi_gates_kernel *kernel = s->gates == 4 ? w->kernels->lstm : w->kernels->gru;
        if (w->by_unit) kernel(&c->gates, from, to, 0, c->batch);
        else kernel(&c->gates, 0, c->batch, from, to);
    }
    }
}

/* ----------------------------------------------------------------- threads */

/* Threads that go through all phases of a layer together, in one job of the pool: a job for each phase would cost as
 * much as the phase. The ticket is the number of the phase << 32 | its parts << 16 | those taken; who finishes the last
 * part makes the next phase. A thread that holds a part runs, so that nobody waits for one that has not come. */
typedef struct {
    course c;
    char apart[64];
    _Atomic uint64_t ticket;
    char apart_too[64];
    _Atomic int64_t done; /* parts of the phase */
} team;

#define ENDED UINT64_MAX
/* Looks at the ticket before a thread lets others have its CPU. */
#define PATIENCE 256
/* Slots times samples of one step that are worth a wait for other threads, about a microsecond's. */
#define WORTH_SHARING (1 << 16)

static uint64_t ticket_of(const course *c, uint64_t number) {
    return c->phase == END ? ENDED : number << 32 | (uint64_t)parts_of(c) << 16;
}

static gsp_status work_along(void *argument, int64_t item, int worker) {
    (void)item;
    (void)worker;
    team *t = argument;
    for (int waited = 0;;) {
        uint64_t ticket = atomic_load(&t->ticket);
        if (ticket == ENDED) return GSP_OK;
        const int64_t part = ticket & 0xffff, parts = ticket >> 16 & 0xffff;
        if (part == parts) {
            if (++waited % PATIENCE != 0) GSPI_PAUSE();
            else sched_yield();
            continue;
        }
        waited = 0;
        if (!atomic_compare_exchange_weak(&t->ticket, &ticket, ticket + 1)) continue;
        do_part(&t->c, part, parts);
        if (atomic_fetch_add(&t->done, 1) + 1 < parts) continue;
        atomic_store(&t->done, 0);
        advance(&t->c);
        atomic_store(&t->ticket, ticket_of(&t->c, (ticket >> 32) + 1));
    }
}

static int64_t workers_for(const layer_work *w) {
    const shape *s = w->s;
    const gsp_plan *plan = w->weights->hidden;
    int64_t workers;
    if (s->samples == 0 || !gspi_threads_pay(plan, s->samples, &workers)) return 1;
    return plan->slots >= WORTH_SHARING / (uint64_t)s->sequences->batch ? workers : 1;
}

static void run_layer(const layer_work *w) {
    const shape *s = w->s;
    const int64_t width = s->gates * s->hidden;
    add_biases(s, w->weights, w->workspace + s->at.bias);
    team t = {
        .c = {.w = w,
              .workers = workers_for(w),
              .step = w->backward ? s->sequences->steps - 1 : 0,
              .left = s->sequences->steps,
              .at = w->backward ? s->samples : 0,
              .gates = {.hidden = s->hidden,
                        .by_unit = w->by_unit,
                        .product = w->workspace + s->at.product,
                        .bias = w->workspace + s->at.bias,
                        .h = w->by_unit ? w->workspace + s->at.h : w->h,
                        .c = w->by_unit ? w->workspace + s->at.c : w->c,
                        .input_line = w->by_unit ? s->run_line : width,
                        .product_line = w->by_unit ? s->batch_line : width,
                        .state_line = w->by_unit ? s->batch_line : s->hidden,
                        .y_sample = w->y_sample}},
    };
    turn_state(w, w->h, t.c.gates.h, false);
    turn_state(w, w->c, t.c.gates.c, false);
    begin_run(&t.c);
    if (t.c.workers > 1) {
        atomic_init(&t.ticket, ticket_of(&t.c, 0));
        atomic_init(&t.done, 0);
        (void)gspi_parallel_on(w->weights->hidden->context, (int)t.c.workers, t.c.workers,
                               work_along, &t);
    } else {
        for (; t.c.phase != END; advance(&t.c)) do_part(&t.c, 0, 1);
    }
    turn_state(w, w->h, t.c.gates.h, true);
    turn_state(w, w->c, t.c.gates.c, true);
}

/* The state before the first step, to where the caller has the last one. */
static void begin(void *state, const void *first, size_t bytes) {
    if (first == NULL) gspi_clear(state, bytes);
    else if (first != state) gspi_copy_bytes(state, first, bytes);
}

gsp_status gsp_recurrent_run(const gsp_recurrent *recurrent, const gsp_sequences *sequences,
                             void *workspace) {
    shape s;
    GSP_TRY(measure(recurrent, sequences, &s));
    const int64_t layers = recurrent->layers, directions = recurrent->directions;
    const size_t state = (size_t)(sequences->batch * s.hidden) * s.size;
    const size_t all = (size_t)(layers * directions) * state;
    const bool lstm = recurrent->cell == GSP_LSTM;
    begin(sequences->h_n, sequences->h0, all);
    if (lstm) begin(sequences->c_n, sequences->c0, all);
    char *const turns[] = {sequences->y, (char *)workspace + s.at.between};
    const char *x = sequences->x;
    for (int64_t layer = 0; layer < layers; layer++) {
        char *y = turns[(layers - 1 - layer) % 2];
        for (int64_t direction = 0; direction < directions; direction++) {
            const int64_t i = layer * directions + direction;
            const layer_work work = {
                .s = &s,
                .weights = &recurrent->weights[i],
                .kernels = cell_kernels(&s, recurrent->weights[i].hidden),
                .by_unit = is_by_unit(&recurrent->weights[i]),
                .backward = direction == 1,
                .x = x,
                .y = y + (size_t)(direction * s.hidden) * s.size,
                .y_sample = directions * s.hidden,
                .h = (char *)sequences->h_n + (size_t)i * state,
                .c = lstm ? (char *)sequences->c_n + (size_t)i * state : NULL,
                .workspace = workspace,
            };
            run_layer(&work);
        }
        x = y;
    }
    return GSP_OK;
}
