/* Kernels read and write what they were given and nothing else. Every array (of the matrix, x, y, bias, residual, and
 * what a plan keeps) ends where an unmapped page begins, or begins where one ends; inputs are read-only. So one
 * element too far is a fault, and the program says which product it was. */
#define _DEFAULT_SOURCE
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gsp_sample.h"
#include "kernels/gsp_narrow.h"

/* ------------------------------------------------------------------- pages */

#define FILLER 0xa5

typedef struct {
    unsigned char *map, *begin, *end; /* [begin, end) can be used */
    size_t mapped;
    unsigned char *data;
    size_t bytes;
} pages;

/* Pages that are free again: asking the system for each array takes longer than all products. */
static pages spare[64];
static int spares;

static void out_of_memory(void) {
    fprintf(stderr, "out of memory\n");
    exit(1);
}

/* Room for so many bytes between two pages that cannot be touched. */
static pages pages_make(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes / page + 1) * page;
    pages made = {.mapped = room + 2 * page};
    for (int i = 0; i < spares; i++)
        if (spare[i].mapped == made.mapped) {
            made = spare[i];
            spare[i] = spare[--spares];
            break;
        }
    if (made.map == NULL) {
        made.map = mmap(NULL, made.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (made.map == MAP_FAILED) out_of_memory();
    }
    made.bytes = bytes;
    made.begin = made.map + page;
    made.end = made.begin + room;
    if (mprotect(made.begin, room, PROT_READ | PROT_WRITE) != 0) out_of_memory();
    memset(made.begin, FILLER, room);
    return made;
}

static void pages_free(pages *p) {
    if (spares < 64) {
        /* Who still uses it is found out. */
        mprotect(p->begin, (size_t)(p->end - p->begin), PROT_NONE);
        spare[spares++] = *p;
    } else {
        munmap(p->map, p->mapped);
    }
}

/* An array at either end of its room, filled with a copy. */
static pages guard(const void *from, size_t bytes, bool at_end) {
    pages made = pages_make(bytes);
    made.data = at_end ? made.end - bytes : made.begin;
    if (bytes > 0) memcpy(made.data, from, bytes);
    return made;
}

static pages guard_constant(const void *from, size_t bytes, bool at_end) {
    pages made = guard(from, bytes, at_end);
    mprotect(made.begin, (size_t)(made.end - made.begin), PROT_READ);
    return made;
}

static bool rest_is_untouched(const pages *p) {
    bool same = true;
    for (const unsigned char *at = p->begin; at < p->end; at++)
        same = same && (*at == FILLER || (at >= p->data && at < p->data + p->bytes));
    return same;
}

/* ------------------------------------------------------------ what a plan keeps */

/* gspi_alloc asks for 72 bytes more than it gives, to align by. Given an address that is 8 below an aligned one, it
 * uses the first 8 of them: the other 64 may lie beyond the edge. */
#define SPARE 64
static struct {
    pages all[256];
    bool tight; /* whether requests come from gspi_alloc */
} kept;

static void *kept_allocate(void *user, size_t bytes) {
    (void)user;
    int free = 0;
    while (free < 256 && kept.all[free].map != NULL) free++;
    if (free == 256) return NULL;
    const size_t used = kept.tight ? bytes - SPARE : bytes;
    pages *p = &kept.all[free];
    *p = pages_make(used + 64);
    p->data = p->end - used;
    p->data -= ((uintptr_t)p->data + 8) % 64;
    return p->data;
}

static void kept_release(void *user, void *memory) {
    (void)user;
    for (int i = 0; i < 256 && memory != NULL; i++) {
        if (kept.all[i].data != memory) continue;
        pages_free(&kept.all[i]);
        kept.all[i] = (pages){0};
        return;
    }
}

/* The one backend to test, by name; NULL: all. */
static const char *only;

static int tested_backends(gsp_backend backends[GSP_BACKENDS]) {
    const int all = gsp_backends(backends);
    int count = 0;
    for (int i = 0; i < all; i++)
        if (only == NULL || strcmp(gsp_backend_name(backends[i]), only) == 0)
            backends[count++] = backends[i];
    return count;
}

/* ---------------------------------------------------------------- products */

static char what[256];

static void on_fault(int number) {
    (void)number;
    static const char text[] = "test_guard: outside its arrays: ";
    ssize_t done = write(STDERR_FILENO, text, sizeof text - 1);
    done += write(STDERR_FILENO, what, strlen(what));
    done += write(STDERR_FILENO, "\n", 1);
    _exit(done > 0 ? 1 : 2);
}

/* Whole numbers as float64, float32 or bfloat16. */
static void fill(void *to, size_t size, int64_t count, uint64_t *state) {
    for (int64_t i = 0; i < count; i++) {
        const double value = (double)gsp_test_below(state, 17) - 8;
        if (size == 8) ((double *)to)[i] = value;
        else if (size == 4) ((float *)to)[i] = (float)value;
        else ((uint16_t *)to)[i] = gspi_to_bfloat16((float)value);
    }
}

/* One product between unmapped pages, and the same one in the heap, which test_multiply holds against an oracle.
 * x_along, y_along: whether x and y lie along the samples. */
static void check_product(const gsp_plan *plan, const gsp_matrix *matrix, bool x_along,
                          bool y_along, int64_t samples, int64_t gap, bool at_end,
                          uint64_t *state) {
    const size_t size = plan->operand == GSP_FLOAT64 ? 8 : plan->operand == GSP_BFLOAT16 ? 2 : 4;
    const int64_t rows = matrix->rows, cols = matrix->cols;
    const int64_t x_line = (x_along ? samples : cols) + gap,
                  y_line = (y_along ? samples : rows) + gap;
    const size_t x_count = (size_t)gspi_max(0, x_line * (x_along ? cols : samples) - gap),
                 y_count = (size_t)gspi_max(0, y_line * (y_along ? rows : samples) - gap);
    const gsp_strides strides = {x_along ? x_line : 1, x_along ? 1 : x_line, y_along ? y_line : 1,
                                 y_along ? 1 : y_line};

    char *x = gsp_test_bytes(x_count * size), *bias = gsp_test_bytes((size_t)rows * size),
         *residual = gsp_test_bytes(y_count * size), *y = gsp_test_bytes(y_count * size);
    fill(x, size, (int64_t)x_count, state);
    fill(bias, size, rows, state);
    fill(residual, size, (int64_t)y_count, state);
    fill(y, size, (int64_t)y_count, state);
    pages gx = guard_constant(x, x_count * size, at_end),
          gb = guard_constant(bias, (size_t)rows * size, at_end),
          gr = guard_constant(residual, y_count * size, at_end),
          gy = guard(y, y_count * size, at_end);

    const int choice = (int)gsp_test_below(state, 8);
    gsp_epilogue epilogue = {.activation = (gsp_activation)gsp_test_below(state, GSP_CLAMP + 1),
                             .bias = choice & 1 ? bias : NULL,
                             .residual = choice & 2 ? residual : NULL,
                             .low = -5,
                             .high = 5};
    EXPECT_INT(gsp_multiply(plan, x, samples, &strides, y, choice ? &epilogue : NULL), GSP_OK);
    if (epilogue.bias != NULL) epilogue.bias = gb.data;
    if (epilogue.residual != NULL) epilogue.residual = gr.data;
    EXPECT_INT(gsp_multiply(plan, gx.data, samples, &strides, gy.data, choice ? &epilogue : NULL),
               GSP_OK);
    const bool same = memcmp(gy.data, y, y_count * size) == 0, clean = rest_is_untouched(&gy);
    EXPECT(same);
    EXPECT(clean);
    if (!same || !clean) fprintf(stderr, "  %s\n", what);

    pages_free(&gx);
    pages_free(&gb);
    pages_free(&gr);
    pages_free(&gy);
    free(x);
    free(bias);
    free(residual);
    free(y);
}

/* Every backend, each number of columns, both placements. */
static void check_matrix(gsp_context *context, const gsp_shape *shape, gsp_dtype dtype,
                         uint64_t seed) {
    static const int64_t numbers[] = {1, 2, 5, 8, 16, 17, 33};
    enum { NUMBERS = sizeof numbers / sizeof *numbers };
    gsp_sample sample;
    kept.tight = true;
    EXPECT_INT(gsp_sample_make(context, shape, dtype, seed, &sample), GSP_OK);
    gsp_backend backends[GSP_BACKENDS];
    const int count = tested_backends(backends);
    uint64_t state = seed * 2 + 1;
    for (int at_end = 0; at_end < 2; at_end++) {
        gsp_matrix matrix = sample.matrix;
        pages arrays[] = {
            guard_constant(matrix.values, sample.lengths.values, at_end),
            guard_constant(matrix.indices, sample.lengths.indices, at_end),
            guard_constant(matrix.indptr, sample.lengths.indptr, at_end),
            guard_constant(matrix.row_order, sample.lengths.row_order, at_end),
            guard_constant(matrix.scales, sample.lengths.scales, at_end),
        };
        matrix.values = arrays[0].data;
        matrix.indices = arrays[1].data;
        matrix.indptr = (const uint32_t *)(const void *)arrays[2].data;
        if (matrix.row_order != NULL)
            matrix.row_order = (const uint32_t *)(const void *)arrays[3].data;
        if (matrix.scales != NULL) matrix.scales = (const float *)(const void *)arrays[4].data;
        /* x in the dtype of the matrix, where there is such a product, and in floats. */
        const int operands = dtype == GSP_BFLOAT16 || dtype == GSP_INT8 ? 2 : 1;
        for (int b = 0; b < operands * count; b++)
            for (int n = 0; n < NUMBERS; n++) {
                const gsp_backend backend = backends[b % count];
                const gsp_dtype operand = b >= count             ? dtype
                                          : dtype == GSP_FLOAT64 ? GSP_FLOAT64
                                                                 : GSP_FLOAT32;
                const char *place = at_end ? "before" : "behind";
                const gsp_pattern *p = &shape->pattern;
                const int length = snprintf(
                    what, sizeof what,
                    "kind %d (%u %u, %u %u, %u %u) layout %d scatter %d, %lld x %lld, dtype %d, "
                    "%s, n = %d, %s an edge, ",
                    p->kind, p->banks, p->per_row, p->block_rows, p->block_cols, p->nm_n, p->nm_m,
                    p->layout, shape->scatter, (long long)shape->rows, (long long)shape->cols,
                    dtype, gsp_backend_name(backend), (int)numbers[n], place);
                gsp_plan *plan = NULL;
                EXPECT_INT(
                    gsp_plan_create_for(context, &matrix, backend, numbers[n], operand, &plan),
                    GSP_OK);
                if (plan == NULL) continue;
                const gsp_plan_info info = gsp_plan_describe(plan);
                snprintf(what + length, sizeof what - (size_t)length, "%s", info.kernel);
                /* The plan for 1 takes any number of samples. */
                for (int i = 0; i < (numbers[n] == 1 ? NUMBERS : 1); i++)
                    for (int along = info.columns || info.strided ? 3 : 1; along >= 0; along--)
                        check_product(plan, &matrix, along & 2, along & 1, numbers[n + i],
                                      (n + i) % 2 ? 0 : 3, at_end, &state);
                gsp_plan_destroy(plan);
            }
        for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) pages_free(&arrays[i]);
    }
    gsp_sample_free(&sample);
    kept.tight = false;
}

#define GS(b, k, l, s) {{.kind = GSP_GS, .banks = b, .per_row = k, .layout = l}, 0, 0, s}

/* banks 0: contiguous banks of at most 32 columns, as gs(cpu) has them. */
static const gsp_shape patterns[] = {
    GS(0, 0, GSP_CONTIGUOUS, true),
    GS(0, 0, GSP_CONTIGUOUS, false),
    GS(16, 16, GSP_INTERLEAVED, false),
    GS(16, 16, GSP_CONTIGUOUS, true),
    GS(7, 7, GSP_CONTIGUOUS, true),
    GS(16, 1, GSP_INTERLEAVED, false),
    GS(16, 1, GSP_INTERLEAVED, true),
    GS(16, 4, GSP_CONTIGUOUS, false),
    GS(8, 2, GSP_INTERLEAVED, true),
    GS(1, 1, GSP_INTERLEAVED, false),
    {{.kind = GSP_IRREGULAR}, 0, 0, false},
    {{.kind = GSP_BLOCK, .block_rows = 1, .block_cols = 4}, 0, 0, false},
    {{.kind = GSP_BLOCK, .block_rows = 1, .block_cols = 16}, 0, 0, false},
    {{.kind = GSP_BLOCK, .block_rows = 16, .block_cols = 1}, 0, 0, false},
    {{.kind = GSP_BLOCK, .block_rows = 4, .block_cols = 3}, 0, 0, false},
    {{.kind = GSP_BLOCK, .block_rows = 2, .block_cols = 33}, 0, 0, false},
    {{.kind = GSP_BLOCK, .block_rows = 40, .block_cols = 1}, 0, 0, false},
    {{.kind = GSP_NM, .nm_n = 2, .nm_m = 4}, 0, 0, false},
    {{.kind = GSP_NM, .nm_n = 1, .nm_m = 7}, 0, 0, false},
    {{.kind = GSP_NM, .nm_n = 3, .nm_m = 17}, 0, 0, false},
};

static void test_lane_edges(gsp_context *context) {
    static const int64_t sizes[] = {1, 15, 16, 17, 31, 33, 63, 65, 130};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    uint64_t seed = 1;
    for (size_t p = 0; p < sizeof patterns / sizeof *patterns; p++)
        for (int i = 0; i < SIZES; i++) {
            gsp_shape shape = patterns[p];
            shape.rows = sizes[i];
            shape.cols = sizes[(4 * i + (int)p) % SIZES];
            if (shape.pattern.kind == GSP_GS) {
                if (shape.pattern.banks == 0)
                    shape.pattern.banks = shape.pattern.per_row =
                        (uint32_t)gspi_ceil_div(shape.cols, 32);
                shape.cols = gspi_max(shape.cols, shape.pattern.banks);
            }
            check_matrix(context, &shape, GSP_FLOAT32, seed++);
            /* The other types in turn; all but float64 end in the same kernels. */
            static const gsp_dtype others[] = {GSP_FLOAT64, GSP_FLOAT16, GSP_BFLOAT16, GSP_INT8};
            if (i % 3 == 0) check_matrix(context, &shape, others[(p + i / 3) % 4], seed++);
        }
}

static void test_samples(gsp_context *context) {
    for (int i = 0; i < GSP_SHAPES; i++)
        check_matrix(context, &gsp_shapes[i], GSP_FLOAT32, (uint64_t)i + 1000);
}

/* ------------------------------------------------------------- convolutions */

typedef struct {
    int64_t images, rows, cols, kernel[2], stride[2], dilation[2], before[2];
    bool lengths;
} geometry;

static gsp_images images_of(int64_t rows, int64_t cols, int64_t channels, bool last) {
    const int64_t all = rows * cols * channels;
    if (last) return (gsp_images){rows, cols, all, 1, cols * channels, channels};
    return (gsp_images){rows, cols, all, rows * cols, cols, 1};
}

/* One convolution between unmapped pages, and the same one in the heap: tests/test_conv.py holds that against torch. */
static void check_convolution(const gsp_plan *plan, const gsp_matrix *matrix, const geometry *g,
                              bool x_last, bool y_last, bool at_end, uint64_t *state) {
    const bool halves = matrix->dtype == GSP_BFLOAT16;
    const size_t size = halves ? 2 : matrix->dtype == GSP_FLOAT64 ? 8 : 4;
    const int64_t channels = matrix->cols / (g->kernel[0] * g->kernel[1]);
    gsp_convolution c = {.images = g->images, .channels = channels, .bfloat16 = halves};
    int64_t y_size[2];
    for (int i = 0; i < 2; i++) {
        const int64_t covered = g->dilation[i] * (g->kernel[i] - 1) + 1;
        y_size[i] = ((i ? g->cols : g->rows) + 2 * g->before[i] - covered) / g->stride[i] + 1;
        c.kernel[i] = g->kernel[i];
        c.stride[i] = g->stride[i];
        c.dilation[i] = g->dilation[i];
        c.before[i] = g->before[i];
    }
    c.x = images_of(g->rows, g->cols, channels, x_last);
    c.y = images_of(y_size[0], y_size[1], matrix->rows, y_last);
    const size_t x_count = (size_t)(g->images * g->rows * g->cols * channels),
                 y_count = (size_t)(g->images * y_size[0] * y_size[1] * matrix->rows),
                 lengths = (size_t)g->images * sizeof(int64_t);
    int64_t *x_cols = gsp_test_bytes(lengths), *y_cols = gsp_test_bytes(lengths);
    for (int64_t i = 0; i < g->images; i++) {
        x_cols[i] = gsp_test_below(state, g->cols + 1);
        y_cols[i] = gsp_test_below(state, y_size[1] + 1);
    }
    char *x = gsp_test_bytes(x_count * size), *bias = gsp_test_bytes((size_t)matrix->rows * size),
         *residual = gsp_test_bytes(y_count * size), *y = gsp_test_bytes(y_count * size);
    fill(x, size, (int64_t)x_count, state);
    fill(bias, size, matrix->rows, state);
    fill(residual, size, (int64_t)y_count, state);
    pages gx = guard_constant(x, x_count * size, at_end),
          gb = guard_constant(bias, (size_t)matrix->rows * size, at_end),
          gr = guard_constant(residual, y_count * size, at_end),
          gy = guard(y, y_count * size, at_end), gxc = guard_constant(x_cols, lengths, at_end),
          gyc = guard_constant(y_cols, lengths, at_end);

    const int choice = (int)gsp_test_below(state, 4);
    gsp_epilogue epilogue = {.activation = (gsp_activation)gsp_test_below(state, GSP_CLAMP + 1),
                             .bias = choice & 1 ? bias : NULL,
                             .residual = choice & 2 ? residual : NULL,
                             .low = -5,
                             .high = 5};
    if (g->lengths) {
        c.x_cols = x_cols;
        c.y_cols = y_cols;
    }
    EXPECT_INT(gsp_convolve(plan, &c, x, y, &epilogue), GSP_OK);
    if (epilogue.bias != NULL) epilogue.bias = gb.data;
    if (epilogue.residual != NULL) epilogue.residual = gr.data;
    if (g->lengths) {
        c.x_cols = (const int64_t *)(const void *)gxc.data;
        c.y_cols = (const int64_t *)(const void *)gyc.data;
    }
    EXPECT_INT(gsp_convolve(plan, &c, gx.data, gy.data, &epilogue), GSP_OK);
    const bool same = memcmp(gy.data, y, y_count * size) == 0, clean = rest_is_untouched(&gy);
    EXPECT(same);
    EXPECT(clean);
    if (!same || !clean) fprintf(stderr, "  %s\n", what);

    pages *const all[] = {&gx, &gb, &gr, &gy, &gxc, &gyc};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) pages_free(all[i]);
    void *const heap[] = {x, bias, residual, y, x_cols, y_cols};
    for (size_t i = 0; i < sizeof heap / sizeof *heap; i++) free(heap[i]);
}

static void test_convolutions(gsp_context *context) {
    static const geometry geometries[] = {
        {1, 1, 67, {1, 3}, {1, 1}, {1, 1}, {0, 1}, false},
        {3, 1, 40, {1, 5}, {1, 1}, {1, 2}, {0, 4}, true},
        {4, 1, 33, {1, 4}, {1, 2}, {1, 1}, {0, 2}, true},
        {1, 9, 9, {1, 1}, {1, 1}, {1, 1}, {0, 0}, false},
        {2, 14, 14, {3, 3}, {1, 1}, {1, 1}, {1, 1}, false},
        {3, 7, 7, {3, 3}, {1, 1}, {1, 1}, {1, 1}, false},
        {1, 20, 19, {3, 3}, {2, 2}, {1, 1}, {1, 1}, false},
        {2, 15, 16, {1, 1}, {2, 2}, {1, 1}, {0, 0}, false},
        {2, 17, 11, {2, 3}, {3, 4}, {2, 1}, {2, 3}, false},
        {2, 3, 2, {5, 5}, {1, 1}, {1, 1}, {4, 4}, false},
    };
    static const int64_t channels[] = {1, 3, 16, 17, 31, 64, 100};
    static const gsp_pattern kinds[] = {
        {.kind = GSP_IRREGULAR},
        {.kind = GSP_BLOCK, .block_rows = 16, .block_cols = 1},
        {.kind = GSP_GS, .banks = 1, .per_row = 1},
        {.kind = GSP_NM, .nm_n = 1, .nm_m = 3},
    };
    static const gsp_dtype dtypes[] = {GSP_FLOAT32, GSP_BFLOAT16, GSP_INT8, GSP_FLOAT64,
                                       GSP_BFLOAT16};
    gsp_backend backends[GSP_BACKENDS];
    const int count = tested_backends(backends);
    uint64_t state = 77;
    for (size_t i = 0; i < 4 * sizeof geometries / sizeof *geometries; i++) {
        const geometry *g = &geometries[i / 4];
        const gsp_shape shape = {.pattern = kinds[i % 4],
                                 .rows = 1 + gsp_test_below(&state, 140),
                                 .cols = channels[i % 7] * g->kernel[0] * g->kernel[1]};
        gsp_sample sample;
        kept.tight = true;
        EXPECT_INT(gsp_sample_make(context, &shape, dtypes[i % 5], i + 5000, &sample), GSP_OK);
        for (int b = 0; b < count; b++) {
            gsp_plan *plan = NULL;
            EXPECT_INT(gsp_plan_create(context, &sample.matrix, backends[b], 100, &plan), GSP_OK);
            if (plan == NULL) continue;
            for (int way = 0; way < 8; way++) {
                snprintf(what, sizeof what,
                         "convolution %d: kind %d, %lld x %lld, %s, layout %d, %s an edge",
                         (int)(i / 4), shape.pattern.kind, (long long)shape.rows,
                         (long long)shape.cols, gsp_plan_describe(plan).kernel, way & 3,
                         way & 4 ? "before" : "behind");
                check_convolution(plan, &sample.matrix, g, way & 1, way & 2, way & 4, &state);
            }
            gsp_plan_destroy(plan);
        }
        gsp_sample_free(&sample);
        kept.tight = false;
    }
}

/* -------------------------------------------------------------- recurrent */

/* Arrays of a call, in the heap or between unmapped pages; the last four are written. */
enum { X, H0, C0, BIAS, Y, H_N, C_N, WORKSPACE, ARRAYS };

static void set_arrays(gsp_sequences *sequences, gsp_recurrent_layer *weights, int64_t count,
                       unsigned char *const *data) {
    sequences->x = data[X];
    sequences->h0 = data[H0];
    sequences->c0 = data[C0];
    sequences->y = data[Y];
    sequences->h_n = data[H_N];
    sequences->c_n = data[C_N];
    for (int64_t i = 0; i < count; i++) weights[i].input_bias = weights[i].hidden_bias = data[BIAS];
}

/* Two layers in both directions, whose sequences end one after the other. */
static void check_recurrent(gsp_context *context, gsp_cell cell, gsp_backend backend,
                            gsp_dtype dtype, int64_t features, int64_t hidden, int64_t batch,
                            bool at_end, uint64_t *state) {
    enum { LAYERS = 2, WEIGHTS = 4, STEPS = 3 };
    const int64_t gates = cell == GSP_LSTM ? 4 : 3;
    const size_t size = dtype == GSP_FLOAT64 ? 8 : 4;
    const int64_t batch_sizes[STEPS] = {batch, batch, gspi_max(1, batch / 2)};
    const int64_t samples = batch_sizes[0] + batch_sizes[1] + batch_sizes[2];
    snprintf(what, sizeof what, "cell %d, %s, dtype %d, %lld -> %lld, batch %lld, %s an edge", cell,
             gsp_backend_name(backend), dtype, (long long)features, (long long)hidden,
             (long long)batch, at_end ? "before" : "behind");
    gsp_sample made[2 * WEIGHTS];
    gsp_recurrent_layer weights[WEIGHTS] = {0};
    gsp_plan *plans[2 * WEIGHTS] = {0};
    for (int i = 0; i < 2 * WEIGHTS; i++) {
        const gsp_shape shape = {.pattern = {.kind = GSP_IRREGULAR},
                                 .rows = gates * hidden,
                                 .cols = i % 2         ? hidden
                                         : i < WEIGHTS ? features
                                                       : 2 * hidden};
        EXPECT_INT(gsp_sample_make(context, &shape, dtype, gsp_test_random(state), &made[i]),
                   GSP_OK);
        EXPECT_INT(
            gsp_plan_create(context, &made[i].matrix, backend, i % 2 ? batch : samples, &plans[i]),
            GSP_OK);
        *(i % 2 ? &weights[i / 2].hidden : &weights[i / 2].input) = plans[i];
    }
    const gsp_recurrent recurrent = {cell, LAYERS, 2, weights};
    gsp_sequences sequences = {.steps = STEPS, .batch = batch, .batch_sizes = batch_sizes};
    size_t workspace = 0;
    EXPECT_INT(gsp_recurrent_workspace(&recurrent, &sequences, &workspace), GSP_OK);
    const int64_t states = WEIGHTS * batch * hidden;
    const int64_t counts[ARRAYS] = {samples * features,   states, states, gates * hidden,
                                    samples * 2 * hidden, states, states, 0};
    unsigned char *heap[ARRAYS], *guarded[ARRAYS];
    pages edges[ARRAYS];
    for (int i = 0; i < ARRAYS; i++) {
        const size_t bytes = i == WORKSPACE ? workspace : (size_t)counts[i] * size;
        heap[i] = i == WORKSPACE ? gspi_alloc(context, bytes, 1) : gsp_test_bytes(bytes);
        fill(heap[i], size, counts[i], state);
        edges[i] = i < Y ? guard_constant(heap[i], bytes, at_end) : guard(heap[i], bytes, at_end);
        guarded[i] = edges[i].data;
    }
    /* Pages begin and end at multiples of 64, and so do the parts of a workspace. */
    set_arrays(&sequences, weights, WEIGHTS, heap);
    EXPECT_INT(gsp_recurrent_run(&recurrent, &sequences, heap[WORKSPACE]), GSP_OK);
    set_arrays(&sequences, weights, WEIGHTS, guarded);
    EXPECT_INT(gsp_recurrent_run(&recurrent, &sequences, guarded[WORKSPACE]), GSP_OK);
    for (int i = Y; i < WORKSPACE - (cell == GSP_GRU); i++) {
        const bool same = memcmp(heap[i], edges[i].data, edges[i].bytes) == 0;
        EXPECT(same);
        EXPECT(rest_is_untouched(&edges[i]));
        if (!same) fprintf(stderr, "  %s\n", what);
    }
    for (int i = 0; i < ARRAYS; i++) {
        pages_free(&edges[i]);
        if (i == WORKSPACE) gspi_free(context, heap[i]);
        else free(heap[i]);
    }
    for (int i = 0; i < 2 * WEIGHTS; i++) {
        gsp_plan_destroy(plans[i]);
        gsp_sample_free(&made[i]);
    }
}

static void test_recurrent(gsp_context *context) {
    static const int64_t sizes[] = {1, 7, 8, 9, 15, 16, 17, 33}, batches[] = {1, 3, 9, 16, 17, 33};
    enum { SIZES = sizeof sizes / sizeof *sizes, BATCHES = sizeof batches / sizeof *batches };
    gsp_backend backends[GSP_BACKENDS];
    const int count = tested_backends(backends);
    uint64_t state = 77;
    for (int b = 0; b < count; b++)
        for (int i = 0; i < SIZES * BATCHES; i++) {
            const gsp_dtype dtype = i % 5 == 0 ? GSP_FLOAT64 : GSP_FLOAT32;
            check_recurrent(context, i % 2 ? GSP_GRU : GSP_LSTM, backends[b], dtype,
                            sizes[(3 * i + 1) % SIZES], sizes[i % SIZES], batches[i / SIZES],
                            i % 3 == 0, &state);
        }
}

/* The name of a backend tests the products of that one alone. */
int main(int count, char **words) {
    only = count > 1 ? words[1] : NULL;
    const struct sigaction action = {.sa_handler = on_fault};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    const gsp_allocator allocator = {kept_allocate, kept_release, NULL};
    gsp_context *context;
    EXPECT_INT(gsp_context_create(&allocator, &context), GSP_OK);
    test_lane_edges(context);
    test_samples(context);
    if (only == NULL) {
        test_convolutions(context);
        test_recurrent(context);
    }
    gsp_context_destroy(context);
    return gsp_test_done("guard");
}
