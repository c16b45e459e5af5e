/* Plans and products of every backend. Weights are multiples of 1/64 and x small integers, so every sum is
 * exact in float, whatever its order: results must equal the oracle's bit for bit. */
#include "gsp_sample.h"

/* An array of float or double, as the matrix computes. */
typedef struct {
    bool wide;
    void *data;
} vector;

static vector vector_make(bool wide, int64_t count) {
    return (vector){wide, gsp_test_bytes((size_t)count * (wide ? 8 : 4))};
}
static double vector_get(vector v, int64_t i) {
    return v.wide ? ((const double *)v.data)[i] : (double)((const float *)v.data)[i];
}
static void vector_set(vector v, int64_t i, double value) {
    if (v.wide) ((double *)v.data)[i] = value;
    else ((float *)v.data)[i] = (float)value;
}

static void check_product(const gsp_sample *sample, const gsp_plan *plan, int64_t n,
                          const double *dense, uint64_t *state) {
    const gsp_matrix *matrix = &sample->matrix;
    const int64_t rows = matrix->rows, cols = matrix->cols;
    const bool wide = matrix->dtype == GSP_FLOAT64;
    const bool by_sample = gsp_plan_describe(plan).columns == 0;
    vector x = vector_make(wide, cols * n), y = vector_make(wide, rows * n);
    vector bias = vector_make(wide, rows);
    for (int64_t i = 0; i < cols * n; i++) vector_set(x, i, (double)gsp_test_below(state, 17) - 8);
    for (int64_t i = 0; i < rows; i++) vector_set(bias, i, (double)gsp_test_below(state, 99) - 49);

    for (int with_bias = 0; with_bias < 2; with_bias++) {
        const gsp_epilogue epilogue = {.bias = with_bias ? bias.data : NULL,
                                       .activation = with_bias ? GSP_RELU : GSP_NONE};
        for (int64_t i = 0; i < rows * n; i++) vector_set(y, i, 1e30);
        EXPECT_INT(gsp_multiply(plan, x.data, n, NULL, y.data, with_bias ? &epilogue : NULL),
                   GSP_OK);
        bool same = true;
        for (int64_t row = 0; row < rows; row++)
            for (int64_t s = 0; s < n; s++) {
                double sum = with_bias ? vector_get(bias, row) : 0;
                for (int64_t col = 0; col < cols; col++)
                    sum += dense[row * cols + col] *
                           vector_get(x, by_sample ? s * cols + col : col * n + s);
                if (with_bias && sum < 0) sum = 0;
                same = same && vector_get(y, by_sample ? s * rows + row : row * n + s) == sum;
            }
        EXPECT(same);
    }
    free(x.data);
    free(y.data);
    free(bias.data);
}

static void test_products(gsp_context *context) {
    static const gsp_dtype dtypes[] = {GSP_FLOAT64, GSP_FLOAT32, GSP_FLOAT16, GSP_BFLOAT16,
                                       GSP_INT8};
    static const int64_t columns[] = {1, 2, 7, 16, 33};
    gsp_backend backends[GSP_BACKENDS];
    const int count = gsp_backends(backends);
    EXPECT(count >= 1 && count <= GSP_BACKENDS);
    EXPECT_INT(backends[count - 1], GSP_SCALAR);
    uint64_t state = 1;
    for (int i = 0; i < GSP_SHAPES; i++)
        for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++) {
            gsp_sample sample;
            EXPECT_INT(gsp_sample_make(context, &gsp_shapes[i], dtypes[d], 11, &sample), GSP_OK);
            const int64_t area = gsp_shapes[i].rows * gsp_shapes[i].cols;
            double *dense = gsp_test_bytes((size_t)area * sizeof *dense);
            for (int64_t flat = 0; flat < area; flat++)
                dense[flat] = gsp_sample_weight(&sample, flat);
            for (int b = 0; b < count; b++)
                for (size_t c = 0; c < sizeof columns / sizeof *columns; c++) {
                    gsp_plan *plan = NULL;
                    EXPECT_INT(
                        gsp_plan_create(context, &sample.matrix, backends[b], columns[c], &plan),
                        GSP_OK);
                    if (plan == NULL) continue;
                    const gsp_plan_info info = gsp_plan_describe(plan);
                    /* A kernel of AVX-512 does not say whether it needs more than the base. */
                    const gsp_backend most =
                        backends[b] == GSP_AVX512_BASE ? GSP_AVX512 : backends[b];
                    EXPECT(info.kernel != NULL && info.backend <= most);
                    EXPECT(info.efficiency > 0 && info.efficiency <= 1 &&
                           info.slots >= info.entries);
                    check_product(&sample, plan, columns[c], dense, &state);
                    gsp_plan_destroy(plan);
                }
            free(dense);
            gsp_sample_free(&sample);
        }
}

/* x and y may have rows further apart than they are long; what lies between stays as it is. */
static void test_strides(gsp_context *context) {
    static const gsp_shape shape = GSP_SHAPE(8, 2, GSP_INTERLEAVED, 13, 33, true);
    enum { ROWS = 13, COLS = 33, N = 5, GAP = 3 };
    gsp_sample sample;
    EXPECT_INT(gsp_sample_make(context, &shape, GSP_FLOAT32, 21, &sample), GSP_OK);
    gsp_backend backends[GSP_BACKENDS];
    const int count = gsp_backends(backends);
    for (int b = 0; b < count; b++) {
        for (int way = 0; way < 4; way++) {
            /* The plan for few columns with x as it likes it and the other way, and so the one for many. */
            const int columns = way == 1 || way == 2;
            gsp_plan *plan = NULL;
            EXPECT_INT(
                gsp_plan_create(context, &sample.matrix, backends[b], way < 2 ? 1 : 64, &plan),
                GSP_OK);
            if (plan == NULL) continue;
            EXPECT_INT(gsp_plan_describe(plan).columns, way >= 2);
            EXPECT_INT(gsp_plan_describe(plan).strided, 1);
            const int64_t x_line = (columns ? N : COLS) + GAP, x_lines = columns ? COLS : N;
            const int64_t y_line = (columns ? N : ROWS) + GAP, y_lines = columns ? ROWS : N;
            const gsp_strides strides =
                columns ? (gsp_strides){x_line, 1, y_line, 1} : (gsp_strides){1, x_line, 1, y_line};
            float *x = gsp_test_bytes((size_t)(x_line * x_lines - GAP) * sizeof *x);
            float *y = gsp_test_bytes((size_t)(y_line * y_lines - GAP) * sizeof *y);
            float *residual = gsp_test_bytes((size_t)(y_line * y_lines - GAP) * sizeof *residual);
            for (int64_t i = 0; i < x_line * x_lines - GAP; i++) x[i] = (float)(i % 17 - 8);
            for (int64_t i = 0; i < y_line * y_lines - GAP; i++) {
                y[i] = 77;
                residual[i] = (float)(i % 13 - 6);
            }
            const gsp_epilogue epilogue = {.residual = residual, .activation = GSP_RELU};
            EXPECT_INT(gsp_multiply(plan, x, N, &strides, y, &epilogue), GSP_OK);
            bool same = true;
            for (int64_t line = 0; line < y_lines; line++)
                for (int64_t i = 0; i < (line + 1 < y_lines ? y_line : y_line - GAP); i++) {
                    const int64_t at = line * y_line + i, row = columns ? line : i;
                    double sum = residual[at];
                    const bool between = i >= y_line - GAP;
                    for (int64_t col = 0; col < COLS && !between; col++)
                        sum += gsp_sample_weight(&sample, row * COLS + col) *
                               x[columns ? col * x_line + i : line * x_line + col];
                    same = same && y[at] == (between ? 77 : sum < 0 ? 0 : sum);
                }
            EXPECT(same);

            /* What does not fit is refused, and nothing is written. */
            const gsp_strides wrong = {2, 2, 2, 2};
            if (way >= 2) EXPECT_INT(gsp_multiply(plan, x, N, &wrong, y, NULL), GSP_ERROR_SHAPE);
            EXPECT_INT(gsp_multiply(plan, x, -1, &strides, y, NULL), GSP_ERROR_SHAPE);
            const gsp_epilogue unknown = {.activation = (gsp_activation)(GSP_CLAMP + 1)};
            EXPECT_INT(gsp_multiply(plan, x, N, &strides, y, &unknown), GSP_ERROR_SHAPE);
            const gsp_epilogue nothing = {.activation = GSP_CLAMP, .low = 1, .high = 0};
            EXPECT_INT(gsp_multiply(plan, x, N, &strides, y, &nothing), GSP_ERROR_SHAPE);
            free(x);
            free(y);
            free(residual);
            gsp_plan_destroy(plan);
        }
    }
    gsp_sample_free(&sample);
}

static void test_refusals(gsp_context *context) {
    EXPECT(strcmp(gsp_backend_name(GSP_SCALAR), "scalar") == 0);
    EXPECT(strcmp(gsp_backend_name(GSP_AVX2), "avx2") == 0);
    EXPECT(strcmp(gsp_backend_name(GSP_AVX512), "avx512") == 0);
    EXPECT(strcmp(gsp_backend_name(GSP_NEON), "neon") == 0);
    EXPECT(gsp_backend_name((gsp_backend)GSP_BACKENDS) == NULL);
    gsp_sample sample;
    EXPECT_INT(gsp_sample_make(context, &gsp_shapes[0], GSP_INT8, 3, &sample), GSP_OK);
    gsp_plan *plan = NULL;
    EXPECT_INT(gsp_plan_create(context, &sample.matrix, (gsp_backend)GSP_BACKENDS, 1, &plan),
               GSP_ERROR_BACKEND);
    EXPECT_INT(gsp_plan_create(context, &sample.matrix, GSP_SCALAR, -1, &plan), GSP_ERROR_SHAPE);
    gsp_matrix matrix = sample.matrix;
    matrix.scales = NULL;
    EXPECT_INT(gsp_plan_create(context, &matrix, GSP_SCALAR, 1, &plan), GSP_ERROR_DTYPE);
    EXPECT(plan == NULL);
    gsp_plan_destroy(NULL);
    gsp_sample_free(&sample);
}

int main(void) {
    gsp_context *context;
    EXPECT_INT(gsp_context_create(NULL, &context), GSP_OK);
    test_products(context);
    test_strides(context);
    test_refusals(context);
    gsp_context_destroy(context);
    return gsp_test_done("multiply");
}
