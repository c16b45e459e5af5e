/* What the driver of recurrent layers and the kernels of their gates share. */
#ifndef GSP_RECURRENT_H
#define GSP_RECURRENT_H

#include "gsp_kernels.h"

/* One step of a cell. Numbers are double or float. */
typedef struct gspi_gates {
    int64_t hidden; /* units */
    const void *input, *product; /* [samples][gates][hidden]: W_ih x and W_hh h */
    const void
        *bias; /* [4][hidden]: of each sum; GRU: the last is of the product of gate n alone */
    void *h, *c; /* [samples][hidden]: of the step before, then of this one; c: LSTM */
    void *y; /* [samples], y_sample apart: h again */
    int64_t y_sample;
} gspi_gates;

/* Does the samples [first, last). */
typedef void gspi_gates_kernel(const gspi_gates *gates, int64_t first, int64_t last);

gspi_gates_kernel gspi_f32_lstm__avx512, gspi_f32_lstm__avx2, gspi_f32_lstm__neon,
    gspi_f32_lstm__scalar, gspi_f64_lstm__scalar;
gspi_gates_kernel gspi_f32_gru__avx512, gspi_f32_gru__avx2, gspi_f32_gru__neon,
    gspi_f32_gru__scalar, gspi_f64_gru__scalar;

#endif
