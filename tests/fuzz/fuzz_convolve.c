/* Every backend against a convolution in double: a matrix of any pattern and dtype, kernel, stride, dilation, padding,
 * images, memory layouts, lengths, bias, residual and activation, all taken from the input. A result may be as far from
 * the exact one as a sum of so many terms in float can be, and no further. */
#include "gsp_fuzz_matrix.h"

typedef struct {
    const gsp_matrix *matrix;
    const uint8_t *mask;
    const double *dense;
    bool wide;
    gsp_convolution c;
    void *x, *bias, *residual, *y;
    gsp_epilogue epilogue;
} layer;

static double number_at(const layer *l, const void *array, int64_t i) {
    return l->wide ? ((const double *)array)[i] : (double)((const float *)array)[i];
}

static void *take_numbers(const layer *l, int64_t count, uint64_t *state) {
    void *numbers = gsp_test_bytes((size_t)count * (l->wide ? 8 : 4));
    for (int64_t i = 0; i < count; i++) {
        const float value = take_number(state);
        if (l->wide) ((double *)numbers)[i] = (double)value;
        else ((float *)numbers)[i] = value;
    }
    return numbers;
}

static gsp_images images_of(int64_t rows, int64_t cols, int64_t channels, bool last) {
    const int64_t all = rows * cols * channels;
    if (last) return (gsp_images){rows, cols, all, 1, cols * channels, channels};
    return (gsp_images){rows, cols, all, rows * cols, cols, 1};
}

static int64_t place(const gsp_images *of, int64_t image, int64_t channel, int64_t row,
                     int64_t col) {
    return image * of->image_step + channel * of->channel_step + row * of->row_step +
           col * of->col_step;
}

static void check_pixel(const layer *l, int64_t image, int64_t out, int64_t row, int64_t col) {
    const gsp_convolution *c = &l->c;
    const double eps = l->wide ? DBL_EPSILON : (double)FLT_EPSILON;
    const int64_t at = place(&c->y, image, out, row, col);
    const double y = number_at(l, l->y, at);
    if (c->y_cols != NULL && col >= c->y_cols[image]) {
        MUST(y == 0);
        return;
    }
    const int64_t x_cols = c->x_cols == NULL ? c->x.cols : c->x_cols[image];
    double exact = 0, size = 0;
    int64_t terms = 2;
    for (int64_t i = 0; i < l->matrix->cols; i++) {
        if (!l->mask[out * l->matrix->cols + i]) continue;
        const int64_t tap = i / c->channels;
        const int64_t x_row =
            row * c->stride[0] + tap / c->kernel[1] * c->dilation[0] - c->before[0];
        const int64_t x_col =
            col * c->stride[1] + tap % c->kernel[1] * c->dilation[1] - c->before[1];
        if (x_row < 0 || x_row >= c->x.rows || x_col < 0 || x_col >= x_cols) continue;
        const int64_t from = place(&c->x, image, i % c->channels, x_row, x_col);
        const double term = l->dense[out * l->matrix->cols + i] * number_at(l, l->x, from);
        exact += term;
        size += fabs(term);
        terms++;
    }
    double added = fabs(exact);
    for (int i = 0; i < 2; i++) {
        const void *addend = i ? l->epilogue.residual : l->epilogue.bias;
        if (addend == NULL) continue;
        const double more = number_at(l, addend, i ? at : out);
        exact += more;
        added += fabs(more);
    }
    /* As in fuzz_multiply.c. */
    const double bound =
        1.2 * (2 * (double)terms * eps * size + 4 * eps * added) + 8 * eps * fmax(1, fabs(exact));
    MUST(fabs(y - gsp_sample_activate(exact, &l->epilogue)) <= bound);
}

static void check(const layer *l) {
    for (int64_t image = 0; image < l->c.images; image++)
        for (int64_t out = 0; out < l->matrix->rows; out++)
            for (int64_t row = 0; row < l->c.y.rows; row++)
                for (int64_t col = 0; col < l->c.y.cols; col++)
                    check_pixel(l, image, out, row, col);
}

/* A kernel whose taps divide the columns. */
static void take_geometry(layer *l, gsp_bytes *from) {
    gsp_convolution *c = &l->c;
    c->channels = l->matrix->cols;
    int64_t size[2], covered[2];
    for (int i = 0; i < 2; i++) {
        c->kernel[i] = 1 + gsp_take_below(from, 4);
        while (c->channels % c->kernel[i] != 0) c->kernel[i]--;
        c->channels /= c->kernel[i];
        c->stride[i] = 1 + gsp_take_below(from, 3);
        c->dilation[i] = 1 + gsp_take_below(from, 2);
        c->before[i] = gsp_take_below(from, 4);
        covered[i] = c->dilation[i] * (c->kernel[i] - 1) + 1;
        size[i] = gspi_max(1, covered[i] - 2 * c->before[i]) + gsp_take_below(from, i ? 18 : 4);
    }
    c->images = 1 + gsp_take_below(from, 3);
    int64_t y_size[2];
    for (int i = 0; i < 2; i++)
        y_size[i] = (size[i] + 2 * c->before[i] - covered[i]) / c->stride[i] + 1;
    c->x = images_of(size[0], size[1], c->channels, gsp_take_below(from, 2));
    c->y = images_of(y_size[0], y_size[1], l->matrix->rows, gsp_take_below(from, 2));
}

static void convolve(gsp_context *context, const gsp_sample *sample, const double *dense,
                     gsp_bytes *from) {
    layer l = {.matrix = &sample->matrix,
               .mask = sample->mask,
               .dense = dense,
               .wide = sample->matrix.dtype == GSP_FLOAT64};
    take_geometry(&l, from);
    const int choice = (int)gsp_take(from, 1);
    const gsp_activation activation = (gsp_activation)gsp_take_below(from, GSP_CLAMP + 1);
    uint64_t state = gsp_take(from, 4) * 2 + 1;
    int64_t x_cols[3], y_cols[3];
    for (int64_t i = 0; i < l.c.images; i++) {
        x_cols[i] = gsp_test_below(&state, l.c.x.cols + 1);
        y_cols[i] = gsp_test_below(&state, l.c.y.cols + 1);
    }
    if (choice & 4) {
        l.c.x_cols = x_cols;
        l.c.y_cols = y_cols;
    }
    const int64_t x_count = l.c.images * l.c.x.image_step, y_count = l.c.images * l.c.y.image_step;
    l.x = take_numbers(&l, x_count, &state);
    l.bias = take_numbers(&l, sample->matrix.rows, &state);
    l.residual = take_numbers(&l, y_count, &state);
    l.epilogue = (gsp_epilogue){.bias = choice & 1 ? l.bias : NULL,
                                .residual = choice & 2 ? l.residual : NULL,
                                .activation = activation,
                                .low = -1,
                                .high = 3};
    gsp_backend backends[GSP_BACKENDS];
    const int count = gsp_backends(backends);
    for (int b = 0; b < count; b++) {
        gsp_plan *plan;
        MUST(gsp_plan_create(context, &sample->matrix, backends[b], 100, &plan) == GSP_OK);
        l.y = take_numbers(&l, y_count, &state);
        MUST(gsp_convolve(plan, &l.c, l.x, l.y, &l.epilogue) == GSP_OK);
        check(&l);
        free(l.y);
        gsp_plan_destroy(plan);
    }
    free(l.x);
    free(l.bias);
    free(l.residual);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    gsp_bytes from = {data, data + size};
    gsp_context *context;
    MUST(gsp_context_create(NULL, &context) == GSP_OK);
    gsp_sample sample;
    double *dense = take_matrix(context, &from, &sample);
    convolve(context, &sample, dense, &from);
    free(dense);
    gsp_sample_free(&sample);
    gsp_context_destroy(context);
    return 0;
}
