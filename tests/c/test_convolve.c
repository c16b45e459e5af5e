/* gsp_convolve refuses what does not fit together, and what it says of a small convolution can be summed by hand. */
#include "gsp_sample.h"

/* y[0], y[1] of one row: w = (1 2 3) along a row, one channel. */
static void test_by_hand(gsp_context *context, gsp_backend backend) {
    const float values[] = {1, 2, 3};
    const uint16_t indices[] = {0, 1, 2};
    const uint32_t indptr[] = {0, 3};
    const gsp_matrix matrix = {.pattern = {.kind = GSP_IRREGULAR},
                               .rows = 1,
                               .cols = 3,
                               .dtype = GSP_FLOAT32,
                               .index_bytes = 2,
                               .units = 3,
                               .values = values,
                               .indices = indices,
                               .indptr = indptr};
    gsp_plan *plan = NULL;
    EXPECT_INT(gsp_plan_create(context, &matrix, backend, 100, &plan), GSP_OK);
    if (plan == NULL) return;
    const float x[] = {10, 20, 30, 40, 50}, bias[] = {1};
    float y[3];
    const gsp_epilogue epilogue = {.bias = bias, .activation = GSP_CLAMP, .low = 0, .high = 250};
    const gsp_convolution right = {.images = 1,
                                   .channels = 1,
                                   .x = {1, 5, 5, 5, 5, 1},
                                   .y = {1, 3, 3, 3, 3, 1},
                                   .kernel = {1, 3},
                                   .stride = {1, 2},
                                   .dilation = {1, 1},
                                   .before = {0, 1}};
    EXPECT_INT(gsp_convolve(plan, &right, x, y, &epilogue), GSP_OK);
    EXPECT(y[0] == 1 + 2 * 10 + 3 * 20);
    EXPECT(y[1] == 1 + 20 + 2 * 30 + 3 * 40);
    EXPECT(y[2] == 1 + 40 + 2 * 50);

    const int64_t x_cols[] = {4}, y_cols[] = {2}, too_many[] = {6}, negative[] = {-1};
    gsp_convolution c = right;
    c.x_cols = x_cols;
    c.y_cols = y_cols;
    EXPECT_INT(gsp_convolve(plan, &c, x, y, NULL), GSP_OK);
    EXPECT(y[1] == 20 + 2 * 30 + 3 * 40);
    EXPECT(y[2] == 0);

#define REFUSED(change)                                                                            \
    do {                                                                                           \
        c = right;                                                                                 \
        change;                                                                                    \
        EXPECT_INT(gsp_convolve(plan, &c, x, y, NULL), GSP_ERROR_SHAPE);                           \
    } while (0)
    REFUSED(c.images = -1);
    REFUSED(c.channels = 2);
    REFUSED(c.kernel[1] = 2);
    REFUSED(c.kernel[0] = 0);
    REFUSED(c.stride[0] = 0);
    REFUSED(c.dilation[1] = 0);
    REFUSED(c.before[1] = -1);
    REFUSED(c.x.cols = (INT64_C(1) << 30) + 1);
    REFUSED(c.y.rows = -1);
    REFUSED(c.images = c.y.rows = c.y.cols = INT64_C(1) << 30);
    REFUSED(c.x.col_step = c.x.channel_step = 2);
    REFUSED(c.y.col_step = c.y.channel_step = 2);
    REFUSED(c.x_cols = too_many);
    REFUSED(c.x_cols = negative);
    REFUSED(c.y_cols = too_many);
    REFUSED(c.kernel[0] = c.kernel[1] = INT64_C(1) << 30);
    c = right;
    c.bfloat16 = 1; /* the matrix is not */
    EXPECT_INT(gsp_convolve(plan, &c, x, y, NULL), GSP_ERROR_DTYPE);
    const gsp_epilogue unknown = {.activation = (gsp_activation)99};
    EXPECT_INT(gsp_convolve(plan, &right, x, y, &unknown), GSP_ERROR_SHAPE);
    gsp_plan_destroy(plan);

    EXPECT_INT(gsp_plan_create(context, &matrix, backend, 1, &plan), GSP_OK);
    EXPECT_INT(gsp_convolve(plan, &right, x, y, NULL), GSP_ERROR_SHAPE);
    gsp_plan_destroy(plan);
}

int main(void) {
    gsp_context *context;
    EXPECT_INT(gsp_context_create(NULL, &context), GSP_OK);
    gsp_backend backends[GSP_BACKENDS];
    for (int i = gsp_backends(backends); i > 0; i--) test_by_hand(context, backends[i - 1]);
    gsp_context_destroy(context);
    return gsp_test_done("convolve");
}
