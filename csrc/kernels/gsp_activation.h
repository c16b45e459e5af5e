/* Bias, residual and activation of one register of sums.
 *
 *     y = activation(scale * sum + bias + residual)
 *
 * The functions are made of the same IEEE operations for every instruction set and lane, so that an element of y does
 * not depend on where it lies. In units in the last place of the exact function of their argument, exp is within 1,
 * sigmoid and tanh within 2, silu within 3 while e^x is normal (x >= -87), gelu within 12: tests/test_spmm.py
 * holds them to it over all exponents. Polynomials are fits of our own, which benchmarks/fit_activations.py makes
 * again. */
#ifndef GSP_ACTIVATION_H
#define GSP_ACTIVATION_H

#include "gsp_kernels.h"
#include "gsp_vector.h"

/* (((c[n - 1] x + c[n - 2]) x + ..) x + c[0] */
GSPI_VECTOR gspi_v v_polynomial(gspi_v x, const float *c, int n) {
    gspi_v sum = v_set1(c[n - 1]);
    for (int i = n - 2; i >= 0; i--) sum = v_fma(sum, x, v_set1(c[i]));
    return sum;
}

/* e^x = 2^n e^r, where n is whole and |r| at most half a step of ln 2; ln 2 is taken off in two parts, of which n
 * times the first is exact. Beyond the limits the result is 0 or infinity all the same. */
GSPI_VECTOR gspi_v v_exp(gspi_v x) {
    static const float c[] = {1.0f,           1.0f,           0x1.fffffcp-2f, 0x1.555492p-3f,
                              0x1.5558aep-5f, 0x1.123986p-7f, 0x1.6a4f70p-10f};
    x = v_min(v_set1(90.0f), v_max(v_set1(-105.0f), x));
    const gspi_v n = v_round(v_mul(x, v_set1(0x1.715476p0f)));
    gspi_v r = v_fnma(n, v_set1(0x1.62e400p-1f), x);
    r = v_fnma(n, v_set1(0x1.7f7d1cp-20f), r);
    return v_scale(v_polynomial(r, c, 7), n);
}

/* 1 / (1 + e^-x), without an e^x that overflows. What 1 + e loses to rounding is made up for; for that 1 / (1 + e) is
 * needed to a few hundredths only, and e is from 0 to 1. */
GSPI_VECTOR gspi_v v_sigmoid(gspi_v x) {
    const gspi_v one = v_set1(1.0f), e = v_exp(v_sub(v_set1(0.0f), v_abs(x)));
    const gspi_v sum = v_add(one, e), lost = v_sub(e, v_sub(sum, one));
    const gspi_v y = v_div(v_less(x, v_set1(0.0f), e, one), sum);
    const gspi_v inverse = v_fnma(sum, v_set1(0.4857f), v_set1(1.457f));
    return v_fnma(v_mul(y, lost), inverse, y);
}

/* An odd polynomial near 0, else 1 - 2 / (e^2|x| + 1). */
GSPI_VECTOR gspi_v v_tanh(gspi_v x) {
    static const float c[] = {-0x1.555552p-2f, 0x1.110ddep-3f, -0x1.b91a3cp-5f, 0x1.57ae6ap-6f,
                              -0x1.8deb50p-8f};
    const gspi_v one = v_set1(1.0f), size = v_abs(x), square = v_mul(x, x);
    const gspi_v near = v_fma(v_mul(x, square), v_polynomial(square, c, 5), x);
    const gspi_v e = v_exp(v_add(size, size));
    const gspi_v far = v_sub(one, v_div(v_set1(2.0f), v_add(e, one)));
    return v_less(size, v_set1(0.625f), near, v_sign(far, x));
}

/* x Phi(x), where Phi(-t) = e^(-t^2/2) M(t) for t >= 0 and M is a polynomial in (t - 3) / (t + 3). The rounding of t^2
 * would be felt in its exponential: it is made up for. Far out Phi is 0, and gelu(-inf) NaN, as torch has it; so is
 * silu(-inf). */
GSPI_VECTOR gspi_v v_gelu(gspi_v x) {
    static const float c[] = {0x1.f1b89cp-4f,  -0x1.a6b66ap-3f, 0x1.f8baccp-4f,   -0x1.7a9456p-5f,
                              0x1.91df6p-8f,   0x1.7cb36ap-9f,  -0x1.01d58cp-10f, -0x1.63a536p-12f,
                              0x1.e2f226p-14f, 0x1.be5ccep-15f};
    const gspi_v one = v_set1(1.0f), half = v_set1(0.5f), three = v_set1(3.0f);
    const gspi_v t = v_min(v_set1(15.0f), v_abs(x)), square = v_mul(t, t);
    const gspi_v lost = v_fms(t, t, square);
    const gspi_v e = v_exp(v_mul(v_set1(-0.5f), square));
    const gspi_v mills = v_polynomial(v_div(v_sub(t, three), v_add(t, three)), c, 10);
    const gspi_v tail = v_mul(v_fnma(v_mul(e, lost), half, e), mills);
    return v_mul(x, v_less(x, v_set1(0.0f), tail, v_sub(one, tail)));
}

GSPI_VECTOR gspi_v v_activate(gspi_v x, const gsp_epilogue *epilogue) {
    switch (epilogue->activation) {
    case GSP_NONE: break;
    case GSP_RELU: return v_max(v_set1(0.0f), x);
    case GSP_SIGMOID: return v_sigmoid(x);
    case GSP_TANH: return v_tanh(x);
    case GSP_GELU: return v_gelu(x);
    case GSP_SILU: return v_mul(x, v_sigmoid(x));
    case GSP_CLAMP:
        return v_min(v_set1((float)epilogue->high), v_max(v_set1((float)epilogue->low), x));
    }
    return x;
}

/* The epilogue over `count` sums: along a row (step 0), or over the rows of a sample (step 1). */
GSPI_VECTOR void v_finish(float *y, int64_t count, const float *scales, const float *bias,
                          int64_t step, const float *residual, const gsp_epilogue *of) {
    const gsp_epilogue epilogue = *of; /* which no store can change */
    for (int64_t i = 0; i < count; i += V_LANES) {
        const gspi_v_mask some = v_mask(count - i);
        gspi_v sum = v_load_some(y + i, some);
        if (scales != NULL)
            sum = v_mul(sum, step == 0 ? v_set1(*scales) : v_load_some(scales + i, some));
        if (bias != NULL) sum = v_add(sum, step == 0 ? v_set1(*bias) : v_load_some(bias + i, some));
        if (residual != NULL) sum = v_add(sum, v_load_some(residual + i, some));
        v_store_some(y + i, some, v_activate(sum, &epilogue));
    }
}

#endif
