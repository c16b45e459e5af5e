/* The epilogue of gsp_activation.h over an array of sums, with NEON.
 *
 *     for every i:    y[i] = activation(scales[i * step] * y[i] + bias[i * step] + residual[i]) */
#if defined(__aarch64__)
#include "gsp_activation.h"

void gspi_f32_finish__neon(float *y, int64_t count, const float *scales, const float *bias,
                           int64_t step, const float *residual, const gsp_epilogue *epilogue) {
    v_finish(y, count, scales, bias, step, residual, epilogue);
}
#endif
