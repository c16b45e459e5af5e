/* Convolution straight from the format: the oracle that faster kernels are held to.
 *
 *     for every element (channel of y, tap, channel of x) that is stored, every image:
 *         for every wanted pixel of y:    y[pixel] += value * x[the pixel that it meets], if there is one
 *
 * Any strides. Sums as in spmv_scalar.c. */
#include "../format/gsp_visit.h"
#include "gsp_kernels.h"

typedef struct {
    const gsp_matrix *matrix;
    const gspi_product *product;
} sums;

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
