/* LSTM and GRU of every backend against the scalar one: layers, directions, units, features, patterns and dtypes of
 * weights, steps, lengths, states and biases, all taken from the input. Results may be as far apart as two runs that
 * round every sum and gate can be. */
#include "gsp_fuzz_matrix.h"

enum { MOST_WEIGHTS = 4, MOST_STEPS = 4 };

typedef struct {
    gsp_recurrent recurrent;
    gsp_sequences sequences;
    gsp_dtype type; /* of everything but weights */
    int64_t features, hidden, samples;
    int64_t batch_sizes[MOST_STEPS];
    gsp_sample made[2 * MOST_WEIGHTS]; /* W_ih and W_hh of each layer and direction */
    double sizes[2 * MOST_WEIGHTS]; /* the largest sum of absolute values of a row */
    gsp_recurrent_layer weights[MOST_WEIGHTS];
    void *biases[2 * MOST_WEIGHTS]; /* or NULL */
    double states; /* the largest absolute value of h0 and c0 */
} network;

/* y, h_n and c_n of a run. */
typedef struct {
    void *arrays[3];
} result;

static int64_t count_of(const network *net, int array) {
    const int64_t weights = net->recurrent.layers * net->recurrent.directions;
    return array == 0 ? net->samples * net->recurrent.directions * net->hidden
                      : weights * net->sequences.batch * net->hidden;
}

static int64_t gates_of(const network *net) { return net->recurrent.cell == GSP_LSTM ? 4 : 3; }

/* Numbers up to 1. */
static void *take_small(const network *net, int64_t count, uint64_t *state) {
    void *numbers = take_numbers(net->type, count, state);
    for (int64_t i = 0; i < count; i++)
        if (net->type == GSP_FLOAT64) ((double *)numbers)[i] /= 64;
        else ((float *)numbers)[i] /= 64;
    return numbers;
}

static void take_network(gsp_context *context, gsp_bytes *from, network *net) {
    gsp_recurrent *r = &net->recurrent;
    gsp_sequences *s = &net->sequences;
    *r = (gsp_recurrent){.cell = (gsp_cell)gsp_take_below(from, 2),
                         .layers = 1 + gsp_take_below(from, 2),
                         .directions = 1 + (int)gsp_take_below(from, 2),
                         .weights = net->weights};
    static const int64_t edges[] = {1, 4, 8, 16, 32};
    net->hidden = gspi_max(1, edges[gsp_take_below(from, 5)] + gsp_take_below(from, 3) - 1);
    net->features = 1 + gsp_take_below(from, 50);
    s->batch = gspi_max(1, edges[gsp_take_below(from, 5)] + gsp_take_below(from, 3) - 1);
    s->steps = 1 + gsp_take_below(from, MOST_STEPS);
    for (int64_t t = 0, batch = s->batch; t < s->steps; t++) {
        net->batch_sizes[t] = batch;
        net->samples += batch;
        batch = gspi_max(1, batch - gsp_take_below(from, s->batch + 1));
    }
    /* Those of all steps alike may be left out. */
    if (net->samples != s->batch * s->steps || gsp_take_below(from, 2))
        s->batch_sizes = net->batch_sizes;
    const gsp_dtype dtype = (gsp_dtype)gsp_take_below(from, GSP_INT8 + 1);
    net->type = dtype == GSP_FLOAT64 ? GSP_FLOAT64 : GSP_FLOAT32;
    const int64_t rows = gates_of(net) * net->hidden;
    uint64_t state = gsp_take(from, 4) * 2 + 1;
    for (int64_t i = 0; i < 2 * r->layers * r->directions; i++) {
        const int64_t cols = i % 2                   ? net->hidden
                             : i < 2 * r->directions ? net->features
                                                     : r->directions * net->hidden;
        const gsp_shape shape = take_shape(from, rows, cols);
        /* Small enough for gates that are neither open nor shut. */
        double *dense = take_weights(context, from, shape, dtype, 0x1p-8f, &net->made[i]);
        for (int64_t row = 0; row < rows; row++) {
            double size = 0;
            for (int64_t col = 0; col < cols; col++) size += fabs(dense[row * cols + col]);
            net->sizes[i] = fmax(net->sizes[i], size);
        }
        free(dense);
        if (gsp_take_below(from, 3)) net->biases[i] = take_small(net, rows, &state);
    }
    const int64_t states = count_of(net, 1);
    s->x = take_small(net, net->samples * net->features, &state);
    if (gsp_take_below(from, 2)) s->h0 = take_small(net, states, &state);
    if (r->cell == GSP_LSTM && gsp_take_below(from, 2)) s->c0 = take_small(net, states, &state);
    net->states = s->h0 != NULL || s->c0 != NULL;
}

static void run(gsp_context *context, network *net, gsp_backend backend, bool many, result *to) {
    const int64_t count = net->recurrent.layers * net->recurrent.directions;
    gsp_plan *plans[2 * MOST_WEIGHTS];
    for (int64_t i = 0; i < 2 * count; i++) {
        const int64_t n = !many ? 1 : i % 2 ? net->sequences.batch : net->samples;
        MUST(gsp_plan_create(context, &net->made[i].matrix, backend, n, &plans[i]) == GSP_OK);
    }
    for (int64_t i = 0; i < count; i++)
        net->weights[i] = (gsp_recurrent_layer){plans[2 * i], plans[2 * i + 1], net->biases[2 * i],
                                                net->biases[2 * i + 1]};
    gsp_sequences sequences = net->sequences;
    const size_t size = gsp_dtype_size(net->type);
    for (int i = 0; i < 3; i++) {
        to->arrays[i] = gsp_test_bytes((size_t)count_of(net, i) * size);
        memset(to->arrays[i], 0xff, (size_t)count_of(net, i) * size); /* NaN */
    }
    sequences.y = to->arrays[0];
    sequences.h_n = to->arrays[1];
    if (net->recurrent.cell == GSP_LSTM) sequences.c_n = to->arrays[2];
    size_t bytes;
    MUST(gsp_recurrent_workspace(&net->recurrent, &sequences, &bytes) == GSP_OK);
    void *workspace = gspi_alloc(context, bytes, 1);
    MUST(workspace != NULL);
    MUST(gsp_recurrent_run(&net->recurrent, &sequences, workspace) == GSP_OK);
    gspi_free(context, workspace);
    for (int64_t i = 0; i < 2 * count; i++) gsp_plan_destroy(plans[i]);
}

static void result_free(result *r) {
    for (int i = 0; i < 3; i++) free(r->arrays[i]);
}

/* How far h and c of two runs may be apart after all steps of all layers. |x|, |h0| and |c0| are at most 1, as |h| is,
 * and |c| grows by at most 1 in a step. A sigmoid is not steeper than 1/4, tanh not than 1. */
static double bound_of(const network *net) {
    const double eps = net->type == GSP_FLOAT64 ? DBL_EPSILON : (double)FLT_EPSILON;
    const gsp_recurrent *r = &net->recurrent;
    double below = 0, most = 0;
    for (int64_t layer = 0; layer < r->layers; layer++) {
        double here = 0;
        for (int64_t i = layer * r->directions; i < (layer + 1) * r->directions; i++) {
            const double input = net->sizes[2 * i], hidden = net->sizes[2 * i + 1];
            const double sums = input + hidden + 2;
            const double terms = (double)(net->features + 3 * net->hidden + 4);
            double h = 0, c = 0, cell = net->states;
            for (int64_t t = 0; t < net->sequences.steps; t++) {
                const double gate = input * below + hidden * h + 2 * terms * eps * sums;
                if (r->cell == GSP_LSTM) {
                    c += gate * (cell / 4 + 1.25) + 16 * eps * (cell + 1);
                    cell++;
                    h = gate / 4 + c + 16 * eps;
                } else {
                    h += gate * (1.5 + sums / 4) + 16 * eps * sums;
                }
            }
            here = fmax(here, fmax(h, c));
        }
        below = here;
        most = fmax(most, here);
    }
    return 2 * most;
}

static void check(const network *net, const result *wanted, const result *got) {
    const double bound = bound_of(net);
    for (int i = 0; i < (net->recurrent.cell == GSP_LSTM ? 3 : 2); i++)
        for (int64_t j = 0; j < count_of(net, i); j++)
            MUST(fabs(number_at(net->type, got->arrays[i], j) -
                      number_at(net->type, wanted->arrays[i], j)) <= bound);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    gsp_bytes from = {data, data + size};
    gsp_context *context;
    MUST(gsp_context_create(NULL, &context) == GSP_OK);
    network net = {0};
    take_network(context, &from, &net);
    result wanted, got;
    run(context, &net, GSP_SCALAR, false, &wanted);
    gsp_backend backends[GSP_BACKENDS];
    for (int b = gsp_backends(backends) - 1; b >= 0; b--)
        for (int many = 0; many < 2; many++) {
            run(context, &net, backends[b], many, &got);
            check(&net, &wanted, &got);
            result_free(&got);
        }
    result_free(&wanted);
    for (int64_t i = 0; i < 2 * net.recurrent.layers * net.recurrent.directions; i++) {
        gsp_sample_free(&net.made[i]);
        free(net.biases[i]);
    }
    free((void *)(uintptr_t)net.sequences.x);
    free((void *)(uintptr_t)net.sequences.h0);
    free((void *)(uintptr_t)net.sequences.c0);
    gsp_context_destroy(context);
    return 0;
}
