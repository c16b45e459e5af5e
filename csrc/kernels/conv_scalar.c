/* Convolution straight from the format: the oracle that faster kernels are held to.
 *
 *     for every element (channel of y, tap, channel of x) that is stored, every image:
 *         for every wanted pixel of y:    y[pixel] += value * x[the pixel that it meets], if there is one
 *
 * Any strides. Sums as in spmv_scalar.c. Where y is bfloat16, pixels of one row of an image are summed in floats, for
 * the rows of one group, and finished before they are rounded. */
#include "gsp_narrow.h"

typedef struct {
    const gsp_matrix *matrix;
    const gspi_product *product;
} sums;

/* ---------------------------------------------------------------- bfloat16 */

#define SUMS 65536 /* of floats: a group has no more rows */

/* Pixels [col, col + count) of a row of y, in all rows of a group. */
typedef struct {
    const gsp_matrix *matrix;
    const gspi_product *product;
    int64_t image, row, col, count;
    int64_t place, rows; /* of the matrix, in its order: the first one, and how many */
    int64_t at; /* the row that was asked for last; bundles go through them in turn */
    float *sums; /* [rows][count] */
} stretch;

static int64_t row_at(const stretch *s, int64_t at) {
    const uint32_t *order = s->matrix->row_order;
    return order ? order[s->place + at] : s->place + at;
}

static void add_bfloat16(void *argument, int64_t out, int64_t column, uint64_t element) {
    stretch *s = argument;
    const gsp_convolution *c = s->product->convolution;
    const float weight = gspi_value(s->matrix, GSP_BFLOAT16, element);
    const int64_t tap = column / c->channels, in = column % c->channels;
    const int64_t x_row =
        s->row * c->stride[0] + tap / c->kernel[1] * c->dilation[0] - c->before[0];
    const int64_t left = tap % c->kernel[1] * c->dilation[1] - c->before[1];
    const int64_t cols = c->x_cols == NULL ? c->x.cols : c->x_cols[s->image];
    const uint16_t *x = (const uint16_t *)s->product->x + s->image * c->x.image_step +
                        in * c->x.channel_step + x_row * c->x.row_step;
    if (x_row < 0 || x_row >= c->x.rows) return;
    while (row_at(s, s->at) != out) s->at = (s->at + 1) % s->rows;
    for (int64_t i = 0; i < s->count; i++) {
        const int64_t x_col = (s->col + i) * c->stride[1] + left;
        if (x_col >= 0 && x_col < cols)
            s->sums[s->at * s->count + i] += weight * gspi_from_bfloat16(x[x_col * c->x.col_step]);
    }
}

static void store_bfloat16(const stretch *s) {
    const gsp_images *images = &s->product->convolution->y;
    const gsp_epilogue *epilogue = s->product->epilogue;
    const uint16_t *bias = epilogue->bias, *residual = epilogue->residual;
    for (int64_t r = 0; r < s->rows; r++) {
        const int64_t out = row_at(s, r);
        for (int64_t i = 0; i < s->count; i++) {
            const int64_t at = s->image * images->image_step + out * images->channel_step +
                               s->row * images->row_step + (s->col + i) * images->col_step;
            float y = s->sums[r * s->count + i];
            if (bias != NULL) y += gspi_from_bfloat16(bias[out]);
            if (residual != NULL) y += gspi_from_bfloat16(residual[at]);
            gspi_f32_finish__scalar(&y, 1, NULL, NULL, 0, NULL, epilogue);
            ((uint16_t *)s->product->y)[at] = gspi_to_bfloat16(y);
        }
    }
}

static void convolve_bfloat16(const gsp_plan *plan, const gspi_product *product, int64_t first,
                              int64_t last) {
    float sums[SUMS];
    const gsp_matrix *matrix = &plan->matrix;
    const gsp_convolution *c = product->convolution;
    const int64_t group_rows = gsp_group_rows(&matrix->pattern);
    for (int64_t group = first; group < last; group++) {
        stretch s = {.matrix = matrix, .product = product, .sums = sums};
        s.place = group * group_rows;
        s.rows = gspi_min(group_rows, matrix->rows - s.place);
        for (s.image = 0; s.image < c->images; s.image++)
            for (s.row = 0; s.row < c->y.rows; s.row++) {
                const int64_t cols = c->y_cols == NULL ? c->y.cols : c->y_cols[s.image];
                for (s.col = 0; s.col < cols; s.col += s.count) {
                    s.count = gspi_min(SUMS / s.rows, cols - s.col);
                    memset(sums, 0, (size_t)(s.rows * s.count) * sizeof *sums);
                    gspi_visit(matrix, group, group + 1, add_bfloat16, &s);
                    store_bfloat16(&s);
                }
            }
    }
}

#define CONV(name, type, value)                                                                    \
    static void add_##name(void *argument, int64_t out, int64_t column, uint64_t element) {        \
        const sums *s = argument;                                                                  \
        const gsp_convolution *c = s->product->convolution;                                        \
        const type weight = (value);                                                               \
        const int64_t tap = column / c->channels, in = column % c->channels;                       \
        const int64_t top = tap / c->kernel[1] * c->dilation[0] - c->before[0],                    \
                      left = tap % c->kernel[1] * c->dilation[1] - c->before[1];                   \
        for (int64_t image = 0; image < c->images; image++) {                                      \
            const int64_t x_cols = c->x_cols == NULL ? c->x.cols : c->x_cols[image];               \
            const int64_t y_cols = c->y_cols == NULL ? c->y.cols : c->y_cols[image];               \
            const type *x =                                                                        \
                (const type *)s->product->x + image * c->x.image_step + in * c->x.channel_step;    \
            type *y = (type *)s->product->y + image * c->y.image_step + out * c->y.channel_step;   \
            for (int64_t row = 0; row < c->y.rows; row++) {                                        \
                const int64_t x_row = row * c->stride[0] + top;                                    \
                if (x_row < 0 || x_row >= c->x.rows) continue;                                     \
                for (int64_t col = 0; col < y_cols; col++) {                                       \
                    const int64_t x_col = col * c->stride[1] + left;                               \
                    if (x_col < 0 || x_col >= x_cols) continue;                                    \
                    y[row * c->y.row_step + col * c->y.col_step] +=                                \
                        weight * x[x_row * c->x.row_step + x_col * c->x.col_step];                 \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
    void gspi_##name##_conv__scalar(const gsp_plan *plan, const gspi_product *product,             \
                                    int64_t first, int64_t last) {                                 \
        if (product->convolution->bfloat16) {                                                      \
            convolve_bfloat16(plan, product, first, last);                                         \
            return;                                                                                \
        }                                                                                          \
        const gsp_matrix *matrix = &plan->matrix;                                                  \
        const gsp_convolution *c = product->convolution;                                           \
        const int64_t group_rows = gsp_group_rows(&matrix->pattern);                               \
        for (int64_t p = first * group_rows; p < gspi_min(last * group_rows, matrix->rows); p++) { \
            const int64_t out = matrix->row_order ? matrix->row_order[p] : p;                      \
            for (int64_t image = 0; image < c->images; image++)                                    \
                for (int64_t row = 0; row < c->y.rows; row++)                                      \
                    for (int64_t col = 0; col < c->y.cols; col++)                                  \
                        ((type *)product->y)[image * c->y.image_step + out * c->y.channel_step +   \
                                             row * c->y.row_step + col * c->y.col_step] = 0;       \
        }                                                                                          \
        sums s = {matrix, product};                                                                \
        gspi_visit(matrix, first, last, add_##name, &s);                                           \
    }

CONV(f64, double, ((const double *)s->matrix->values)[element])
CONV(f32, float, gspi_value(s->matrix, GSP_FLOAT32, element))
CONV(f16, float, gspi_value(s->matrix, GSP_FLOAT16, element))
CONV(bf16, float, gspi_value(s->matrix, GSP_BFLOAT16, element))
CONV(i8, float, gspi_value(s->matrix, GSP_INT8, element))
