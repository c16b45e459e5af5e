/* One convolution: checks where things lie, shares pixels and rows among threads, and runs the kernel of SpMM. */
#include "gsp_kernels.h"

#define GSPI_MOST_PIXELS (INT64_C(1) << 30)

static bool is_size(int64_t size, int64_t least) {
    return size >= least && size <= GSPI_MOST_PIXELS;
}

static gsp_status check_images(const gsp_images *images) {
    GSP_CHECK(is_size(images->rows, 0) && is_size(images->cols, 0), GSP_ERROR_SHAPE);
    GSP_CHECK(images->channel_step == 1 || images->col_step == 1, GSP_ERROR_SHAPE);
    return GSP_OK;
}

static gsp_status check_cols(const int64_t *cols, int64_t images, int64_t most) {
    for (int64_t i = 0; cols != NULL && i < images; i++)
        GSP_CHECK(cols[i] >= 0 && cols[i] <= most, GSP_ERROR_SHAPE);
    return GSP_OK;
}

static gsp_status check(const gsp_plan *plan, const gsp_convolution *c) {
    GSP_CHECK(plan->entry->op == GSPI_SPMM && plan->entry->form != GSPI_TILES, GSP_ERROR_SHAPE);
    GSP_CHECK(!c->bfloat16 || plan->matrix.dtype == GSP_BFLOAT16, GSP_ERROR_DTYPE);
    GSP_CHECK(is_size(c->images, 0) && is_size(c->channels, 0), GSP_ERROR_SHAPE);
    GSP_TRY(check_images(&c->x));
    GSP_TRY(check_images(&c->y));
    size_t taps, columns, pixels;
    GSP_CHECK(gspi_mul((size_t)c->images, (size_t)c->y.rows, &pixels) &&
                  gspi_mul(pixels, (size_t)c->y.cols, &pixels) && pixels <= INT64_MAX,
              GSP_ERROR_SHAPE);
    for (int i = 0; i < 2; i++)
        GSP_CHECK(is_size(c->kernel[i], 1) && is_size(c->stride[i], 1) &&
                      is_size(c->dilation[i], 1) && is_size(c->before[i], 0),
                  GSP_ERROR_SHAPE);
    GSP_CHECK(gspi_mul((size_t)c->kernel[0], (size_t)c->kernel[1], &taps) &&
                  gspi_mul(taps, (size_t)c->channels, &columns) &&
                  columns == (size_t)plan->matrix.cols,
              GSP_ERROR_SHAPE);
    GSP_TRY(check_cols(c->x_cols, c->images, c->x.cols));
    return check_cols(c->y_cols, c->images, c->y.cols);
}

/* Pixels of y that are wanted. */
static int64_t pixels_of(const gsp_convolution *c) {
    if (c->y_cols == NULL) return c->images * c->y.rows * c->y.cols;
    int64_t cols = 0;
    for (int64_t image = 0; image < c->images; image++) cols += c->y_cols[image];
    return cols * c->y.rows;
}

typedef struct {
    const gsp_plan *plan;
    gspi_product product;
    size_t size; /* of an element of x and y */
    int64_t tile, row_parts, pixel_parts;
} task;

/* ------------------------------------------------- kernels of stored arrays */

static char *y_at(const task *t, const void *y, int64_t image, int64_t row, int64_t col) {
    const gsp_images *at = &t->product.convolution->y;
    const int64_t place = image * at->image_step + row * at->row_step + col * at->col_step;
    return y == NULL ? NULL : (char *)(uintptr_t)y + place * (int64_t)t->size;
}

/* The epilogue where the kernel leaves it to others, for all rows of the matrix. */
static void finish(const task *t) {
    const gsp_convolution *c = t->product.convolution;
    const gsp_epilogue *epilogue = t->product.epilogue;
    const int64_t channels = t->plan->matrix.rows, step = c->y.channel_step * (int64_t)t->size;
    for (int64_t image = 0; image < c->images; image++)
        for (int64_t row = 0; row < c->y.rows; row++) {
            const int64_t cols = c->y_cols == NULL ? c->y.cols : c->y_cols[image];
            if (c->y.col_step == 1) {
                char *y = y_at(t, t->product.y, image, row, 0);
                const char *residual = y_at(t, epilogue->residual, image, row, 0);
                for (int64_t channel = 0; channel < channels; channel++)
                    gspi_finish(t->plan, y + channel * step, cols, channel, 0,
                                residual == NULL ? NULL : residual + channel * step, epilogue);
            } else {
                for (int64_t col = 0; col < cols; col++)
                    gspi_finish(t->plan, y_at(t, t->product.y, image, row, col), channels, 0, 1,
                                y_at(t, epilogue->residual, image, row, col), epilogue);
            }
        }
}

/* ------------------------------------------------------------------- work */

static gsp_status run_part(void *argument, int64_t item, int worker) {
    (void)worker;
    const task *t = argument;
    const int64_t part = item % t->row_parts, across = item / t->row_parts, units = t->plan->units;
    const int64_t tiles = gspi_ceil_div(t->product.samples, t->tile);
    const int64_t first = across * tiles / t->pixel_parts * t->tile;
    const int64_t last =
        gspi_min((across + 1) * tiles / t->pixel_parts * t->tile, t->product.samples);
    gspi_product product = t->product;
    product.first = first;
    product.samples = last - first;
    t->plan->entry->kernel(t->plan, &product, part * units / t->row_parts,
                           (part + 1) * units / t->row_parts);
    return GSP_OK;
}

/* Shares tiles of pixels first, since each brings its x to the tile once; then rows. */
static void share(task *t, int64_t workers) {
    const bool stored = t->plan->entry->form == GSPI_STORED; /* whose kernels do all pixels */
    t->tile = stored ? t->product.samples : t->plan->x_stride / (int64_t)sizeof(float);
    t->pixel_parts = gspi_min(gspi_ceil_div(t->product.samples, t->tile), GSPI_PARTS * workers);
    t->row_parts = gspi_min(t->plan->units, gspi_ceil_div(GSPI_PARTS * workers, t->pixel_parts));
    (void)gspi_parallel(t->plan->context, t->row_parts * t->pixel_parts, run_part, t);
}

/* Zeros in the columns of y that are not wanted. */
static void clear_rest(const task *t) {
    const gsp_convolution *c = t->product.convolution;
    for (int64_t image = 0; c->y_cols != NULL && image < c->images; image++)
        for (int64_t row = 0; row < c->y.rows; row++)
            for (int64_t channel = 0; channel < t->plan->matrix.rows; channel++)
                for (int64_t col = c->y_cols[image]; col < c->y.cols; col++)
                    memset(y_at(t, t->product.y, image, row, col) +
                               channel * c->y.channel_step * (int64_t)t->size,
                           0, t->size);
}

gsp_status gsp_convolve(const gsp_plan *plan, const gsp_convolution *convolution, const void *x,
                        void *y, const gsp_epilogue *epilogue) {
    const gsp_epilogue none = {0};
    if (epilogue == NULL) epilogue = &none;
    GSP_TRY(check(plan, convolution));
    GSP_TRY(gspi_check_epilogue(epilogue));
    task t = {.plan = plan,
              .product = {.x = x,
                          .y = y,
                          .samples = pixels_of(convolution),
                          .epilogue = epilogue,
                          .convolution = convolution},
              .size = convolution->bfloat16               ? sizeof(uint16_t)
                      : plan->matrix.dtype == GSP_FLOAT64 ? sizeof(double)
                                                          : sizeof(float)};
    if (plan->matrix.rows == 0) return GSP_OK;
    clear_rest(&t);
    if (t.product.samples == 0) return GSP_OK;
    int64_t workers;
    if (gspi_threads_pay(plan, t.product.samples, &workers)) share(&t, workers);
    else plan->entry->kernel(plan, &t.product, 0, plan->units);
    if (plan->entry->form == GSPI_STORED && !convolution->bfloat16) finish(&t);
    return GSP_OK;
}
