/* Scales, bias, residual and activation of sums that a kernel left in y, for kernels that do not do it themselves. */
#include <math.h>

#include "gsp_kernels.h"

/* min and max by comparisons that a NaN fails, so that it stays one. */
#define FINISH(name, type, exp_, tanh_, erf_)                                                      \
    static void finish_##name(type *y, int64_t count, const float *scales, const type *bias,       \
                              int64_t step, const type *residual, const gsp_epilogue *epilogue) {  \
        if (scales != NULL)                                                                        \
            for (int64_t i = 0; i < count; i++) y[i] *= scales[i * step];                          \
        if (bias != NULL)                                                                          \
            for (int64_t i = 0; i < count; i++) y[i] += bias[i * step];                            \
        if (residual != NULL)                                                                      \
            for (int64_t i = 0; i < count; i++) y[i] += residual[i];                               \
        const type low = (type)epilogue->low, high = (type)epilogue->high;                         \
        switch (epilogue->activation) {                                                            \
        case GSP_NONE: break;                                                                      \
        case GSP_RELU:                                                                             \
            for (int64_t i = 0; i < count; i++) y[i] = y[i] < 0 ? 0 : y[i];                        \
            break;                                                                                 \
        case GSP_SIGMOID:                                                                          \
            for (int64_t i = 0; i < count; i++) y[i] = 1 / (1 + exp_(-y[i]));                      \
            break;                                                                                 \
        case GSP_TANH:                                                                             \
            for (int64_t i = 0; i < count; i++) y[i] = tanh_(y[i]);                                \
            break;                                                                                 \
        case GSP_GELU:                                                                             \
            for (int64_t i = 0; i < count; i++)                                                    \
                y[i] = (type)0.5 * y[i] * (1 + erf_(y[i] * (type)0.70710678118654752440));         \
            break;                                                                                 \
        case GSP_SILU:                                                                             \
            for (int64_t i = 0; i < count; i++) y[i] = y[i] / (1 + exp_(-y[i]));                   \
            break;                                                                                 \
        case GSP_CLAMP:                                                                            \
            for (int64_t i = 0; i < count; i++)                                                    \
                y[i] = y[i] < low ? low : y[i] > high ? high : y[i];                               \
            break;                                                                                 \
        }                                                                                          \
    }

FINISH(f64, double, exp, tanh, erf)
FINISH(f32, float, expf, tanhf, erff)

void gspi_f32_finish__scalar(float *y, int64_t count, const float *scales, const float *bias,
                             int64_t step, const float *residual, const gsp_epilogue *epilogue) {
    finish_f32(y, count, scales, bias, step, residual, epilogue);
}

void gspi_finish(const gsp_plan *plan, void *y, int64_t count, int64_t row, int64_t step,
                 const void *residual, const gsp_epilogue *epilogue) {
    const float *scales = plan->matrix.scales;
    if (scales == NULL && epilogue->bias == NULL && residual == NULL &&
        epilogue->activation == GSP_NONE)
        return;
    if (scales != NULL) scales += row;
    if (plan->matrix.dtype == GSP_FLOAT64) {
        const double *bias = epilogue->bias;
        finish_f64(y, count, scales, bias == NULL ? NULL : bias + row, step, residual, epilogue);
        return;
    }
    const float *bias = epilogue->bias;
    if (bias != NULL) bias += row;
    switch (plan->entry->backend) {
#ifdef GSP_HAVE_AVX512
    case GSP_AVX512:
        gspi_f32_finish__avx512(y, count, scales, bias, step, residual, epilogue);
        return;
#endif
#ifdef GSP_HAVE_AVX2
    case GSP_AVX2: gspi_f32_finish__avx2(y, count, scales, bias, step, residual, epilogue); return;
#endif
#ifdef GSP_HAVE_NEON
    case GSP_NEON: gspi_f32_finish__neon(y, count, scales, bias, step, residual, epilogue); return;
#endif
    default: finish_f32(y, count, scales, bias, step, residual, epilogue);
    }
}
