/* Every backend against a product in double: a matrix of any pattern, shape and dtype, x in every dtype that it takes,
 * bias, residual, strides and activation, all taken from the input, multiplied by every kind of plan. */
#include "gsp_fuzz_matrix.h"

typedef struct {
    int64_t n;
    gsp_dtype operand; /* as the plan was made for */
    gsp_dtype type; /* of x and y */
    gsp_strides strides;
    void *x, *bias, *residual, *y;
    gsp_epilogue epilogue;
} product;

/* x [cols] of one sample as the kernel multiplies it: rounded for GSP_INT8. */
static void read_sample(const product *p, int64_t cols, int64_t sample, double *x) {
    const gsp_strides *at = &p->strides;
    for (int64_t col = 0; col < cols; col++)
        x[col] = number_at(p->type, p->x, col * at->x_col + sample * at->x_sample);
    if (p->operand != GSP_INT8) return;
    const gspi_quantum quantum =
        gspi_measure__scalar((const float *)p->x + sample * at->x_sample, at->x_col, cols);
    for (int64_t col = 0; col < cols; col++)
        x[col] = gspi_quantized((float)x[col], &quantum) * (double)quantum.scale;
}

static void check(const gsp_matrix *matrix, const uint8_t *mask, const double *dense,
                  const product *p) {
    const int64_t rows = matrix->rows, cols = matrix->cols;
    double *x = gsp_test_bytes((size_t)cols * sizeof *x);
    for (int64_t sample = 0; sample < p->n; sample++) {
        read_sample(p, cols, sample, x);
        for (int64_t row = 0; row < rows; row++) {
            sum_of_terms sum = {0};
            for (int64_t i = row * cols; i < (row + 1) * cols; i++)
                if (mask[i]) add_term(&sum, dense[i] * x[i - row * cols]);
            const int64_t place = row * p->strides.y_row + sample * p->strides.y_sample;
            MUST(is_near(p->type, number_at(p->type, p->y, place), sum, &p->epilogue, row, place));
        }
    }
    free(x);
}

/* What all products of an input have in common. */
typedef struct {
    int64_t n, gap;
    bool x_along, y_along;
    gsp_bytes epilogue;
} arrangement;

static void multiply_with(const gsp_plan *plan, gsp_dtype operand, const gsp_sample *sample,
                          const double *dense, arrangement a, uint64_t *state) {
    const gsp_matrix *matrix = &sample->matrix;
    const int64_t rows = matrix->rows, cols = matrix->cols;
    const gsp_plan_info info = gsp_plan_describe(plan);
    product p = {.n = a.n, .operand = operand, .type = operand == GSP_INT8 ? GSP_FLOAT32 : operand};
    const bool along = a.x_along && (info.columns || info.strided);
    const int64_t x_line = (along ? a.n : cols) + a.gap, y_line = (a.y_along ? a.n : rows) + a.gap;
    const int64_t y_count = y_line * (a.y_along ? rows : a.n) - a.gap;
    p.strides = (gsp_strides){along ? x_line : 1, along ? 1 : x_line, a.y_along ? y_line : 1,
                              a.y_along ? 1 : y_line};
    p.x = take_numbers(p.type, x_line * (along ? cols : a.n) - a.gap, state);
    p.y = take_numbers(p.type, y_count, state);
    p.bias = take_numbers(p.type, rows, state);
    p.residual = take_numbers(p.type, y_count, state);
    p.epilogue = take_epilogue(&a.epilogue, p.bias, p.residual);
    MUST(gsp_multiply(plan, p.x, a.n, &p.strides, p.y, &p.epilogue) == GSP_OK);
    check(matrix, sample->mask, dense, &p);
    free(p.x);
    free(p.y);
    free(p.bias);
    free(p.residual);
}

static void multiply(gsp_context *context, const gsp_sample *sample, const double *dense,
                     gsp_bytes *from) {
    static const int64_t numbers[] = {1, 1, 2, 3, 5, 8, 16, 17, 33, 65};
    const gsp_dtype dtype = sample->matrix.dtype;
    const gsp_dtype operands[] = {dtype == GSP_FLOAT64 ? GSP_FLOAT64 : GSP_FLOAT32, dtype};
    const int ways = dtype == GSP_BFLOAT16 || dtype == GSP_INT8 ? 2 : 1;
    arrangement a = {.n = numbers[gsp_take_below(from, 10)], .gap = gsp_take_below(from, 3)};
    uint64_t state = gsp_take(from, 4) * 2 + 1;
    a.x_along = gsp_take_below(from, 2);
    a.y_along = gsp_take_below(from, 2);
    a.epilogue = *from;
    gsp_backend backends[GSP_BACKENDS];
    const int count = gsp_backends(backends);
    for (int b = 0; b < count; b++)
        for (int way = 0; way < ways; way++)
            for (int kind = 0; kind < 2; kind++) { /* a plan for n, and that for 1 on n samples */
                gsp_plan *plan;
                MUST(gsp_plan_create_for(context, &sample->matrix, backends[b], kind ? 1 : a.n,
                                         operands[way], &plan) == GSP_OK);
                multiply_with(plan, operands[way], sample, dense, a, &state);
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
