/* LSTM and GRU over sequences.
 *
 *     for every layer, direction:
 *         for every run of steps:                 input = W_ih x, of all its samples at once
 *             for every step of the run:          product = W_hh h
 *                                                 h, c = gates(input of the step + product + bias);  y = h
 *
 * A run has some 256 samples: enough that W_ih is loaded seldom, and few enough that the sums stay in the caches. The
 * states h and c of the layer are the arrays h_n and c_n of the caller: a sequence that has ended is not touched
 * any more, one that has not begun has its h0 and c0 there. Layers write to y and to a like array of the workspace in
 * turn, so that the last one ends in y. */
#include "gsp_recurrent.h"

/* Samples of one input product. */
#define RUN_SAMPLES 256

typedef struct {
    const gsp_recurrent *recurrent;
    const gsp_sequences *sequences;
    int64_t gates, hidden;
    int64_t samples, most; /* in all, and in one run of steps */
    size_t size; /* of a number */
    size_t bytes; /* of the workspace, and where its parts begin */
    size_t input, product, bias, between;
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

/* ------------------------------------------------------------------ checks */

static gsp_status check_sequences(shape *s) {
    const gsp_sequences *sequences = s->sequences;
    GSP_CHECK(sequences->steps >= 1 && sequences->batch >= 0, GSP_ERROR_SHAPE);
    s->samples = 0;
    for (int64_t step = 0; step < sequences->steps; step++) {
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
            GSP_CHECK(plans[j]->context == first->context, GSP_ERROR_SHAPE);
        }
    }
    return GSP_OK;
}

/* Adds a part of so many numbers to the workspace; false if it is too large. */
static bool add_part(shape *s, int64_t a, int64_t b, int64_t c, size_t *begin) {
    size_t bytes;
    *begin = s->bytes;
    return gspi_mul((size_t)a, (size_t)b, &bytes) && gspi_mul(bytes, (size_t)c, &bytes) &&
           gspi_mul(bytes, s->size, &bytes) && gspi_add(bytes, 63, &bytes) &&
           gspi_add(s->bytes, bytes & ~(size_t)63, &s->bytes);
}

static gsp_status measure(const gsp_recurrent *recurrent, const gsp_sequences *sequences,
                          shape *s) {
    *s = (shape){.recurrent = recurrent, .sequences = sequences};
    GSP_TRY(check_weights(s));
    GSP_TRY(check_sequences(s));
    const int64_t between = recurrent->layers > 1 ? s->samples : 0;
    GSP_CHECK(add_part(s, s->most, s->gates, s->hidden, &s->input) &&
                  add_part(s, sequences->batch, s->gates, s->hidden, &s->product) &&
                  add_part(s, 1, 4, s->hidden, &s->bias) &&
                  add_part(s, between, recurrent->directions, s->hidden, &s->between),
              GSP_ERROR_SHAPE);
    return GSP_OK;
}

gsp_status gsp_recurrent_workspace(const gsp_recurrent *recurrent, const gsp_sequences *sequences,
                                   size_t *bytes) {
    shape s;
    GSP_TRY(measure(recurrent, sequences, &s));
    *bytes = s.bytes;
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

static gspi_gates_kernel *gates_kernel(const shape *s, const gsp_plan *plan) {
    const bool lstm = s->recurrent->cell == GSP_LSTM;
    if (s->size == sizeof(double)) return lstm ? gspi_f64_lstm__scalar : gspi_f64_gru__scalar;
    switch (plan->entry->backend) {
#ifdef GSP_HAVE_AVX512
    case GSP_AVX512: return lstm ? gspi_f32_lstm__avx512 : gspi_f32_gru__avx512;
#endif
#ifdef GSP_HAVE_AVX2
    case GSP_AVX2: return lstm ? gspi_f32_lstm__avx2 : gspi_f32_gru__avx2;
#endif
#ifdef GSP_HAVE_NEON
    case GSP_NEON: return lstm ? gspi_f32_lstm__neon : gspi_f32_gru__neon;
#endif
    default: return lstm ? gspi_f32_lstm__scalar : gspi_f32_gru__scalar;
    }
}

/* One layer in one direction: x [samples][features] -> y [samples], y_sample numbers apart. */
static gsp_status run_layer(const shape *s, const gsp_recurrent_layer *layer, bool backward,
                            const char *x, char *workspace, gspi_gates *state) {
    const gsp_sequences *sequences = s->sequences;
    const int64_t size = (int64_t)s->size, width = s->gates * s->hidden;
    const int64_t features = layer->input->matrix.cols;
    const gsp_strides across = {1, features, 1, width}, again = {1, s->hidden, 1, width};
    char *input = workspace + s->input, *y = state->y;
    gspi_gates_kernel *gates = gates_kernel(s, layer->hidden);
    state->product = workspace + s->product;
    state->bias = workspace + s->bias;
    add_biases(s, layer, workspace + s->bias);
    int64_t step = backward ? sequences->steps - 1 : 0, at = backward ? s->samples : 0;
    for (int64_t left = sequences->steps, steps; left > 0; left -= steps) {
        const int64_t count = measure_run(sequences, step, backward, &steps);
        const int64_t first = backward ? at - count : at;
        GSP_TRY(
            gsp_multiply(layer->input, x + first * features * size, count, &across, input, NULL));
        for (int64_t i = 0; i < steps; i++, step += backward ? -1 : 1) {
            const int64_t batch = batch_of(sequences, step);
            if (backward) at -= batch;
            GSP_TRY(
                gsp_multiply(layer->hidden, state->h, batch, &again, workspace + s->product, NULL));
            state->input = input + (at - first) * width * size;
            state->y = y + at * state->y_sample * size;
            gates(state, 0, batch);
            if (!backward) at += batch;
        }
    }
    return GSP_OK;
}

/* The state before the first step, to where the state is kept. */
static void begin(void *state, const void *first, size_t bytes) {
    if (first == NULL) gspi_clear(state, bytes);
    else if (first != state) gspi_copy_bytes(state, first, bytes);
}

gsp_status gsp_recurrent_run(const gsp_recurrent *recurrent, const gsp_sequences *sequences,
                             void *workspace) {
    shape s;
    GSP_TRY(measure(recurrent, sequences, &s));
    const int64_t layers = recurrent->layers, directions = recurrent->directions;
    const size_t state_bytes = (size_t)(sequences->batch * s.hidden) * s.size;
    const size_t all = (size_t)(layers * directions) * state_bytes;
    const bool lstm = recurrent->cell == GSP_LSTM;
    begin(sequences->h_n, sequences->h0, all);
    if (lstm) begin(sequences->c_n, sequences->c0, all);
    char *const turns[] = {sequences->y, (char *)workspace + s.between};
    const char *x = sequences->x;
    for (int64_t layer = 0; layer < layers; layer++) {
        char *y = turns[(layers - 1 - layer) % 2];
        for (int64_t direction = 0; direction < directions; direction++) {
            const int64_t i = layer * directions + direction;
            gspi_gates state = {
                .hidden = s.hidden,
                .h = (char *)sequences->h_n + (size_t)i * state_bytes,
                .c = lstm ? (char *)sequences->c_n + (size_t)i * state_bytes : NULL,
                .y = y + (size_t)(direction * s.hidden) * s.size,
                .y_sample = directions * s.hidden,
            };
            GSP_TRY(run_layer(&s, &recurrent->weights[i], direction == 1, x, workspace, &state));
        }
        x = y;
    }
    return GSP_OK;
}
