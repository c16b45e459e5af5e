/* SpMM straight from the format: the oracle that faster kernels are held to.
 *
 *     for every row of the groups, every sample:          y[row][sample] = 0
 *     for every element that they store, every sample:    y[row][sample] += value * x[col][sample]
 *
 * x [cols][samples] and y [rows][samples] with any strides. Sums as in spmv_scalar.c. */
#include "../format/gsp_visit.h"
#include "gsp_kernels.h"

typedef struct {
    const gsp_matrix *matrix;
    const gspi_product *product;
} sums;

#define SPMM(name, type, value)                                                                    \
    static void add_##name(void *argument, int64_t row, int64_t col, uint64_t element) {           \
        const sums *s = argument;                                                                  \
        const gspi_product *p = s->product;                                                        \
        const type weight = (value);                                                               \
        const type *restrict x = (const type *)p->x + col * p->x_col;                              \
        type *restrict y = (type *)p->y + row * p->y_row;                                          \
        for (int64_t sample = 0; sample < p->samples; sample++)                                    \
            y[sample * p->y_sample] += weight * x[sample * p->x_sample];                           \
    }                                                                                              \
    void gsp_##name##_spmm__scalar(const gsp_plan *plan, const gspi_product *product,              \
                                   int64_t first, int64_t last) {                                  \
        if (product->convolution != NULL) {                                                        \
            gspi_##name##_conv__scalar(plan, product, first, last);                                \
            return;                                                                                \
        }                                                                                          \
        const gsp_matrix *matrix = &plan->matrix;                                                  \
        const int64_t group_rows = gsp_group_rows(&matrix->pattern);                               \
        for (int64_t p = first * group_rows; p < gspi_min(last * group_rows, matrix->rows); p++) { \
            const int64_t row = matrix->row_order ? matrix->row_order[p] : p;                      \
            type *y = (type *)product->y + row * product->y_row;                                   \
            for (int64_t sample = 0; sample < product->samples; sample++)                          \
                y[sample * product->y_sample] = 0;                                                 \
        }                                                                                          \
        sums s = {matrix, product};                                                                \
        gspi_visit(matrix, first, last, add_##name, &s);                                           \
    }

SPMM(f64, double, ((const double *)s->matrix->values)[element])
SPMM(f32, float, gspi_value(s->matrix, GSP_FLOAT32, element))
SPMM(f16, float, gspi_value(s->matrix, GSP_FLOAT16, element))
SPMM(bf16, float, gspi_value(s->matrix, GSP_BFLOAT16, element))
SPMM(i8, float, gspi_value(s->matrix, GSP_INT8, element))
