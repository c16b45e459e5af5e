/* Every row of the list of kernels that this CPU runs, by itself, on matrices that it takes: products,
 * convolutions, and the gates and activations of its backend. A new row is tested without a word here.
 *
 * Weights are multiples of 1/64 and x small integers, so that every sum is exact in float whatever its order: without
 * an activation, results must equal the oracle's bit for bit. */
#include <float.h>
#include <math.h>

#include "gsp_sample.h"
#include "kernels/gsp_narrow.h"

/* The one backend to test, by name; NULL: all. */
static const char *only;

static bool runs(gsp_backend backend) {
    if (only != NULL && strcmp(gsp_backend_name(backend), only) != 0) return false;
    gsp_backend backends[GSP_BACKENDS];
    for (int i = gsp_backends(backends); i > 0; i--)
        if (backends[i - 1] == backend) return true;
    return false;
}

static double get(gsp_dtype type, const void *array, int64_t i) {
    switch (type) {
    case GSP_FLOAT64: return ((const double *)array)[i];
    case GSP_BFLOAT16: return (double)gspi_from_bfloat16(((const uint16_t *)array)[i]);
    default: return (double)((const float *)array)[i];
    }
}
static void set(gsp_dtype type, void *array, int64_t i, double value) {
    switch (type) {
    case GSP_FLOAT64: ((double *)array)[i] = value; break;
    case GSP_BFLOAT16: ((uint16_t *)array)[i] = gspi_to_bfloat16((float)value); break;
    default: ((float *)array)[i] = (float)value;
    }
}

/* Integers in [-8, 8]. */
static void *take_integers(gsp_dtype type, int64_t count, uint64_t *state) {
    void *made = gsp_test_bytes((size_t)gspi_max(0, count) * gsp_dtype_size(type));
    for (int64_t i = 0; i < count; i++) set(type, made, i, (double)gsp_test_below(state, 17) - 8);
    return made;
}

/* What was tested, if something is wrong. */
static void say(const gspi_entry *entry, const gsp_matrix *matrix, const char *format, int64_t a,
                int64_t b) {
    const gsp_pattern *p = &matrix->pattern;
    fprintf(stderr, "  %s: kind %d (%u %u, %u %u, %u %u) layout %d, %lld x %lld, dtype %d, ",
            entry->name, p->kind, p->banks, p->per_row, p->block_rows, p->block_cols, p->nm_n,
            p->nm_m, p->layout, (long long)matrix->rows, (long long)matrix->cols, matrix->dtype);
    fprintf(stderr, format, (long long)a, (long long)b);
}

static double *dense_of(const gsp_sample *sample) {
    const int64_t area = sample->matrix.rows * sample->matrix.cols;
    double *dense = gsp_test_bytes((size_t)area * sizeof *dense);
    for (int64_t i = 0; i < area; i++) dense[i] = gsp_sample_weight(sample, i);
    return dense;
}

/* ---------------------------------------------------------------- products */

static bool is_exact(gsp_activation activation) {
    return activation == GSP_NONE || activation == GSP_RELU || activation == GSP_CLAMP;
}

/* One product in one arrangement of x and y. exact [rows][n]: W x; x [cols][n]. */
static bool product_is_right(const gsp_plan *plan, int64_t n, const double *x, const double *exact,
                             bool x_along, bool y_along, int64_t gap, uint64_t *state) {
    const gsp_matrix *matrix = &plan->matrix;
    const gsp_dtype type = plan->operand == GSP_INT8 ? GSP_FLOAT32 : plan->operand;
    const int64_t rows = matrix->rows, cols = matrix->cols;
    const int64_t x_line = (x_along ? n : cols) + gap, y_line = (y_along ? n : rows) + gap;
    const int64_t x_count = x_line * (x_along ? cols : n) - gap,
                  y_count = y_line * (y_along ? rows : n) - gap;
    const gsp_strides at = {x_along ? x_line : 1, x_along ? 1 : x_line, y_along ? y_line : 1,
                            y_along ? 1 : y_line};
    void *given = take_integers(type, x_count, state), *y = take_integers(type, y_count, state);
    void *bias = take_integers(type, rows, state), *residual = take_integers(type, y_count, state);
    for (int64_t i = 0; i < y_count; i++) set(type, y, i, NAN);
    for (int64_t col = 0; col < cols; col++)
        for (int64_t s = 0; s < n; s++)
            set(type, given, col * at.x_col + s * at.x_sample, x[col * n + s]);
    const int choice = (int)gsp_test_below(state, 4);
    const gsp_epilogue epilogue = {.bias = choice & 1 ? bias : NULL,
                                   .residual = choice & 2 ? residual : NULL,
                                   .activation =
                                       (gsp_activation)gsp_test_below(state, GSP_CLAMP + 1),
                                   .low = -5,
                                   .high = 7};
    EXPECT_INT(gsp_multiply(plan, given, n, &at, y, &epilogue), GSP_OK);
    bool right = true;
    const double eps = type == GSP_FLOAT64 ? DBL_EPSILON : (double)FLT_EPSILON;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t s = 0; s < n; s++) {
            const int64_t place = row * at.y_row + s * at.y_sample;
            double sum = exact[row * n + s];
            if (choice & 1) sum += get(type, bias, row);
            if (choice & 2) sum += get(type, residual, place);
            const double wanted = gsp_sample_activate(sum, &epilogue), got = get(type, y, place);
            double bound = is_exact(epilogue.activation) ? 0 : 8 * eps * fmax(1, fabs(sum));
            /* y is rounded, to the nearest if the activation is exact. */
            double rounded = wanted;
            if (type == GSP_BFLOAT16) {
                rounded = (double)gspi_from_bfloat16(gspi_to_bfloat16((float)wanted));
                if (bound > 0) bound += 0x1p-7 * fabs(wanted);
            }
            right = right && fabs(got - rounded) <= bound;
        }
    /* What lies between lines is left alone. */
    for (int64_t line = 0; line + 1 < (y_along ? rows : n); line++)
        for (int64_t i = y_line - gap; i < y_line; i++)
            right = right && isnan(get(type, y, line * y_line + i));
    free(given);
    free(y);
    free(bias);
    free(residual);
    return right;
}

/* What x is for an entry of the list. */
static gsp_dtype operand_of(const gspi_entry *entry, const gsp_matrix *matrix) {
    if (entry->operands >> GSP_FLOAT32 & 1)
        return matrix->dtype == GSP_FLOAT64 ? GSP_FLOAT64 : GSP_FLOAT32;
    return entry->operands >> GSP_INT8 & 1 ? GSP_INT8 : GSP_BFLOAT16;
}

static bool takes(const gspi_entry *entry, const gsp_matrix *matrix) {
    const int64_t most = entry->form == GSPI_FLOATS  ? GSPI_MAX_COPY
                         : entry->form == GSPI_BYTES ? 65536
                         : entry->form == GSPI_TILES ? GSPI_MOST_TILE_COLS
                                                     : INT32_MAX;
    return entry->dtypes >> matrix->dtype & 1 && entry->kinds >> matrix->pattern.kind & 1 &&
           (entry->needs & ~gspi_features()) == 0 && matrix->cols <= most;
}

static void check_entry(gsp_context *context, const gspi_entry *entry, const gsp_sample *sample,
                        int64_t n, const double *x, const double *exact, uint64_t *state) {
    gsp_plan *plan = NULL;
    const gsp_matrix *matrix = &sample->matrix;
    /* Any plan serves any number of samples, whatever would be fastest. */
    const int64_t columns = entry->op == GSPI_SPMV ? 1 : gspi_max(n, GSPI_MANY_COLUMNS);
    EXPECT_INT(gspi_plan_create(context, matrix, entry, entry + 1, gspi_features(), columns,
                                operand_of(entry, matrix), &plan),
               takes(entry, matrix) ? GSP_OK : GSP_ERROR_DTYPE);
    if (plan == NULL) return;
    EXPECT(plan->entry == entry);
    const gsp_plan_info info = gsp_plan_describe(plan);
    EXPECT(info.slots >= info.entries);
    for (int along = info.columns || info.strided ? 3 : 1; along >= 0; along--) {
        const bool right = product_is_right(plan, n, x, exact, along & 2, along & 1,
                                            gsp_test_below(state, 3), state);
        EXPECT(right);
        if (!right) say(entry, matrix, "n = %lld, arranged %lld\n", n, along);
    }
    gsp_plan_destroy(plan);
}

/* W x; exact [rows][n], x [cols][n]. */
static double *multiply(const gsp_sample *sample, const double *dense, int64_t n, const double *x) {
    const int64_t rows = sample->matrix.rows, cols = sample->matrix.cols;
    double *exact = gsp_test_bytes((size_t)(rows * n) * sizeof *exact);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t col = 0; col < cols; col++)
            if (sample->mask[row * cols + col])
                for (int64_t s = 0; s < n; s++)
                    exact[row * n + s] += dense[row * cols + col] * x[col * n + s];
    return exact;
}

/* All kernels of one matrix, with so many samples of SpMM, or 0 for few. */
static void check_matrix(gsp_context *context, const gsp_shape *shape, gsp_dtype dtype,
                         uint64_t seed, int64_t samples) {
    static const int64_t few[] = {1, 2, 3, 5, 8}, many[] = {9, 16, 17, 31, 48, 65};
    gsp_sample sample;
    EXPECT_INT(gsp_sample_make(context, shape, dtype, seed, &sample), GSP_OK);
    double *dense = dense_of(&sample);
    uint64_t state = seed * 2 + 1;
    for (int op = 0; op < 2; op++) {
        /* Wide matrices have a plan for few columns only if that is one. */
        const int64_t n = op == GSPI_SPMM               ? samples > 0 ? samples : many[seed % 6]
                          : shape->cols > GSPI_MAX_COPY ? 1
                                                        : few[seed % 5];
        const int64_t count = shape->cols * n;
        double *x = gsp_test_bytes((size_t)count * sizeof *x),
               *bytes = gsp_test_bytes((size_t)count * sizeof *bytes);
        for (int64_t i = 0; i < count; i++) {
            x[i] = (double)gsp_test_below(&state, 17) - 8;
            /* From 0 to 255, and 255 in every sample: its scale is 1, and nothing is rounded. */
            bytes[i] = i < n ? 255 : x[i] + 8;
        }
        double *exact = multiply(&sample, dense, n, x),
               *of_bytes = multiply(&sample, dense, n, bytes);
        for (const gspi_entry *entry = gspi_kernels; entry->name != NULL; entry++)
            if ((int)entry->op == op && runs(entry->backend)) {
                const bool rounds = entry->operands >> GSP_INT8 & 1;
                check_entry(context, entry, &sample, n, rounds ? bytes : x,
                            rounds ? of_bytes : exact, &state);
            }
        free(x);
        free(bytes);
        free(exact);
        free(of_bytes);
    }
    free(dense);
    gsp_sample_free(&sample);
}

/* A pattern of any kind; banks as gs(cpu) has them one time in four. */
static gsp_shape take_shape(uint64_t *state) {
    static const int64_t edges[] = {1, 4, 8, 16, 32, 64, 128};
    static const uint32_t banks[] = {1, 2, 4, 7, 8, 16};
    gsp_shape shape = {.pattern = {.kind = (gsp_kind)gsp_test_below(state, 4)}};
    gsp_pattern *p = &shape.pattern;
    shape.rows = edges[gsp_test_below(state, 7)] + gsp_test_below(state, 3) - 1;
    shape.cols = gspi_max(1, edges[gsp_test_below(state, 7)] * (1 + gsp_test_below(state, 3)) +
                                 gsp_test_below(state, 3) - 1);
    if (p->kind == GSP_GS) {
        p->layout = (gsp_layout)gsp_test_below(state, 2);
        p->banks = gsp_test_below(state, 4) ? banks[gsp_test_below(state, 6)]
                                            : (uint32_t)gspi_ceil_div(shape.cols, 32);
        if (p->banks > shape.cols) p->banks = 1;
        p->per_row = gsp_test_below(state, 2) ? p->banks : 1;
        shape.scatter = gsp_test_below(state, 2);
    }
    p->block_rows = 1 + (uint32_t)gsp_test_below(state, gsp_test_below(state, 2) ? 4 : 33);
    p->block_cols = 1 + (uint32_t)gsp_test_below(state, gsp_test_below(state, 2) ? 4 : 33);
    p->nm_n = 1 + (uint32_t)gsp_test_below(state, 3);
    p->nm_m = p->nm_n + (uint32_t)gsp_test_below(state, 20);
    return shape;
}

/* Plans of AMX for narrow x: that for few samples says up to how many it is the better one. */
static void test_tiles_are_for_many(gsp_context *context) {
    if (!runs(GSP_AMX)) return;
    const gsp_shape shape = {
        {.kind = GSP_GS, .banks = 16, .per_row = 16, .layout = GSP_INTERLEAVED}, 64, 256, false};
    for (int dtype = GSP_BFLOAT16; dtype <= GSP_INT8; dtype++) {
        gsp_sample sample;
        gsp_plan *plan;
        EXPECT_INT(gsp_sample_make(context, &shape, (gsp_dtype)dtype, 3, &sample), GSP_OK);
        int64_t most = 1;
        for (int64_t n = 1; n <= most + 1; n++) {
            EXPECT_INT(
                gsp_plan_create_for(context, &sample.matrix, GSP_AMX, n, (gsp_dtype)dtype, &plan),
                GSP_OK);
            const gsp_plan_info info = gsp_plan_describe(plan);
            if (n == 1) most = info.most;
            EXPECT(most > 1 && most < 200);
            EXPECT(info.columns == (n > most));
            EXPECT((info.backend == GSP_AMX) == (n > most));
            EXPECT_INT(info.most, n > most ? 0 : most);
            gsp_plan_destroy(plan);
        }
        gsp_sample_free(&sample);
    }
}

static void test_products(gsp_context *context) {
    uint64_t state = 1;
    for (int i = 0; i < GSP_SHAPES; i++)
        check_matrix(context, &gsp_shapes[i], (gsp_dtype)(i % (GSP_INT8 + 1)), (uint64_t)i + 1, 0);
    for (int i = 0; i < 800; i++) {
        const gsp_shape shape = take_shape(&state);
        const gsp_dtype dtype =
            i % 2 ? GSP_FLOAT32 : (gsp_dtype)gsp_test_below(&state, GSP_INT8 + 1);
        check_matrix(context, &shape, dtype, (uint64_t)i + 100, 0);
    }
    /* More columns and samples than kernels take at once. */
    static const int64_t large[][3] = {{70, 1100, 130}, {33, 2048, 515}, {3, 8192, 49}};
    for (int i = 0; i < 3; i++)
        for (int dtype = GSP_FLOAT32; dtype <= GSP_INT8; dtype++) {
            const gsp_shape shape = {{.kind = GSP_IRREGULAR}, large[i][0], large[i][1], false};
            check_matrix(context, &shape, (gsp_dtype)dtype, (uint64_t)i + 1, large[i][2]);
        }
}

/* ------------------------------------------------------------ convolutions */

/* A tensor [images][channels][rows][cols], its channels adjacent or its pixels. */
static gsp_images arrange(int64_t channels, int64_t rows, int64_t cols, bool pixels) {
    return pixels ? (gsp_images){rows, cols, channels * rows * cols, rows * cols, cols, 1}
                  : (gsp_images){rows, cols, channels * rows * cols, 1, cols * channels, channels};
}

static int64_t place(const gsp_images *at, int64_t image, int64_t channel, int64_t row,
                     int64_t col) {
    return image * at->image_step + channel * at->channel_step + row * at->row_step +
           col * at->col_step;
}

/* x and y in memory, and the sums of one element of y. */
static double convolved(const gsp_convolution *c, const double *weights, const float *x,
                        int64_t image, int64_t row, int64_t col) {
    double sum = 0;
    for (int64_t i = 0; i < c->kernel[0]; i++)
        for (int64_t j = 0; j < c->kernel[1]; j++)
            for (int64_t channel = 0; channel < c->channels; channel++) {
                const int64_t up = row * c->stride[0] + i * c->dilation[0] - c->before[0],
                              left = col * c->stride[1] + j * c->dilation[1] - c->before[1];
                if (up < 0 || up >= c->x.rows || left < 0 || left >= c->x.cols) continue;
                sum += weights[(i * c->kernel[1] + j) * c->channels + channel] *
                       (double)x[place(&c->x, image, channel, up, left)];
            }
    return sum;
}

static void check_convolution(gsp_context *context, uint64_t seed) {
    uint64_t state = seed * 2 + 1;
    gsp_shape shape = take_shape(&state);
    shape.pattern.kind = (gsp_kind)(gsp_test_below(&state, 2) ? GSP_IRREGULAR : GSP_BLOCK);
    shape.scatter = false;
    gsp_convolution c = {.images = 1 + gsp_test_below(&state, 3),
                         .channels = 1 + gsp_test_below(&state, 20)};
    int64_t size[2], out[2];
    for (int i = 0; i < 2; i++) {
        c.kernel[i] = 1 + gsp_test_below(&state, 4);
        c.stride[i] = 1 + gsp_test_below(&state, 3);
        c.dilation[i] = 1 + gsp_test_below(&state, 2);
        c.before[i] = gsp_test_below(&state, 4);
        out[i] = 1 + gsp_test_below(&state, 12);
        /* As many pixels as the last tap needs, or some fewer: padding. */
        size[i] = gspi_max(1, (out[i] - 1) * c.stride[i] + (c.kernel[i] - 1) * c.dilation[i] + 1 -
                                  c.before[i] - gsp_test_below(&state, 4));
    }
    shape.rows = 1 + gsp_test_below(&state, 40);
    shape.cols = c.channels * c.kernel[0] * c.kernel[1];
    c.x = arrange(c.channels, size[0], size[1], gsp_test_below(&state, 2));
    c.y = arrange(shape.rows, out[0], out[1], gsp_test_below(&state, 2));
    gsp_sample sample;
    EXPECT_INT(gsp_sample_make(context, &shape, GSP_FLOAT32, seed, &sample), GSP_OK);
    double *dense = dense_of(&sample);
    const int64_t count = c.images * shape.rows * out[0] * out[1];
    float *x = take_integers(GSP_FLOAT32, c.images * c.channels * size[0] * size[1], &state),
          *bias = take_integers(GSP_FLOAT32, shape.rows, &state),
          *residual = take_integers(GSP_FLOAT32, count, &state),
          *y = take_integers(GSP_FLOAT32, count, &state),
          *wanted = take_integers(GSP_FLOAT32, count, &state);
    const gsp_epilogue epilogue = {.bias = bias, .residual = residual, .activation = GSP_RELU};
    for (int64_t image = 0; image < c.images; image++)
        for (int64_t row = 0; row < shape.rows; row++)
            for (int64_t i = 0; i < out[0] * out[1]; i++) {
                const int64_t at = place(&c.y, image, row, i / out[1], i % out[1]);
                const double sum =
                    convolved(&c, dense + row * shape.cols, x, image, i / out[1], i % out[1]);
                wanted[at] = (float)fmax(0, sum + (double)bias[row] + (double)residual[at]);
            }
    for (const gspi_entry *entry = gspi_kernels; entry->name != NULL; entry++) {
        if (entry->op != GSPI_SPMM || !takes(entry, &sample.matrix) || !runs(entry->backend))
            continue;
        gsp_plan *plan = NULL;
        EXPECT_INT(
            gspi_plan_create(context, &sample.matrix, entry, entry + 1, 0, 64, GSP_FLOAT32, &plan),
            GSP_OK);
        if (plan == NULL) continue;
        for (int64_t i = 0; i < count; i++) y[i] = NAN;
        EXPECT_INT(gsp_convolve(plan, &c, x, y, &epilogue), GSP_OK);
        const bool right = memcmp(y, wanted, (size_t)count * sizeof *y) == 0;
        EXPECT(right);
        if (!right)
            say(entry, &sample.matrix, "convolution %lld, stride %lld\n", (int64_t)seed,
                c.stride[1]);
        gsp_plan_destroy(plan);
    }
    free(x);
    free(y);
    free(bias);
    free(residual);
    free(wanted);
    free(dense);
    gsp_sample_free(&sample);
}

static void test_convolutions(gsp_context *context) {
    for (uint64_t seed = 1; seed <= 150; seed++) check_convolution(context, seed);
}

/* --------------------------------------------------------------- recurrent */

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* One step of one sample from h (and c) to *h_next and *c. a and b [gates][hidden]: the two products. */
static void step(gsp_cell cell, int64_t hidden, const double *a, const double *b, double *h,
                 double *c) {
    for (int64_t u = 0; u < hidden; u++) {
        const int64_t at[] = {u, hidden + u, 2 * hidden + u, 3 * hidden + u};
        if (cell == GSP_LSTM) {
            c[u] = sigmoid(a[at[1]] + b[at[1]]) * c[u] +
                   sigmoid(a[at[0]] + b[at[0]]) * tanh(a[at[2]] + b[at[2]]);
            h[u] = sigmoid(a[at[3]] + b[at[3]]) * tanh(c[u]);
        } else {
            const double z = sigmoid(a[at[1]] + b[at[1]]),
                         n = tanh(a[at[2]] + sigmoid(a[u] + b[u]) * b[at[2]]);
            h[u] = n + z * (h[u] - n);
        }
    }
}

/* Two steps of `batch` samples. */
static void check_recurrent(gsp_context *context, gsp_cell cell, gsp_backend backend,
                            int64_t hidden, int64_t batch) {
    enum { STEPS = 2, FEATURES = 7 };
    const int64_t gates = cell == GSP_LSTM ? 4 : 3, wide = gates * hidden;
    gsp_sample sample[2];
    double *dense[2];
    gsp_plan *plans[2] = {NULL, NULL};
    for (int i = 0; i < 2; i++) {
        const gsp_shape shape = {{.kind = GSP_IRREGULAR}, wide, i ? hidden : FEATURES, false};
        EXPECT_INT(gsp_sample_make(context, &shape, GSP_FLOAT32, 5 + (uint64_t)hidden, &sample[i]),
                   GSP_OK);
        dense[i] = dense_of(&sample[i]);
        EXPECT_INT(gsp_plan_create(context, &sample[i].matrix, backend, 1, &plans[i]), GSP_OK);
    }
    uint64_t state = (uint64_t)hidden;
    float *x = take_integers(GSP_FLOAT32, STEPS * batch * FEATURES, &state),
          *biases = take_integers(GSP_FLOAT32, 2 * wide, &state),
          *h = take_integers(GSP_FLOAT32, batch * hidden, &state),
          *c = take_integers(GSP_FLOAT32, batch * hidden, &state),
          *y = take_integers(GSP_FLOAT32, STEPS * batch * hidden, &state);
    for (int64_t i = 0; i < STEPS * batch * FEATURES; i++) x[i] /= 16;
    for (int64_t i = 0; i < 2 * wide; i++) biases[i] /= 8;
    for (int64_t i = 0; i < batch * hidden; i++) h[i] /= 16;
    double *exact_h = gsp_test_bytes((size_t)(batch * hidden) * sizeof(double)),
           *exact_c = gsp_test_bytes((size_t)(batch * hidden) * sizeof(double)),
           *sums = gsp_test_bytes((size_t)(2 * wide) * sizeof(double));
    for (int64_t i = 0; i < batch * hidden; i++) {
        exact_h[i] = (double)h[i];
        exact_c[i] = (double)c[i];
    }
    const gsp_recurrent_layer layer = {plans[0], plans[1], biases, biases + wide};
    const gsp_recurrent recurrent = {cell, 1, 1, &layer};
    const gsp_sequences sequences = {
        .steps = STEPS, .batch = batch, .x = x, .h0 = h, .c0 = c, .y = y, .h_n = h, .c_n = c};
    size_t bytes = 0;
    EXPECT_INT(gsp_recurrent_workspace(&recurrent, &sequences, &bytes), GSP_OK);
    void *workspace = gspi_alloc(context, bytes, 1);
    EXPECT_INT(gsp_recurrent_run(&recurrent, &sequences, workspace), GSP_OK);
    gspi_free(context, workspace);

    /* Rounding: of the sums and functions of a step, and what h brings from the one before. */
    double most = 0;
    for (int64_t row = 0; row < wide; row++) {
        double size = 0;
        for (int64_t col = 0; col < hidden; col++) size += fabs(dense[1][row * hidden + col]);
        most = fmax(most, size);
    }
    double bound = 0;
    bool right = true;
    for (int64_t t = 0; t < STEPS; t++) {
        bound = (16 + most) * (bound + 4 * (double)FLT_EPSILON);
        for (int64_t s = 0; s < batch; s++) {
            for (int64_t row = 0; row < wide; row++) {
                const float *from = x + (t * batch + s) * FEATURES;
                sums[row] = (double)biases[row];
                sums[wide + row] = (double)biases[wide + row];
                for (int64_t col = 0; col < FEATURES; col++)
                    sums[row] += dense[0][row * FEATURES + col] * (double)from[col];
                for (int64_t col = 0; col < hidden; col++)
                    sums[wide + row] += dense[1][row * hidden + col] * exact_h[s * hidden + col];
            }
            step(cell, hidden, sums, sums + wide, exact_h + s * hidden, exact_c + s * hidden);
            for (int64_t u = 0; u < hidden; u++)
                right = right && fabs((double)y[(t * batch + s) * hidden + u] -
                                      exact_h[s * hidden + u]) <= bound;
        }
    }
    EXPECT(right);
    if (!right)
        fprintf(stderr, "  cell %d, %s, %lld units, %lld samples\n", cell,
                gsp_backend_name(backend), (long long)hidden, (long long)batch);
    free(x);
    free(biases);
    free(h);
    free(c);
    free(y);
    free(exact_h);
    free(exact_c);
    free(sums);
    for (int i = 0; i < 2; i++) {
        free(dense[i]);
        gsp_plan_destroy(plans[i]);
        gsp_sample_free(&sample[i]);
    }
}

static void test_recurrent(gsp_context *context) {
    static const int64_t sizes[] = {1, 3, 4, 5, 8, 9, 15, 16, 17, 33};
    static const int64_t batches[] = {1, 2, 3, 8, 17, 33};
    gsp_backend backends[GSP_BACKENDS];
    const int count = gsp_backends(backends);
    for (int b = 0; b < count; b++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            for (int cell = GSP_LSTM; cell <= GSP_GRU; cell++)
                check_recurrent(context, (gsp_cell)cell, backends[b], sizes[i],
                                batches[(i + (size_t)cell) % 6]);
}

/* ------------------------------------------------------------- activations */

/* All exponents, both signs: y = activation(x) by the matrix (1), in units in the last place. */
static void test_activations(gsp_context *context) {
    static const struct {
        gsp_activation activation;
        double units;
    } functions[] = {{GSP_SIGMOID, 2}, {GSP_TANH, 2}, {GSP_GELU, 12}, {GSP_SILU, 3}};
    enum { COUNT = 277 * 2 * 9 };
    static float x[COUNT], y[COUNT];
    uint64_t state = 3;
    for (int i = 0; i < COUNT; i++) {
        const double size = 1 + (double)gsp_test_below(&state, 1 << 23) / (1 << 23);
        x[i] = (float)ldexp(i % 2 ? size : -size, i / 2 % 277 - 149);
    }
    const float one = 1;
    const uint16_t col = 0;
    const uint32_t indptr[] = {0, 1};
    const gsp_matrix matrix = {.pattern = {.kind = GSP_IRREGULAR},
                               .rows = 1,
                               .cols = 1,
                               .dtype = GSP_FLOAT32,
                               .index_bytes = 2,
                               .units = 1,
                               .values = &one,
                               .indices = &col,
                               .indptr = indptr};
    for (const gspi_entry *entry = gspi_kernels; entry->name != NULL; entry++) {
        /* Scalar kernels have those of the C library. */
        if (entry->backend == GSP_SCALAR || !runs(entry->backend)) continue;
        gsp_plan *plan = NULL;
        const bool right = entry->kinds >> GSP_IRREGULAR & entry->dtypes >> GSP_FLOAT32 & 1;
        EXPECT_INT(gspi_plan_create(context, &matrix, entry, entry + 1, 0,
                                    entry->op == GSPI_SPMM ? 64 : 1, GSP_FLOAT32, &plan),
                   right ? GSP_OK : GSP_ERROR_DTYPE);
        if (plan == NULL) continue;
        for (size_t f = 0; f < sizeof functions / sizeof *functions; f++) {
            const gsp_epilogue epilogue = {.activation = functions[f].activation};
            const gsp_strides strides = {COUNT, 1, COUNT, 1};
            EXPECT_INT(gsp_multiply(plan, x, COUNT, &strides, y, &epilogue), GSP_OK);
            double worst = 0;
            for (int i = 0; i < COUNT; i++) {
                const double wanted = gsp_sample_activate((double)x[i], &epilogue);
                /* silu: while e^x is normal */
                if (functions[f].activation == GSP_SILU && x[i] < -87) continue;
                const double unit = (double)nextafterf(fabsf((float)wanted), INFINITY) -
                                    fabs((double)(float)wanted);
                worst = fmax(worst, fabs((double)y[i] - wanted) / unit);
            }
            EXPECT(worst <= functions[f].units);
            if (worst > functions[f].units)
                fprintf(stderr, "  %s: activation %d is wrong by %g units\n", entry->name,
                        functions[f].activation, worst);
        }
        gsp_plan_destroy(plan);
    }
}

/* The name of a backend tests the products of that one alone. */
int main(int count, char **words) {
    only = count > 1 ? words[1] : NULL;
    gsp_context *context;
    EXPECT_INT(gsp_context_create(NULL, &context), GSP_OK);
    test_products(context);
    test_tiles_are_for_many(context);
    if (only == NULL) {
        test_convolutions(context);
        test_recurrent(context);
        test_activations(context);
    }
    gsp_context_destroy(context);
    return gsp_test_done("kernels");
}
