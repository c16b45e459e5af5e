/* What the driver of recurrent layers and the kernels of their gates share. */
#ifndef GSP_RECURRENT_H
#define GSP_RECURRENT_H

#include "gsp_kernels.h"

/* One step of a cell. Numbers are double or float. A line is a sample, with its units side by side; or, of many
 * samples, a unit, with its samples side by side. */
typedef struct gspi_gates {
    int64_t hidden, samples;
    bool by_unit; /* lines are units */
    const void *input,
        *product; /* W_ih x and W_hh h: of a sample [gates][hidden], or lines [gates][hidden] */
    const void
        *bias; /* [4][hidden]: of each sum; GRU: the last is of the product of gate n alone */
    void *h, *c; /* of the step before, then of this one; c: LSTM */
    void *y; /* h again, by sample */
    int64_t input_line, product_line, state_line, y_sample; /* numbers from line to line */
} gspi_gates;

/* Does the numbers [from, to) of the lines [first, last); by unit, those are all its samples. */
typedef void gspi_gates_kernel(const gspi_gates *gates, int64_t first, int64_t last, int64_t from,
                               int64_t to);
/* to[col * to_line + row] = from[row * from_line + col] */
typedef void gspi_turn_kernel(const void *from, int64_t from_line, int64_t rows, int64_t cols,
                              void *to, int64_t to_line);

typedef struct gspi_cell_kernels {
    gspi_gates_kernel *lstm, *gru;
    gspi_turn_kernel *turn;
} gspi_cell_kernels;

extern const gspi_cell_kernels gspi_f32_cells__avx512, gspi_f32_cells__avx2, gspi_f32_cells__neon,
    gspi_f32_cells__scalar, gspi_f64_cells__scalar;

#endif
