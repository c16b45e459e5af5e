/* Every backend against a convolution in double: a matrix of any pattern and dtype, kernel, stride, dilation, padding,
 * images, memory layouts, lengths, bias, residual and activation, all taken from the input. */
#include "gsp_fuzz_matrix.h"

typedef struct {
    const gsp_matrix *matrix;
    const uint8_t *mask;
    const double *dense;
    gsp_dtype type;
    gsp_convolution c;
    void *x, *bias, *residual, *y;
    gsp_epilogue epilogue;
} layer;

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
    const int64_t at = place(&c->y, image, out, row, col);
    const double y = number_at(l->type, l->y, at);
    if (c->y_cols != NULL && col >= c->y_cols[image]) {
        MUST(y == 0);
        return;
    }
    const int64_t x_cols = c->x_cols == NULL ? c->x.cols : c->x_cols[image];
    sum_of_terms sum = {0};
    for (int64_t i = 0; i < l->matrix->cols; i++) {
        if (!l->mask[out * l->matrix->cols + i]) continue;
        const int64_t tap = i / c->channels;
        const int64_t x_row =
            row * c->stride[0] + tap / c->kernel[1] * c->dilation[0] - c->before[0];
        const int64_t x_col =
            col * c->stride[1] + tap % c->kernel[1] * c->dilation[1] - c->before[1];
        if (x_row < 0 || x_row >= c->x.rows || x_col < 0 || x_col >= x_cols) continue;
        const int64_t from = place(&c->x, image, i % c->channels, x_row, x_col);
        add_term(&sum, l->dense[out * l->matrix->cols + i] * number_at(l->type, l->x, from));
    }
    MUST(is_near(l->type, y, sum, &l->epilogue, out, at));
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
               .type = sample->matrix.dtype == GSP_FLOAT64 ? GSP_FLOAT64 : GSP_FLOAT32};
    take_geometry(&l, from);
    if (sample->matrix.dtype == GSP_BFLOAT16 && gsp_take_below(from, 2)) {
        l.type = GSP_BFLOAT16;
        l.c.bfloat16 = 1;
    }
    const bool lengths = gsp_take_below(from, 2);
    uint64_t state = gsp_take(from, 4) * 2 + 1;
    int64_t x_cols[3], y_cols[3];
    for (int64_t i = 0; i < l.c.images; i++) {
        x_cols[i] = gsp_test_below(&state, l.c.x.cols + 1);
        y_cols[i] = gsp_test_below(&state, l.c.y.cols + 1);
    }
    if (lengths) {
        l.c.x_cols = x_cols;
        l.c.y_cols = y_cols;
    }
    const int64_t x_count = l.c.images * l.c.x.image_step, y_count = l.c.images * l.c.y.image_step;
    l.x = take_numbers(l.type, x_count, &state);
    l.bias = take_numbers(l.type, sample->matrix.rows, &state);
    l.residual = take_numbers(l.type, y_count, &state);
    l.epilogue = take_epilogue(from, l.bias, l.residual);
    gsp_backend backends[GSP_BACKENDS];
    const int count = gsp_backends(backends);
    for (int b = 0; b < count; b++) {
        gsp_plan *plan;
        MUST(gsp_plan_create(context, &sample->matrix, backends[b], 100, &plan) == GSP_OK);
        l.y = take_numbers(l.type, y_count, &state);
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
