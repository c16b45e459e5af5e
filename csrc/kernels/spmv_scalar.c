/* SpMV straight from the format: the oracle that faster kernels are held to.
 *
 *     for every row of the groups:            y[row] = 0
 *     for every element that they store:      y[row] += value * x[col]
 *
 * One sample after the other, with any strides. float64 accumulates in double, all others in float, in stored order;
 * int8 values are multiplied as they are, since their scales belong to rows and are applied to the sums. */
#include "../format/gsp_visit.h"
#include "gsp_kernels.h"

typedef struct {
    const gsp_matrix *matrix;
    const void *x;
    void *y;
    int64_t x_col, y_row;
} sums;

#define SPMV(name, type, value)                                                                    \
    static void add_##name(void *argument, int64_t row, int64_t col, uint64_t element) {           \
        const sums *s = argument;                                                                  \
        ((type *)s->y)[row * s->y_row] += (value) * ((const type *)s->x)[col * s->x_col];          \
    }                                                                                              \
    void gsp_##name##_spmv__scalar(const gsp_plan *plan, const gspi_product *product,              \
                                   int64_t first, int64_t last) {                                  \
        const gsp_matrix *matrix = &plan->matrix;                                                  \
        const int64_t group_rows = gsp_group_rows(&matrix->pattern);                               \
        for (int64_t sample = 0; sample < product->samples; sample++) {                            \
            sums s = {matrix, (const type *)product->x + sample * product->x_sample,               \
                      (type *)product->y + sample * product->y_sample, product->x_col,             \
                      product->y_row};                                                             \
            for (int64_t p = first * group_rows; p < gspi_min(last * group_rows, matrix->rows);    \
                 p++) {                                                                            \
                const int64_t row = matrix->row_order ? matrix->row_order[p] : p;                  \
                ((type *)s.y)[row * s.y_row] = 0;                                                  \
            }                                                                                      \
            gspi_visit(matrix, first, last, add_##name, &s);                                       \
        }                                                                                          \
    }

SPMV(f64, double, ((const double *)s->matrix->values)[element])
SPMV(f32, float, gspi_value(s->matrix, GSP_FLOAT32, element))
SPMV(f16, float, gspi_value(s->matrix, GSP_FLOAT16, element))
SPMV(bf16, float, gspi_value(s->matrix, GSP_BFLOAT16, element))
SPMV(i8, float, gspi_value(s->matrix, GSP_INT8, element))
