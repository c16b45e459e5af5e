/* Every backend against a product in double: a matrix of any pattern, shape and dtype, x, bias, residual, strides
 * and activation, all taken from the input, multiplied by every kind of plan. A result may be as far from the exact
 * one as a sum of so many terms in float can be, and no further. */
#include "gsp_fuzz_matrix.h"

typedef struct {
    int64_t n;
    bool wide;
    gsp_strides strides;
    void *x, *bias, *residual, *y;
    gsp_epilogue epilogue;
} product;

static double number_at(const product *p, const void *array, int64_t i) {
    return p->wide ? ((const double *)array)[i] : (double)((const float *)array)[i];
}

static void *take_numbers(const product *p, int64_t count, uint64_t *state) {
    count = gspi_max(0, count);
    void *numbers = gsp_test_bytes((size_t)count * (p->wide ? 8 : 4));
    for (int64_t i = 0; i < count; i++) {
        const float value = take_number(state);
        if (p->wide) ((double *)numbers)[i] = (double)value;
        else ((float *)numbers)[i] = value;
    }
    return numbers;
}

static void check(const gsp_matrix *matrix, const uint8_t *mask, const double *dense,
                  const product *p) {
    const double eps = p->wide ? DBL_EPSILON : (double)FLT_EPSILON;
    const gsp_strides *at = &p->strides;
    for (int64_t row = 0; row < matrix->rows; row++)
        for (int64_t sample = 0; sample < p->n; sample++) {
            double exact = 0, size = 0;
            int64_t terms = 2;
            for (int64_t col = 0; col < matrix->cols; col++) {
                if (!mask[row * matrix->cols + col]) continue;
                const double term = dense[row * matrix->cols + col] *
                                    number_at(p, p->x, col * at->x_col + sample * at->x_sample);
                exact += term;
                size += fabs(term);
                terms++;
            }
            const int64_t place = row * at->y_row + sample * at->y_sample;
            double added = fabs(exact);
            for (int i = 0; i < 2; i++) {
                const void *addend = i ? p->epilogue.residual : p->epilogue.bias;
                if (addend == NULL) continue;
                const double more = number_at(p, addend, i ? place : row);
                exact += more;
                added += fabs(more);
            }
            /* No activation is steeper than 1.13; its own arithmetic rounds a few times. */
            const double bound = 1.2 * (2 * (double)terms * eps * size + 4 * eps * added) +
                                 8 * eps * fmax(1, fabs(exact));
            const double wanted = gsp_sample_activate(exact, &p->epilogue);
            MUST(fabs(number_at(p, p->y, place) - wanted) <= bound);
        }
}

static void multiply(gsp_context *context, const gsp_sample *sample, const double *dense,
                     gsp_bytes *from) {
    const gsp_matrix *matrix = &sample->matrix;
    const int64_t rows = matrix->rows, cols = matrix->cols;
    static const int64_t numbers[] = {1, 1, 2, 3, 5, 8, 16, 17, 33, 65};
    const int64_t n = numbers[gsp_take_below(from, 10)], gap = gsp_take_below(from, 3);
    const int choice = (int)gsp_take(from, 1);
    const gsp_activation activation = (gsp_activation)gsp_take_below(from, GSP_CLAMP + 1);
    uint64_t state = gsp_take(from, 4) * 2 + 1;
    gsp_backend backends[GSP_BACKENDS];
    const int count = gsp_backends(backends);
    const bool x_along = gsp_take_below(from, 2), y_along = gsp_take_below(from, 2);
    for (int kind = 0; kind < 2; kind++) /* a plan for n, and that for 1 on n samples */
        for (int b = 0; b < count; b++) {
            gsp_plan *plan;
            MUST(gsp_plan_create(context, matrix, backends[b], kind ? 1 : n, &plan) == GSP_OK);
            const gsp_plan_info info = gsp_plan_describe(plan);
            product p = {.n = n, .wide = matrix->dtype == GSP_FLOAT64};
            const bool along = x_along && (info.columns || info.strided);
            const int64_t x_line = (along ? n : cols) + gap, y_line = (y_along ? n : rows) + gap;
            const int64_t y_count = y_line * (y_along ? rows : n) - gap;
            p.strides = (gsp_strides){along ? x_line : 1, along ? 1 : x_line, y_along ? y_line : 1,
                                      y_along ? 1 : y_line};
            p.x = take_numbers(&p, x_line * (along ? cols : n) - gap, &state);
            p.y = take_numbers(&p, y_count, &state);
            p.bias = take_numbers(&p, rows, &state);
            p.residual = take_numbers(&p, y_count, &state);
            p.epilogue = (gsp_epilogue){.bias = choice & 1 ? p.bias : NULL,
                                        .residual = choice & 2 ? p.residual : NULL,
                                        .activation = activation,
                                        .low = -1,
                                        .high = 3};
            MUST(gsp_multiply(plan, p.x, n, &p.strides, p.y, &p.epilogue) == GSP_OK);
            check(matrix, sample->mask, dense, &p);
            free(p.x);
            free(p.y);
            free(p.bias);
            free(p.residual);
            gsp_plan_destroy(plan);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    gsp_bytes from = {data, data + size};
    gsp_context *context;
    MUST(gsp_context_create(NULL, &context) == GSP_OK);
    gsp_sample sample;
    double *dense = take_matrix(context, &from, &sample);
    multiply(context, &sample, dense, &from);
    free(dense);
    gsp_sample_free(&sample);
    gsp_context_destroy(context);
    return 0;
}
