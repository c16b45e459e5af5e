/* The epilogue of gsp_activation.h over an array of sums, with AVX2.
 *
 *     for every i:    y[i] = activation(scales[i * step] * y[i] + bias[i * step] + residual[i]) */
#if defined(__AVX2__) && defined(__FMA__)
#include "gsp_activation.h"

void gspi_f32_finish__avx2(float *y, int64_t count, const float *scales, const float *bias,
                           int64_t step, const float *residual, const gsp_epilogue *epilogue) {
    v_finish(y, count, scales, bias, step, residual, epilogue);
}
#endif
