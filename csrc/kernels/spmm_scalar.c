/* SpMM straight from the format: the oracle that faster kernels are held to.
 *
 *     for every row of the groups, every sample:          y[row][sample] = 0
 *     for every element that they store, every sample:    y[row][sample] += value * x[col][sample]
 *
 * x [cols][samples] with rows x_col apart, y [rows][samples] with rows y_row apart. Sums as in spmv_scalar.c. */
#include "../format/gsp_visit.h"
#include "gsp_kernels.h"

typedef struct {
    const gsp_matrix *matrix;
    const gspi_product *product;
} sums;

#define SPMM(name, type, value)                                                                    \
    static void add_##name(void *argument, int64_t row, int64_t col, uint64_t element) {           \
        const sums *s = argument;                                                                  \
        const type weight = (value);                                                               \
        const type *restrict x = (const type *)s->product->x + col * s->product->x_col;            \
        type *restrict y = (type *)s->product->y + row * s->product->y_row;                        \
        for (int64_t sample = 0; sample < s->product->samples; sample++)                           \
            y[sample] += weight * x[sample];                                                       \
    }                                                                                              \
    void gsp_##name##_spmm__scalar(const gsp_plan *plan, const gspi_product *product,              \
                                   int64_t first, int64_t last) {                                  \
        const gsp_matrix *matrix = &plan->matrix;                                                  \
        const int64_t group_rows = gsp_group_rows(&matrix->pattern);                               \
        for (int64_t p = first * group_rows; p < gspi_min(last * group_rows, matrix->rows); p++) { \
            const int64_t row = matrix->row_order ? matrix->row_order[p] : p;                      \
            for (int64_t sample = 0; sample < product->samples; sample++)                          \
                ((type *)product->y)[row * product->y_row + sample] = 0;                           \
        }                                                                                          \
        sums s = {matrix, product};                                                                \
        gspi_visit(matrix, first, last, add_##name, &s);                                           \
    }

SPMM(f64, double, ((const double *)s->matrix->values)[element])
SPMM(f32, float, gspi_value(s->matrix, GSP_FLOAT32, element))
SPMM(f16, float, gspi_value(s->matrix, GSP_FLOAT16, element))
SPMM(bf16, float, gspi_value(s->matrix, GSP_BFLOAT16, element))
SPMM(i8, float, gspi_value(s->matrix, GSP_INT8, element))
